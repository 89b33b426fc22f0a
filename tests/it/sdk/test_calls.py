"""The vendor's four calls, through the vendor's SDK."""

import re
import uuid
from datetime import datetime, timezone

from stage import refused, until


def test_from_order_to_deletion(stage, sdk):
    created = sdk.create("web-1", [stage.image], stage.cluster, size=21, days=7)
    assert created.status_code == 201
    cache = created.image_cache
    assert (cache.name, cache.images, cache.image_cache_size, cache.retention_days) == ("web-1", [stage.image], 21, 7)
    assert (cache.status, cache.building_config.cluster) == ("Creating", stage.cluster)
    assert str(uuid.UUID(cache.id)) == cache.id
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{6} \+0000 UTC", cache.created_at), cache.created_at
    made = datetime.strptime(cache.created_at, "%Y-%m-%d %H:%M:%S.%f +0000 UTC").replace(tzinfo=timezone.utc)
    assert abs((datetime.now(timezone.utc) - made).total_seconds()) < 60

    ready = sdk.settle(cache.id)
    assert (ready.status, ready.id, ready.created_at) == ("Available", cache.id, cache.created_at), ready
    assert not getattr(ready, "message", None)
    assert [listed.to_dict() for listed in sdk.list()] == [ready.to_dict()]

    deleted = sdk.delete(cache.id)
    assert deleted.status_code == 202
    sdk.gone(cache.id)
    refused(404, lambda: sdk.delete(cache.id))
    assert sdk.list() == []


def test_defaults(stage, sdk):
    raw = sdk.create("plain", [stage.image], stage.cluster)
    cache = raw.image_cache
    assert (cache.image_cache_size, cache.retention_days) == (20, 0)
    assert b'"image_cache"' in raw.raw_content and b'"message"' not in raw.raw_content


def test_the_name_filter_is_exact(stage, sdk):
    for name in ["web", "web-1", "other-web"]:
        sdk.create(name, [stage.image], stage.cluster)
    assert [cache.name for cache in sdk.list("web")] == ["web"]
    assert [cache.name for cache in sdk.list("web-1")] == ["web-1"]
    for name in ["we", "WEB", "web%", "w*", "web-", " web", "web/\u00e9 +&=", ".*"]:
        assert sdk.list(name) == [], name
    assert [cache.name for cache in sdk.list()] == ["web", "web-1", "other-web"]


def test_a_name_is_taken_until_its_record_is_gone(stage, sdk):
    first = sdk.create("web", [stage.image], stage.cluster).image_cache
    refused(409, lambda: sdk.create("web", [stage.image], stage.cluster))
    sdk.delete(first.id)
    sdk.gone(first.id)
    second = sdk.create("web", [stage.image], stage.cluster).image_cache
    assert second.id != first.id


def test_unknown_ids(stage, sdk):
    for id in [str(uuid.uuid4()), "no-uuid", "a/b", "a%2Fb", "\u00e9 ?#", "0" * 5000]:
        refused(404, lambda: sdk.show(id))
        refused(404, lambda: sdk.delete(id))


def test_a_failed_cache_names_the_image_and_the_reason(stage, sdk):
    absent = f"{stage.registry}/team/absent:1"
    id = sdk.create("web", [stage.image, absent], stage.cluster).image_cache.id
    failed = stage.ask(stage.tenants[0], "GET", f"/v5/imagecaches/{id}")
    until(60, lambda: sdk.show(id).status != "Creating")
    failed = stage.ask(stage.tenants[0], "GET", f"/v5/imagecaches/{id}").json()["image_cache"]
    assert failed["status"] == "Failed" and "team/absent:1" in failed["message"], failed
    assert stage.image not in failed["message"], failed


def test_unknown_and_forbidden_pull_secrets_give_the_same_message(stage, sdk):
    """Unknown and forbidden secrets give the same response and, except for the name, the same message. Malformed ones are refused."""
    private = stage.private
    messages = []
    for name, secret in [("unknown", "team-a:none"), ("forbidden", "team-b:registry")]:
        id = sdk.create(name, [private], stage.cluster, secrets=[secret]).image_cache.id
        assert sdk.settle(id).status == "Failed"
        message = stage.ask(stage.tenants[0], "GET", f"/v5/imagecaches/{id}").json()["image_cache"]["message"]
        assert secret in message, message
        messages.append(message.replace(secret, "SECRET"))
    assert len(set(messages)) == 1, messages
    public = sdk.create("public", [stage.image], stage.cluster, secrets=["team-a:none"]).image_cache
    assert public.building_config.image_pull_secrets == ["team-a:none"]
    assert sdk.settle(public.id).status == "Available"
    allowed = sdk.create("allowed", [private], stage.cluster, secrets=["team-a:registry"]).image_cache
    assert sdk.settle(allowed.id).status == "Available", stage.ask(stage.tenants[0], "GET", f"/v5/imagecaches/{allowed.id}").text
