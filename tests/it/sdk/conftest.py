import pytest

import stage as stages


@pytest.fixture(scope="session")
def stage():
    return stages.stage()


@pytest.fixture(scope="session")
def a(stage):
    """The first tenant."""
    return stage.tenants[0]


@pytest.fixture(scope="session")
def b(stage):
    """The second."""
    return stage.tenants[1]


@pytest.fixture
def sdk(stage, a):
    return stage.sdk(a)


@pytest.fixture(autouse=True)
def tidy(stage):
    """A test leaves no cache behind: names and quota are the next one's."""
    yield
    for tenant in stage.tenants:
        client = stage.sdk(tenant)
        # One that is on its way out already may be gone before it could be asked to go.
        for cache in client.list():
            if cache.status != "Deleting":
                client.delete(cache.id)
        stages.until(60, lambda: client.list() == [])
