"""What a test stands on: the daemon that was started for it, and clients of the vendor's SDK and without it."""

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
    """The vendor's client of one tenant, with the four calls in short."""

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
            # Signatures have the time to the second: the same order in the same second is a replay.
            time.sleep(1)
            return self.client.create_image_cache(request)

    def list(self, name=None):
        return self.client.list_image_caches(ListImageCachesRequest(name=name)).image_caches

    def show(self, id):
        return self.client.show_image_cache(ShowImageCacheRequest(image_cache_id=id)).image_cache

    def delete(self, id):
        return self.client.delete_image_cache(DeleteImageCacheRequest(image_cache_id=id))

    def settle(self, id, seconds=60):
        """The cache when it is no longer Creating."""
        return until(seconds, lambda: (cache := self.show(id)).status != "Creating" and cache)

    def gone(self, id, seconds=60):
        """Waits until the record is gone, and asks for it to be deleted first."""
        refused(404, lambda: until(seconds, lambda: self.show(id) and None))


def until(seconds, condition):
    """What the condition answers once that is true."""
    deadline = time.monotonic() + seconds
    while True:
        if answer := condition():
            return answer
        assert time.monotonic() < deadline, f"not within {seconds} s"
        time.sleep(0.05)


def refused(status, call, code=None):
    """The vendor's exception of a call that must be refused with this status, and with both parts of an error."""
    try:
        answer = call()
    except ServiceResponseException as error:
        assert error.status_code == status, error
        assert error.error_code.startswith(f"CCE.01{status}"), error
        assert error.error_msg and not error.error_msg.startswith("{"), error
        assert error.request_id, error
        assert code in (None, error.error_code), error
        return error
    raise AssertionError(f"{status} wanted, and it went through: {answer}")


def problem(status, answer):
    """The message of an answer without the SDK, whose body must hold the vendor's envelope and its older form."""
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
    """A request as the vendor's signer signs it, open to changes before it is sent."""

    method: str
    url: str
    headers: dict
    body: bytes

    def send(self):
        # requests would add a Content-Type of its own to some bodies; a prepared request is sent as it is.
        request = requests.Request(self.method, self.url, headers=self.headers, data=self.body).prepare()
        with requests.Session() as session:
            session.trust_env = False
            return session.send(request, timeout=60)


class Unlisted(Signer):
    """A signer that leaves one header out of what it signs."""

    def __init__(self, credentials, name):
        super().__init__(credentials)
        self.unlisted = name

    # As the base class calls it.
    def _process_signed_headers(self, request):
        return sorted(name.lower() for name in request.header_params if name.lower() != self.unlisted)


class Stage:
    def __init__(self, path):
        with open(path, encoding="utf-8") as file:
            self.__dict__.update(vars(json.load(file, object_hook=lambda object: SimpleNamespace(**object))))

    def sdk(self, tenant, headers=None, secret_key=None, access_key=None):
        return Sdk(self.endpoint, access_key or tenant.access_key, secret_key or tenant.secret_key, headers)

    def order(self, name="web", **fields):
        """The body of a create, to be changed."""
        return {"name": name, "images": [self.image], "building_config": {"cluster": self.cluster}, **fields}

    def ask(self, tenant, method, path, body=None, headers=None, data=None):
        """A request with the token of a tenant, or with none."""
        token = {"X-Auth-Token": tenant.token} if tenant else {}
        content = {"Content-Type": JSON} if body is not None or data is not None else {}
        data = json.dumps(body).encode() if data is None and body is not None else data
        with requests.Session() as session:
            session.trust_env = False
            headers = {name: value for name, value in {**token, **content, **(headers or {})}.items() if value is not None}
            return session.request(method, self.endpoint + path, data=data, headers=headers, timeout=60, allow_redirects=False)

    def verbatim(self, tenant, method, target):
        """The status of a request whose target goes over the wire as it is: requests would mend its percent-encoding."""
        connection = http.client.HTTPConnection(self.endpoint.removeprefix("http://"), timeout=60)
        with contextlib.closing(connection):
            connection.request(method, target, headers={"X-Auth-Token": tenant.token})
            return connection.getresponse().status

    def statuses(self, sent):
        """The statuses of all answers to these bytes, until the daemon closes the connection."""
        host, port = self.endpoint.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=60) as connection:
            connection.sendall(sent)
            answers = b"".join(iter(lambda: connection.recv(65536), b""))
        return [int(status) for status in re.findall(rb"HTTP/1\.1 (\d{3}) ", answers)]

    def sign(self, tenant, method, path, body=None, headers=None, query=(), unlisted=None, at=None, secret_key=None):
        """A request with the signature of a tenant."""
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
