"""Inputs of a create that must be refused, and inputs just inside the limits."""

import json

import pytest
from huaweicloudsdkcce.v5 import CreateImageCacheRequest, CreateImageCacheRequestBody, ImageCacheBuildingConfig

from stage import PATH, problem, refused

LONG = "a" * 128
NAMES = ["", "A", "Web", "1web", "-web", "web-", "we_b", "we b", "we.b", "w\u00e9b", "web\n", LONG + "a", "a\u0000"]
SIZES = [19, 401, 0, -20, 20.5, 20.0, "20", True, [20], {}, 10**30]
DAYS = [-1, 10001, 0.0, 1.5, "1", False, [], {}, 10**30]
IMAGES = [[], "nginx", {}, [""], ["UPPER/case"], ["a b"], ["nginx:"], ["nginx@sha256:12"], ["-/x"], [5], [None], [["nginx"]], ["http://h/x"]]
ABSENT = object()


def changed(stage, path, value):
    body = stage.order()
    *outer, last = path.split(".")
    holder = body
    for name in outer:
        holder = holder[name]
    if value is ABSENT:
        del holder[last]
    else:
        holder[last] = value
    return body


WRONG = (
    [("name", value) for value in NAMES + [ABSENT, None, 5, ["web"], {}, True]]
    + [("images", value) for value in IMAGES + [ABSENT, None, ["a:1"] * 21]]
    + [("image_cache_size", value) for value in SIZES]
    + [("retention_days", value) for value in DAYS]
    + [("building_config", value) for value in [ABSENT, None, "c", [], 5, {}]]
    + [("building_config.cluster", value) for value in [ABSENT, None, "", 5, [], "no-such-cluster"]]
    + [("building_config.image_pull_secrets", value) for value in ["a:b", 5, {}, [5], [None], [["a:b"]], ["no secret"], ["a:b", "A:b"]]]
)


def label(value):
    return "absent" if value is ABSENT else repr(value)[:24].encode("ascii", "backslashreplace").decode()


@pytest.mark.parametrize(("field", "value"), WRONG, ids=[f"{field}-{label(value)}" for field, value in WRONG])
def test_wrong_fields(stage, a, field, value):
    message = problem(400, stage.ask(a, "POST", PATH, changed(stage, field, value)))
    assert field.split(".")[-1] in message, message
    assert len(message) < 4096 and message.isprintable(), message
    assert stage.sdk(a).list() == []


@pytest.mark.parametrize(("field", "value"), WRONG, ids=[f"{field}-{label(value)}" for field, value in WRONG])
def test_wrong_fields_by_the_sdk(stage, sdk, field, value):
    """The same through the vendor's client, which checks nothing and leaves out fields that are None."""
    order = changed(stage, field, value)
    if isinstance(order.get("building_config"), dict):
        order["building_config"] = ImageCacheBuildingConfig(**order["building_config"])
    body = CreateImageCacheRequestBody(**order)
    error = refused(400, lambda: sdk.client.create_image_cache(CreateImageCacheRequest(body=body)))
    assert field.split(".")[-1] in error.error_msg, error


@pytest.mark.parametrize(("field", "value"), [
    ("name", LONG), ("name", "a"), ("name", "a-1--b"), ("image_cache_size", 20), ("image_cache_size", 400), ("image_cache_size", None),
    ("retention_days", 0), ("retention_days", 10000), ("retention_days", None), ("surprise", {"deep": [1, 2.5, None]}),
    ("building_config.image_pull_secrets", []), ("building_config.image_pull_secrets", None), ("building_config.surprise", 1),
])
def test_values_at_the_limits(stage, a, field, value):
    answer = stage.ask(a, "POST", PATH, changed(stage, field, value))
    assert answer.status_code == 201, answer.text


def test_twenty_images(stage, a):
    answer = stage.ask(a, "POST", PATH, stage.order(images=[stage.image] * 20))
    assert answer.status_code == 201 and len(answer.json()["image_cache"]["images"]) == 20, answer.text


BODIES = [b"", b"{", b"[]", b"null", b"5", b'"x"', b'{"name":}', b"{} {}", b'{"name":"\xff"}', b"\xef\xbb\xbf{}", b"[" * 100_000,
          b"{'name':'web'}", b"name=web", b'{"name":"\\ud800"}', b"NaN"]


@pytest.mark.parametrize("data", BODIES, ids=lambda data: repr(data[:16]))
def test_invalid_bodies(stage, a, data):
    problem(400, stage.ask(a, "POST", PATH, data=data))


def padded(stage, size):
    body = json.dumps(stage.order()).encode()
    return body[:-1] + b" " * (size - len(body)) + body[-1:]


def test_the_longest_body(stage, a):
    assert stage.ask(a, "POST", PATH, data=padded(stage, 1 << 20)).status_code == 201


@pytest.mark.parametrize("extra", [1, 1 << 20, 8 << 20])
def test_a_longer_body(stage, a, extra):
    problem(413, stage.ask(a, "POST", PATH, data=padded(stage, (1 << 20) + extra)))


def test_a_longer_body_in_chunks(stage, a):
    problem(413, stage.ask(a, "POST", PATH, data=iter([b" " * 65536] * 32)))


@pytest.mark.parametrize("type", ["text/plain", "application/jsonx", "application/xml", "application/x-www-form-urlencoded", "json", "", None])
def test_another_media_type(stage, a, type):
    problem(415, stage.ask(a, "POST", PATH, stage.order(), headers={"Content-Type": type}))


@pytest.mark.parametrize("type", ["application/json", "application/json;charset=UTF-8", "Application/JSON ; charset=utf-8"])
def test_json_with_parameters(stage, a, type):
    assert stage.ask(a, "POST", PATH, stage.order(), headers={"Content-Type": type}).status_code == 201


def test_the_content_type_of_a_request_without_a_body(stage, a):
    for type in ["text/plain", "\u00e9".encode().decode("latin-1"), "application/json;charset=UTF-8"]:
        assert stage.ask(a, "GET", PATH, headers={"Content-Type": type}).status_code == 200
        problem(404, stage.ask(a, "DELETE", PATH + "/none", headers={"Content-Type": type}))
