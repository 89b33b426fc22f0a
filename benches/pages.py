"""Measures the pages of the daemon with 50 image caches of 40 layers each: the time until the list is painted, and the
processor time that the daemon spends on open lists.

    scripts/install-deps.sh
    target/python/bin/python benches/pages.py target/dist/larder

Needs root, like the daemon. A registry in this process serves the images.
"""

import contextlib
import hashlib
import http.server
import io
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
import urllib.request
from pathlib import Path

from playwright.sync_api import sync_playwright

CACHES = 50
LAYERS = 40
LOADS = 7
# Seconds of each measurement of processor time.
PERIOD = 20
TOKEN = "token"
CONFIG = """
state.dir = '{dir}/state'
api.socket = '{dir}/larder.sock'
api.tcp = '{address}'
secrets.dir = '{dir}/secrets'
registry.allow = ['127.0.0.0/8']
caches.capacity = '20TiB'
caches.volume_kind = 'directory'
caches.sparse = true
caches.max_per_tenant = 100
[[tenant]]
name = 'bench'
token_sha256 = ['{hash}']
"""


class Registry(http.server.ThreadingHTTPServer):
    """Serves images. Blobs in `slow` take one and a half periods."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.blobs, self.manifests, self.slow = {}, {}, set()
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def put(self, content):
        digest = "sha256:" + hashlib.sha256(content).hexdigest()
        self.blobs[digest] = content
        return digest

    def push(self, name, layers):
        """Stores an image with these layers, and returns its reference."""
        architecture = {"x86_64": "amd64", "aarch64": "arm64"}[platform.machine()]
        rootfs = {"type": "layers", "diff_ids": [self.put(layer) for layer in layers]}
        config = json.dumps({"architecture": architecture, "os": "linux", "config": {}, "rootfs": rootfs}).encode()
        kind = "application/vnd.oci.image"
        described = [("layer.v1.tar", content) for content in layers]
        described = [{"mediaType": f"{kind}.{what}", "digest": self.put(content), "size": len(content)}
                     for what, content in [("config.v1+json", config), *described]]
        manifest = {"schemaVersion": 2, "mediaType": f"{kind}.manifest.v1+json", "config": described[0],
                    "layers": described[1:]}
        self.manifests[name] = json.dumps(manifest).encode()
        return f"127.0.0.1:{self.server_port}/{name}:1"


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        name, _, digest = self.path.removeprefix("/v2/").rpartition("/")
        if self.path == "/v2/":
            return self.answer(b"{}", "application/json")
        if name.endswith("/manifests"):
            content = self.server.manifests[name.removesuffix("/manifests")]
            return self.answer(content, "application/vnd.oci.image.manifest.v1+json")
        return self.answer(self.server.blobs[digest], "application/octet-stream", digest in self.server.slow)

    do_HEAD = do_GET

    def answer(self, content, kind, is_slow=False):
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command == "HEAD":
            return
        pieces = 300 if is_slow else 1
        size = -(-len(content) // pieces)
        for start in range(0, len(content), size):
            self.wfile.write(content[start:start + size])
            if is_slow:
                time.sleep(1.5 * PERIOD / pieces)

    def log_message(self, *_):
        pass


def layer(name, size):
    """Returns a tar with one file."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        entry = tarfile.TarInfo(f"opt/{name}")
        entry.size = size
        tar.addfile(entry, io.BytesIO(os.urandom(size)))
    return out.getvalue()


class Daemon:
    def __init__(self, program, dir):
        self.dir, self.endpoint = Path(dir), "http://127.0.0.1:18080"
        config = self.dir / "larder.toml"
        token = hashlib.sha256(TOKEN.encode()).hexdigest()
        config.write_text(CONFIG.format(dir=dir, address=self.endpoint.removeprefix("http://"), hash=token))
        log = open(self.dir / "log", "w", encoding="utf-8")
        self.process = subprocess.Popen([program, "serve", "--config", config], stdout=log, stderr=log)
        wait_for(self.is_ready)

    def is_ready(self):
        with contextlib.suppress(OSError):
            return self.ask("/readyz")

    def ask(self, path, body=None):
        request = urllib.request.Request(self.endpoint + path, body and json.dumps(body).encode())
        request.add_header("X-Auth-Token", TOKEN)
        request.add_header("Content-Type", "application/json")
        return urllib.request.urlopen(request, timeout=60).read()

    def create(self, name, image):
        order = {"name": name, "images": [image], "building_config": {"cluster": "here"}}
        assert self.ask("/v5/imagecaches", body=order), name

    def statuses(self):
        caches = json.loads(self.ask("/v5/imagecaches"))["image_caches"]
        return [cache["status"] for cache in caches]

    def processor_seconds(self):
        """Returns the processor time of the daemon itself, without its builders."""
        stat = Path(f"/proc/{self.process.pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
        return (int(stat[11]) + int(stat[12])) / os.sysconf("SC_CLK_TCK")

    def share(self):
        """Returns the share of a core during a period, percent."""
        before, started = self.processor_seconds(), time.monotonic()
        time.sleep(PERIOD)
        return 100 * (self.processor_seconds() - before) / (time.monotonic() - started)


def wait_for(condition, seconds=600):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"timeout after {seconds} s"
        time.sleep(0.1)


def sign_in(browser, daemon):
    context = browser.new_context(base_url=daemon.endpoint, viewport={"width": 1280, "height": 800})
    page = context.new_page()
    page.goto("/ui/sign-in")
    page.get_by_label("Token").fill(TOKEN)
    page.get_by_role("button", name="Sign in").first.click()
    page.wait_for_url("**/ui/")
    return context


def painted(context):
    """Loads the list once, and returns the times of the response and of the last large paint, and its size."""
    page = context.new_page()
    page.goto("/ui/")
    page.get_by_role("row").nth(CACHES).wait_for()
    times = page.evaluate("""() => new Promise((resolve) => {
      const { responseEnd, transferSize } = performance.getEntriesByType("navigation")[0];
      const seen = (list) => resolve([responseEnd, list.getEntries().at(-1).startTime, transferSize]);
      new PerformanceObserver(seen).observe({ type: "largest-contentful-paint", buffered: true });
    })""")
    page.close()
    return times


def measure(daemon, browser, build):
    context = sign_in(browser, daemon)
    loads = [painted(context) for _ in range(LOADS)]
    response, paint, size = (statistics.median(values) for values in zip(*loads))
    worst = max(paint for _, paint, _ in loads)
    print(f"list of {CACHES} caches: {size / 1024:.0f} KiB, response {response:.0f} ms, "
          f"painted {paint:.0f} ms, worst of {LOADS} {worst:.0f} ms")
    context.close()
    print(f"{'share of a core':24} {'no page':>10} {'1 page':>10} {'5 pages':>10}")
    for name, prepare in [("nothing changes", lambda: None), ("a build in progress", build)]:
        shares = []
        for pages in [0, 1, 5]:
            contexts = [sign_in(browser, daemon) for _ in range(pages)]
            prepare()
            time.sleep(1)
            shares.append(daemon.share())
            for context in contexts:
                context.close()
            wait_for(lambda: "Creating" not in daemon.statuses())
        print(f"{name:24}" + "".join(f" {share:>8.2f} %" for share in shares))


def main():
    program = Path(sys.argv[1]).resolve()
    registry = Registry()
    with tempfile.TemporaryDirectory() as dir, sync_playwright() as driver:
        daemon = Daemon(program, dir)
        try:
            for number in range(CACHES):
                name = f"app-{number}"
                image = registry.push(name, [layer(f"{number}-{at}", 2000) for at in range(LAYERS)])
                daemon.create(name, image)
            wait_for(lambda: daemon.statuses() == ["Available"] * CACHES)
            builds = iter(range(100))

            def build():
                name = f"slow-{next(builds)}"
                content = layer(name, 3_000_000)
                registry.slow.add(registry.put(content))
                daemon.create(name, registry.push(name, [content]))

            options = {"executable_path": shutil.which("chromium"), "args": ["--no-sandbox"]}
            measure(daemon, driver.chromium.launch(**options), build)
        finally:
            daemon.process.terminate()
            daemon.process.wait()
            print("load average:", os.getloadavg())


if __name__ == "__main__":
    main()
