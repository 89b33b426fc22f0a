"""The maximum number of image caches of a tenant. Every record counts until it is gone."""

import concurrent.futures

from stage import refused


def test_quota(stage, a, b, sdk):
    absent = f"{stage.registry}/team/absent:1"
    ids = [sdk.create(f"web-{n}", [stage.image if n else absent], stage.cluster).image_cache.id for n in range(stage.quota)]
    error = refused(403, lambda: sdk.create("more", [stage.image], stage.cluster))
    assert str(stage.quota) in error.error_msg, error
    # A failed cache counts as well, and another tenant has its own quota.
    assert sdk.settle(ids[0]).status == "Failed"
    refused(403, lambda: sdk.create("more", [stage.image], stage.cluster))
    stage.sdk(b).create("more", [stage.image], stage.cluster)
    sdk.delete(ids[0])
    sdk.gone(ids[0])
    sdk.create("more", [stage.image], stage.cluster)
    refused(403, lambda: sdk.create("yet-more", [stage.image], stage.cluster))


def test_quota_with_concurrent_requests(stage, a):
    def create(n):
        try:
            stage.sdk(a).create(f"web-{n}", [stage.image], stage.cluster)
            return 201
        except Exception as error:
            return error.status_code

    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        statuses = list(pool.map(create, range(stage.quota + 12)))
    assert sorted(statuses) == [201] * stage.quota + [403] * 12, statuses


def test_one_name_with_concurrent_requests(stage, a):
    def create(_):
        try:
            stage.sdk(a).create("web", [stage.image], stage.cluster)
            return 201
        except Exception as error:
            return error.status_code

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        statuses = list(pool.map(create, range(8)))
    assert sorted(statuses) == [201] + [409] * 7, statuses
