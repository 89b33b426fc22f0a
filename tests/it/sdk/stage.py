"""The environment of a test: its daemon, and clients with and without the vendor's SDK."""

import contextlib
import http.client
import json
import os
import re
import socket
import time
from dataclasses import dataclass
from datetime import datetime, timezone
from types import SimpleNamespace

import requests
from huaweicloudsdkcce.v5 import (
    CceClient,
    CreateImageCacheRequest,
    CreateImageCacheRequestBody,
    DeleteImageCacheRequest,
    ImageCacheBuildingConfig,
    ListImageCachesRequest,
    ShowImageCacheRequest,
)
from huaweicloudsdkcore.auth.credentials import BasicCredentials
from huaweicloudsdkcore.exceptions.exceptions import ServiceResponseException
from huaweicloudsdkcore.sdk_request import SdkRequest
from huaweicloudsdkcore.signer.algorithm import SigningAlgorithm
from huaweicloudsdkcore.signer.signer import Signer

PROJECT = "0123456789abcdef0123456789abcdef"
JSON = "application/json"
PATH = "/v5/imagecaches"


class Sdk:
    """The vendor's client of one tenant, with short methods for the four calls."""

    def __init__(self, endpoint, access_key, secret_key, headers=None):
        credentials = BasicCredentials(access_key, secret_key, PROJECT)
        self.client = CceClient.new_builder().with_credentials(credentials).with_endpoints([endpoint]).build()
        self.client.preset_headers = headers or {}

    def create(self, name, images, cluster, secrets=None, size=None, days=None):
        config = ImageCacheBuildingConfig(cluster=cluster, image_pull_secrets=secrets)
        body = CreateImageCacheRequestBody(
            name=name, images=images, image_cache_size=size, retention_days=days, building_config=config
        )
        request = CreateImageCacheRequest(body=body)
        try:
            return self.client.create_image_cache(request)
        except ServiceResponseException as error:
            if "used before" not in (error.error_msg or ""):
                raise
            # The time in signatures has a resolution of one second: the same order in the same second would
            # be a replay.
            time.sleep(1)
            return self.client.create_image_cache(request)

    def list(self, name=None):
        return self.client.list_image_caches(ListImageCachesRequest(name=name)).image_caches

    def show(self, id):
        return self.client.show_image_cache(ShowImageCacheRequest(image_cache_id=id)).image_cache

    def delete(self, id):
        return self.client.delete_image_cache(DeleteImageCacheRequest(image_cache_id=id))

    def settle(self, id, seconds=60):
        """Waits until the cache is no longer Creating, and returns it."""
        return until(seconds, lambda: (cache := self.show(id)).status != "Creating" and cache)

    def gone(self, id, seconds=60):
        """Requests the deletion of the record, and waits until it is gone."""
        refused(404, lambda: until(seconds, lambda: self.show(id) and None))


def until(seconds, condition):
    """Waits until the condition is true, and returns its value."""
    deadline = time.monotonic() + seconds
    while True:
        if answer := condition():
            return answer
        assert time.monotonic() < deadline, f"timeout after {seconds} s"
        time.sleep(0.05)


def refused(status, call, code=None):
    """Checks that a call is refused with this status and both parts of an error. Returns the vendor's exception."""
    try:
        answer = call()
    except ServiceResponseException as error:
        assert error.status_code == status, error
        assert error.error_code.startswith(f"CCE.01{status}"), error
        assert error.error_msg and not error.error_msg.startswith("{"), error
        assert error.request_id, error
        assert code in (None, error.error_code), error
        return error
    raise AssertionError(f"expected status {status}, but the call succeeded: {answer}")


def problem(status, answer):
    """Checks that an error response has the vendor's envelope and its older form. Returns the message."""
    assert answer.status_code == status, (answer.status_code, answer.text)
    body = answer.json()
    assert set(body) == {"errorCode", "errorMessage", "error_code", "error_msg"}, body
    assert body["errorCode"] == body["error_code"] and body["errorMessage"] == body["error_msg"], body
    assert body["errorCode"].startswith(f"CCE.01{status}"), body
    assert body["errorMessage"], body
    assert answer.headers["X-Request-Id"], answer.headers
    return body["errorMessage"]


@dataclass
class Signed:
    """A request signed by the vendor's signer. Tests can change it before they send it."""

    method: str
    url: str
    headers: dict
    body: bytes

    def send(self):
        # requests would add a Content-Type to some bodies. A prepared request is sent unchanged.
        request = requests.Request(self.method, self.url, headers=self.headers, data=self.body).prepare()
        with requests.Session() as session:
            session.trust_env = False
            return session.send(request, timeout=60)


class Unlisted(Signer):
    """A signer that does not sign one of the headers."""

    def __init__(self, credentials, name):
        super().__init__(credentials)
        self.unlisted = name

    # With the signature that the base class expects.
    def _process_signed_headers(self, request):
        return sorted(name.lower() for name in request.header_params if name.lower() != self.unlisted)


class Stage:
    def __init__(self, path):
        with open(path, encoding="utf-8") as file:
            self.__dict__.update(vars(json.load(file, object_hook=lambda object: SimpleNamespace(**object))))

    def sdk(self, tenant, headers=None, secret_key=None, access_key=None):
        return Sdk(self.endpoint, access_key or tenant.access_key, secret_key or tenant.secret_key, headers)

    def order(self, name="web", **fields):
        """Returns the body of a create request, which tests can change."""
        return {"name": name, "images": [self.image], "building_config": {"cluster": self.cluster}, **fields}

    def ask(self, tenant, method, path, body=None, headers=None, data=None):
        """Sends a request with the token of a tenant, or without a token."""
        token = {"X-Auth-Token": tenant.token} if tenant else {}
        content = {"Content-Type": JSON} if body is not None or data is not None else {}
        data = json.dumps(body).encode() if data is None and body is not None else data
        with requests.Session() as session:
            session.trust_env = False
            headers = {name: value for name, value in {**token, **content, **(headers or {})}.items() if value is not None}
            return session.request(method, self.endpoint + path, data=data, headers=headers, timeout=60, allow_redirects=False)

    def verbatim(self, tenant, method, target):
        """Sends a request with an unchanged target and returns its status. requests would fix the percent-encoding."""
        connection = http.client.HTTPConnection(self.endpoint.removeprefix("http://"), timeout=60)
        with contextlib.closing(connection):
            connection.request(method, target, headers={"X-Auth-Token": tenant.token})
            return connection.getresponse().status

    def statuses(self, sent):
        """Sends these bytes and returns the statuses of all responses, until the daemon closes the connection."""
        host, port = self.endpoint.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=60) as connection:
            connection.sendall(sent)
            answers = b"".join(iter(lambda: connection.recv(65536), b""))
        return [int(status) for status in re.findall(rb"HTTP/1\.1 (\d{3}) ", answers)]

    def sign(self, tenant, method, path, body=None, headers=None, query=(), unlisted=None, at=None, secret_key=None):
        """Returns a request with the signature of a tenant."""
        schema, host = self.endpoint.split("://")
        credentials = BasicCredentials(tenant.access_key, secret_key or tenant.secret_key, PROJECT)
        date = {"X-Sdk-Date": (at or datetime.now(timezone.utc)).strftime("%Y%m%dT%H%M%SZ")}
        body = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        request = SdkRequest(
            method=method, schema=schema, host=host, resource_path=path, query_params=list(query), body=body,
            header_params={**date, **({"Content-Type": JSON} if body else {}), **(headers or {})},
            signing_algorithm=SigningAlgorithm.HMAC_SHA256,
        )
        signer = Unlisted(credentials, unlisted) if unlisted else Signer(credentials)
        signer.sign(request)
        return Signed(method, request.url, dict(request.header_params), body)


def stage():
    return Stage(os.environ["LARDER_STAGE"])
