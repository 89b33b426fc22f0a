"""Helps the fuzzer past authentication and validation: one credential instead of two, and images and caches that exist."""

import os
import random

import schemathesis

IMAGE = os.environ["LARDER_IMAGE"]
CACHES = os.environ["LARDER_CACHES"].split(",")
# Separate, because the fuzzer's choices must not depend on how often this one is used.
chance = random.Random(1)


@schemathesis.hook
def before_call(context, case, kwargs):
    # A request with two credentials is refused, which would hide most other responses. Signatures have their
    # own tests.
    if case.headers:
        case.headers.pop("Authorization", None)
    if case.path_parameters and "id" in case.path_parameters and chance.random() < 0.25:
        case.path_parameters["id"] = chance.choice(CACHES)
    body = case.body
    if isinstance(body, dict) and isinstance(body.get("images"), list) and body["images"] and chance.random() < 0.75:
        case.body = {**body, "images": [IMAGE]}
    query = case.query
    if query and "image" in query and chance.random() < 0.5:
        query["image"] = [IMAGE]
