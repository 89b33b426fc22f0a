"""Requests signed by the vendor's own signer. As a script it prints the content of vectors.json."""

import json

from huaweicloudsdkcore.auth.credentials import BasicCredentials
from huaweicloudsdkcore.sdk_request import SdkRequest
from huaweicloudsdkcore.signer.algorithm import SigningAlgorithm

ACCESS_KEY = "AKVECTOR000000000001"
SECRET_KEY = "vector-secret-key-0123456789abcdefghijkl"
PROJECT = "0123456789abcdef0123456789abcdef"
BODY = {
    "name": "web-1",
    "images": ["registry.example.com/team/caf\u00e9:1"],
    "building_config": {"cluster": "c-1", "image_pull_secrets": ["team-a:registry"]},
}
# Method, path, query, further headers, body. The cases include a body beyond ASCII, a query whose order and
# bytes matter, a path with an encoded slash, a header surrounded by white space, and an unsigned header.
REQUESTS = [
    ("POST", "/v5/imagecaches", [], {"Content-Type": "application/json;charset=UTF-8"}, json.dumps(BODY, ensure_ascii=False)),
    ("GET", "/v5/imagecaches", [("name", "a b/+~\u00e9"), ("a", ""), ("a", "%2F")], {"X-Odd": "  two  words "}, None),
    ("DELETE", "/v5/imagecaches/a%2Fb%20c", [], {"Content-Type": "application/json", "Not_Signed": "x"}, None),
]


def sign(method, path, query, headers, body):
    headers = {"X-Sdk-Date": "20240101T000000Z", "User-Agent": "sdk", **headers}
    request = SdkRequest(
        method=method, schema="http", host="127.0.0.1:8080", resource_path=path, query_params=query,
        header_params=headers, body=body, signing_algorithm=SigningAlgorithm.HMAC_SHA256,
    )
    signed = BasicCredentials(ACCESS_KEY, SECRET_KEY, PROJECT).sign_request(request)
    # Values are sent as the latin-1 text of their UTF-8 bytes. Here they are decoded.
    wire = {name: value.encode("latin-1").decode() for name, value in signed.header_params.items()}
    return {
        "method": method, "uri": signed.uri, "headers": wire, "body": body or "",
        "access_key": ACCESS_KEY, "secret_key": SECRET_KEY,
        "signature": wire["Authorization"].rpartition("Signature=")[2],
    }


def vectors():
    return [sign(*request) for request in REQUESTS]


if __name__ == "__main__":
    print(json.dumps(vectors(), indent=2, ensure_ascii=False))
