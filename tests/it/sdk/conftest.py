import pytest

import stage as stages


@pytest.fixture(scope="session")
def stage():
    return stages.stage()


@pytest.fixture(scope="session")
def a(stage):
    """Returns the first tenant."""
    return stage.tenants[0]


@pytest.fixture(scope="session")
def b(stage):
    """Returns the second tenant."""
    return stage.tenants[1]


@pytest.fixture
def sdk(stage, a):
    return stage.sdk(a)


@pytest.fixture(autouse=True)
def tidy(stage):
    """Deletes all caches after a test, so that the next one can use the names and the quota."""
    yield
    for tenant in stage.tenants:
        client = stage.sdk(tenant)
        # A cache that is being deleted can be gone before this request.
        for cache in client.list():
            if cache.status != "Deleting":
                client.delete(cache.id)
        stages.until(60, lambda: client.list() == [])
