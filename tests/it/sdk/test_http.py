"""Properties of every response, and unknown paths and methods."""

import uuid

import pytest

from stage import PATH, problem

KEY = {"Idempotency-Key": "8c1f"}


def test_every_answer_has_its_request_id(stage, a):
    asked = [
        stage.ask(a, "GET", PATH), stage.ask(a, "POST", PATH, stage.order()), stage.ask(a, "POST", PATH, {}),
        stage.ask(None, "GET", PATH), stage.ask(a, "GET", "/none"), stage.ask(a, "PUT", PATH), stage.ask(None, "GET", "/healthz"),
        stage.ask(None, "GET", "/readyz"), stage.ask(None, "GET", "/openapi.json"), stage.ask(None, "GET", "/metrics"),
        stage.ask(a, "GET", PATH, headers={"X-Request-Id": "mine"}),
    ]
    ids = [answer.headers["X-Request-Id"] for answer in asked]
    assert len(set(ids)) == len(ids) and "mine" not in ids, ids


@pytest.mark.parametrize("path", ["/v5", "/v5/", "/v5/imagecache", "/v4/imagecaches", "/larder", "/larder/v1/cache", "/admin",
                                  PATH + "/x/y", "//v5/imagecaches", "/v5//imagecaches",
                                  "/" + "a" * 3000])
def test_unknown_paths(stage, a, path):
    problem(404, stage.ask(a, "GET", path))


@pytest.mark.parametrize("path", ["/%76%35/imagecaches", "/v5/imagecaches%2Fx", "/v5%2Fimagecaches", "/v5/./imagecaches", "/x/../v5/imagecaches",
                                  "/v5/imagecaches/%ff", "/v5/imagecaches/..%2f"])
def test_ambiguous_paths(stage, a, path):
    assert stage.verbatim(a, "GET", path) in (400, 404)


@pytest.mark.parametrize(("method", "path", "allowed"), [
    ("PUT", PATH, "GET"), ("DELETE", PATH, "POST"), ("PATCH", PATH, "GET"), ("POST", PATH + "/x", "DELETE"), ("PUT", PATH + "/x", "GET"),
    ("OPTIONS", PATH, "GET"), ("TRACE", PATH, "POST"), ("BREW", PATH, "GET"), ("POST", "/healthz", "GET"), ("GET", "/larder/v1/plan", "POST"),
    ("GET", "/larder/v1/caches/x/cancel", "POST"), ("DELETE", "/openapi.json", "GET"),
])
def test_unknown_methods(stage, a, method, path, allowed):
    answer = stage.ask(a, method, path)
    problem(405, answer)
    assert allowed in answer.headers["Allow"], answer.headers


def test_the_collection_cannot_be_deleted(stage, a):
    assert stage.ask(a, "POST", PATH, stage.order()).status_code == 201
    for path in (PATH, PATH + "/", PATH + "/*", PATH + "/?name=web"):
        assert stage.ask(a, "DELETE", path).status_code in (404, 405), path
    assert [cache.status for cache in stage.sdk(a).list()] != ["Deleting"]


def test_the_query(stage, a):
    assert stage.ask(a, "GET", PATH + "?unknown=1&other").status_code == 200
    problem(400, stage.ask(a, "GET", PATH + "?name=a&name=b"))
    for query in ("%ff", "%zz", "%", "%2"):
        assert stage.verbatim(a, "GET", f"{PATH}?name={query}") == 400, query


def test_a_body_is_not_parsed_as_a_request(stage, a):
    """No part of a body is parsed as a request, whichever header gives its length. Two lengths end the connection."""
    inner = f"GET {PATH} HTTP/1.1\r\nHost: x\r\nX-Auth-Token: {a.token}\r\n\r\n".encode()
    last = b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"

    def post(path, *headers):
        token = f"X-Auth-Token: {a.token}"
        return "\r\n".join([f"POST {path} HTTP/1.1", "Host: x", token, "Content-Type: application/json", *headers, "", ""]).encode()

    length = f"Content-Length: {len(inner)}"
    for path, status in [("/healthz", 405), ("/none", 404), (PATH, 400), ("/larder/v1/caches/x/cancel", 404)]:
        assert stage.statuses(post(path, length) + inner + last) == [status, 200], path
    assert stage.statuses(post(PATH, length, "Transfer-Encoding: chunked") + b"0\r\n\r\n" + inner) == [400]
    assert stage.statuses(post(PATH, length, "Content-Length: 0") + inner) == [400]
    for headers in (["Transfer-Encoding: gzip"], ["Transfer-Encoding: chunked, identity"], ["Content-Length: +5"], ["Content-Length: 5, 5"],
                    ["Content-Length : 5"]):
        assert stage.statuses(post(PATH, *headers) + inner) == [400], headers
    assert stage.statuses(b"GET / HTTP/1.1\r\nX: " + b"a" * 70_000 + b"\r\n\r\n") == [431]


def test_a_repeated_create_gets_the_first_response(stage, a):
    first = stage.ask(a, "POST", PATH, stage.order(), headers=KEY)
    assert first.status_code == 201
    id = first.json()["image_cache"]["id"]
    stage.sdk(a).settle(id)
    again = stage.ask(a, "POST", PATH, stage.order(), headers=KEY)
    assert (again.status_code, again.json()) == (201, first.json())
    assert len(stage.sdk(a).list()) == 1
    problem(400, stage.ask(a, "POST", PATH, stage.order(name="other"), headers=KEY))
    problem(409, stage.ask(a, "POST", PATH, stage.order(), headers={"Idempotency-Key": "another"}))
    problem(409, stage.ask(a, "POST", PATH, stage.order()))


@pytest.mark.parametrize("key", ["", "a b", "x" * 256, "\u00e9".encode().decode("latin-1")])
def test_malformed_keys(stage, a, key):
    problem(400, stage.ask(a, "POST", PATH, stage.order(), headers={"Idempotency-Key": key}))


def test_probes_need_no_credential(stage):
    for path in ("/healthz", "/readyz"):
        assert stage.ask(None, "GET", path).status_code == 200
    for path in (PATH, PATH + "/" + str(uuid.uuid4()), "/larder/v1/match?image=a", "/metrics"):
        problem(401, stage.ask(None, "GET", path))


def test_metrics_are_not_for_tenants(stage, a):
    assert stage.ask(a, "GET", "/metrics").status_code in (401, 403)


def test_the_document(stage):
    document = stage.ask(None, "GET", "/openapi.json").json()
    assert document["openapi"].startswith("3."), document["openapi"]
    methods = {(path, method) for path, item in document["paths"].items() for method in item if method != "parameters"}
    assert {(PATH, "get"), (PATH, "post"), (PATH + "/{id}", "get"), (PATH + "/{id}", "delete")} <= methods, methods
    for path in ("/larder/v1/caches/{id}", "/larder/v1/caches/{id}/events", "/larder/v1/caches/{id}/cancel", "/larder/v1/match",
                 "/larder/v1/caches/{id}/refresh", "/larder/v1/import", "/larder/v1/plan", "/healthz", "/readyz", "/metrics"):
        assert path in document["paths"], path
    create = document["paths"][PATH]["post"]["responses"]
    assert {"201", "400", "401", "403", "409", "413", "415", "429", "507"} <= set(create), set(create)
