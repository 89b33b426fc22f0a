"""Signed requests: valid ones are accepted, and every signed part is checked."""

import json
import pathlib
import time
from datetime import datetime, timedelta, timezone

import pytest
import vectors
from huaweicloudsdkcore.auth.credentials import BasicCredentials
from huaweicloudsdkcore.signer.signer import SM3Signer

from stage import PATH, problem, refused


def test_the_recorded_vectors_are_the_signers():
    recorded = json.loads(pathlib.Path(__file__).with_name("vectors.json").read_text(encoding="utf-8"))
    assert recorded == vectors.vectors()


def test_signatures_of_the_sdk_are_accepted(stage, a):
    assert stage.sign(a, "GET", PATH).send().status_code == 200
    assert stage.sign(a, "GET", PATH, headers={"X-Odd": "  two  words "}).send().status_code == 200
    odd = [("name", "a b/+~\u00e9"), ("z", ""), ("z", "%2F"), ("A", "1")]
    assert stage.sign(a, "GET", PATH, query=odd).send().json() == {"image_caches": []}
    problem(404, stage.sign(a, "GET", PATH + "/a%2Fb%20c").send())
    problem(404, stage.sign(a, "GET", PATH + "/%C3%A9~").send())
    assert stage.sign(a, "POST", PATH, stage.order()).send().status_code == 201


def test_a_wrong_key_by_the_sdk(stage, a, b):
    wrong = refused(401, lambda: stage.sdk(a, secret_key="not-it").list())
    unknown = refused(401, lambda: stage.sdk(a, access_key="AK-nobody").list())
    swapped = refused(401, lambda: stage.sdk(a, secret_key=b.secret_key).list())
    assert wrong.error_msg == unknown.error_msg == swapped.error_msg
    assert wrong.error_code == unknown.error_code == swapped.error_code
    refused(401, lambda: stage.sdk(a, secret_key="not-it").create("web", [stage.image], stage.cluster))
    refused(401, lambda: stage.sdk(a, secret_key="not-it").delete("00000000-0000-4000-8000-000000000000"))


def test_a_tampered_body(stage, a):
    signed = stage.sign(a, "POST", PATH, stage.order())
    for body in [signed.body.replace(b"web", b"wex"), signed.body + b" ", b"", b"{}"]:
        changed = stage.sign(a, "POST", PATH, stage.order())
        changed.body = body
        problem(401, changed.send())
    grown = stage.sign(a, "GET", PATH)
    grown.body = b"{}"
    problem(401, grown.send())
    assert stage.sdk(a).list() == []


def test_every_other_part_counts(stage, a):
    def sign():
        return stage.sign(a, "GET", PATH, query=[("name", "web")], headers={"X-Odd": "one"})

    assert sign().send().status_code == 200
    for name, value in [("X-Odd", "two"), ("X-Sdk-Date", datetime.now(timezone.utc).strftime("%Y%m%dT%H%M0AZ")),
                        ("Host", "elsewhere.example.com"), ("X-Odd", None)]:
        changed = sign()
        if value is None:
            del changed.headers[name]
        else:
            changed.headers[name] = value
        problem(401, changed.send())
    for old, new in [("name=web", "name=wex"), ("name=web", "name=web&x=1"), ("?name=web", ""), (PATH, "/larder/v1/match")]:
        changed = sign()
        changed.url = changed.url.replace(old, new)
        problem(401, changed.send())
    deletion = stage.sign(a, "GET", PATH + "/none")
    deletion.method = "DELETE"
    problem(401, deletion.send())
    for old, new in [("Signature=", "Signature=0"), ("SDK-HMAC-SHA256", "SDK-HMAC-SM3"), ("SDK-HMAC-SHA256", "V11-HMAC-SHA256"),
                     ("Access=", "Access=x"), ("host;", ""), (", Signature", ", Signed"), ("SignedHeaders=", "SignedHeaders=;")]:
        changed = sign()
        changed.headers["Authorization"] = changed.headers["Authorization"].replace(old, new)
        problem(401, changed.send())
    for authorization in ["", "Basic eDp5", "Bearer x", "SDK-HMAC-SHA256", "SDK-HMAC-SHA256 ", "x" * 7000]:
        changed = sign()
        changed.headers["Authorization"] = authorization
        problem(401, changed.send())


def test_a_case_of_the_signature(stage, a):
    upper = stage.sign(a, "GET", PATH)
    head, _, signature = upper.headers["Authorization"].rpartition("=")
    upper.headers["Authorization"] = f"{head}={signature[:-2]}"
    problem(401, upper.send())


@pytest.mark.parametrize("name", ["host", "x-sdk-date"])
def test_host_and_date_must_be_signed(stage, a, name):
    assert stage.sign(a, "GET", PATH, headers={"X-Odd": "1"}, unlisted="x-odd").send().status_code == 200
    assert name in problem(401, stage.sign(a, "GET", PATH, unlisted=name).send()).lower()


@pytest.mark.parametrize("minutes", [-16, 16, -60 * 24 * 365, 60 * 24 * 365])
def test_a_stale_date(stage, a, minutes):
    at = datetime.now(timezone.utc) + timedelta(minutes=minutes)
    problem(401, stage.sign(a, "GET", PATH, at=at).send())
    headers = {"X-Sdk-Date": at.strftime("%Y%m%dT%H%M%SZ")}
    refused(401, lambda: stage.sdk(a, headers=headers).list())
    refused(401, lambda: stage.sdk(a, headers=headers).create("web", [stage.image], stage.cluster))


@pytest.mark.parametrize("minutes", [-14, 14])
def test_a_date_within_the_window(stage, a, minutes):
    at = datetime.now(timezone.utc) + timedelta(minutes=minutes)
    assert stage.sign(a, "GET", PATH, at=at).send().status_code == 200


@pytest.mark.parametrize("date", ["", "now", "20240101", "2024-01-01T00:00:00Z", "20241301T000000Z", "20240101T000000+0000", "9" * 300])
def test_invalid_dates(stage, a, date):
    changed = stage.sign(a, "GET", PATH)
    changed.headers["X-Sdk-Date"] = date
    problem(401, changed.send())


def test_an_unsigned_payload(stage, a):
    refused(401, lambda: stage.sdk(a, headers={"X-Sdk-Content-Sha256": "UNSIGNED-PAYLOAD"}).create("web", [stage.image], stage.cluster))
    refused(401, lambda: stage.sdk(a, headers={"X-Sdk-Content-Sha256": "UNSIGNED-PAYLOAD"}).list())
    # The SDK itself does the same for other content types.
    changed = stage.sign(a, "POST", PATH, stage.order(), headers={"Content-Type": "text/plain"})
    assert changed.headers["X-Sdk-Content-Sha256"] == "UNSIGNED-PAYLOAD"
    problem(401, changed.send())
    assert stage.sdk(a).list() == []


def test_a_given_hash_must_match_the_body(stage, a):
    body = json.dumps(stage.order()).encode()
    import hashlib

    right = {"X-Sdk-Content-Sha256": hashlib.sha256(body).hexdigest()}
    other = {"X-Sdk-Content-Sha256": hashlib.sha256(b"other").hexdigest()}
    problem(401, stage.sign(a, "POST", PATH, body, headers=other).send())
    assert stage.sign(a, "POST", PATH, body, headers=right).send().status_code == 201


def test_another_algorithm(stage, a):
    signed = stage.sign(a, "GET", PATH)
    from huaweicloudsdkcore.sdk_request import SdkRequest

    schema, host = stage.endpoint.split("://")
    request = SdkRequest(method="GET", schema=schema, host=host, resource_path=PATH, query_params=[], header_params={}, body=None)
    SM3Signer(BasicCredentials(a.access_key, a.secret_key, "p")).sign(request)
    signed.headers = dict(request.header_params)
    problem(401, signed.send())


def test_a_repeated_request_is_harmless(stage, a):
    signed = stage.sign(a, "POST", PATH, stage.order())
    created = signed.send()
    assert created.status_code == 201
    problem(409, signed.send())
    assert len(stage.sdk(a).list()) == 1
    # After a deletion the name is free, and the signature is still recent.
    id = created.json()["image_cache"]["id"]
    stage.sdk(a).settle(id)
    assert stage.ask(a, "DELETE", f"{PATH}/{id}").status_code == 202
    deadline = time.monotonic() + 30
    while stage.sdk(a).list() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert "used before" in problem(401, signed.send())
    assert stage.sdk(a).list() == []
