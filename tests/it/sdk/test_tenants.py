"""Two tenants are isolated: neither can see, name or infer caches of the other. Also tokens, in requests without an SDK."""

import subprocess
import uuid

from stage import PATH, problem, refused

LARDER = "/larder/v1/caches"


def without_id(answer):
    """Returns a response without the parts that differ between requests."""
    headers = {name: value for name, value in answer.headers.items() if name.lower() not in ("x-request-id", "date")}
    return answer.status_code, headers, answer.content


def test_another_tenants_cache_is_not_found(stage, a, b):
    id = stage.sdk(a).create("web", [stage.image], stage.cluster).image_cache.id
    stage.sdk(a).settle(id)
    other = stage.sdk(b)
    assert other.list() == [] and other.list("web") == []
    refused(404, lambda: other.show(id))
    refused(404, lambda: other.delete(id))
    # The responses for another tenant's cache, for a cache that does not exist, and for an invalid ID are
    # identical byte for byte.
    for method, path in [("GET", PATH + "/{}"), ("DELETE", PATH + "/{}"), ("GET", LARDER + "/{}"), ("GET", LARDER + "/{}/events"),
                         ("POST", LARDER + "/{}/cancel"), ("POST", LARDER + "/{}/refresh")]:
        answers = [without_id(stage.ask(b, method, path.format(one))) for one in (id, uuid.uuid4(), "none")]
        assert answers[0] == answers[1] == answers[2], (method, path, answers)
        assert answers[0][0] == 404
    assert stage.ask(b, "GET", "/larder/v1/match", headers={}).status_code == 400
    found = stage.ask(b, "GET", f"/larder/v1/match?image={stage.image}")
    assert found.status_code == 200 and found.json() == {"match": None}, found.text
    assert stage.ask(a, "GET", f"/larder/v1/match?image={stage.image}").json()["match"]["image_cache"]["id"] == id
    assert stage.sdk(a).show(id).status == "Available"


def test_a_name_is_the_tenants_own(stage, a, b):
    first = stage.sdk(a).create("web", [stage.image], stage.cluster).image_cache
    second = stage.sdk(b).create("web", [stage.image], stage.cluster).image_cache
    assert first.id != second.id
    for tenant, id in [(a, first.id), (b, second.id)]:
        assert [cache.id for cache in stage.sdk(tenant).list("web")] == [id]
        assert stage.sdk(tenant).settle(id).status == "Available"


def test_an_idempotency_key_is_the_tenants_own(stage, a, b):
    key = {"Idempotency-Key": "one-key"}
    first = stage.ask(a, "POST", PATH, stage.order(), headers=key)
    second = stage.ask(b, "POST", PATH, stage.order(), headers=key)
    assert (first.status_code, second.status_code) == (201, 201)
    assert first.json()["image_cache"]["id"] != second.json()["image_cache"]["id"]


def curl(stage, *arguments):
    command = ["curl", "--silent", "--show-error", "--noproxy", "*", "--max-time", "30", "--write-out", "\n%{http_code}", *arguments]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    body, _, status = printed.rpartition("\n")
    return int(status), body


def test_tokens_by_curl(stage, a, b):
    url = stage.endpoint + PATH
    id = stage.sdk(a).create("web", [stage.image], stage.cluster).image_cache.id
    status, body = curl(stage, "-H", f"X-Auth-Token: {a.token}", url)
    assert status == 200 and id in body
    status, body = curl(stage, "-H", f"Authorization: Bearer {a.token}", url)
    assert status == 200 and id in body
    status, body = curl(stage, "-H", f"X-Auth-Token: {b.token}", url)
    assert status == 200 and id not in body
    status, body = curl(stage, "-H", f"Authorization: Bearer {b.token}", url)
    assert status == 200 and id not in body
    for headers in [[], ["-H", "X-Auth-Token: nobody's"], ["-H", "X-Auth-Token;"], ["-H", f"X-Auth-Token: {a.token}x"],
                    ["-H", f"X-Auth-Token: {a.token[:-1]}"], ["-H", f"Authorization: Bearer {a.token}x"]]:
        status, body = curl(stage, *headers, url)
        assert status == 401 and id not in body, headers
    status, body = curl(stage, "-X", "DELETE", "-H", f"X-Auth-Token: {a.token}", f"{url}/{id}")
    assert status == 202 and '"Deleting"' in body


def test_two_credentials_are_refused(stage, a, b):
    signed = stage.sign(a, "GET", PATH)
    for token in (a.token, b.token):
        signed.headers["X-Auth-Token"] = token
        problem(400, signed.send())


def test_the_name_of_the_admin_is_not_a_token(stage):
    answer = stage.ask(None, "GET", PATH, headers={"X-Auth-Token": "admin"})
    problem(401, answer)
