"""Fifty image caches ordered at once, each by its own client, and the duration of each."""

import concurrent.futures
import time

from stage import refused, until

COUNT = 50


def test_fifty_at_once(stage, a):
    clients = [stage.sdk(a) for _ in range(COUNT)]

    def create(n):
        begun = time.monotonic()
        id = clients[n].create(f"web-{n}", [stage.image], stage.cluster).image_cache.id
        return id, begun, time.monotonic() - begun

    with concurrent.futures.ThreadPoolExecutor(COUNT) as pool:
        created = list(pool.map(create, range(COUNT)))
    begun = {id: start for id, start, _ in created}
    assert len(begun) == COUNT
    refused(403, lambda: clients[0].create("one-more", [stage.image], stage.cluster))

    ended = {}

    def all_settled():
        caches = clients[0].list()
        now = time.monotonic()
        assert len(caches) == COUNT
        for cache in caches:
            if cache.status != "Creating":
                ended.setdefault(cache.id, (now, cache.status))
        return len(ended) == COUNT

    until(stage.limit, all_settled)
    assert {status for _, status in ended.values()} == {"Available"}, ended
    answered = sorted(seconds for _, _, seconds in created)
    seconds = sorted(ended[id][0] - start for id, start in begun.items())
    print(f"POST response time in s: median {answered[COUNT // 2]:.3f}, maximum {answered[-1]:.3f}")
    print(f"POST to Available in s: minimum {seconds[0]:.2f}, median {seconds[COUNT // 2]:.2f}, maximum {seconds[-1]:.2f}")
    memory = {}
    with open(f"/proc/{stage.pid}/status", encoding="utf-8") as file:
        for line in file:
            name, _, value = line.partition(":")
            if name in ("VmHWM", "VmRSS"):
                memory[name] = int(value.split()[0]) / 1024
    print(f"the daemon in MiB: resident now {memory['VmRSS']:.1f}, maximum {memory['VmHWM']:.1f}")
