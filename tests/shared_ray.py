"""One Ray for the tests of a process: started for the first that asks, ended before one that starts its own, and at last."""

from collections.abc import Iterator

import pytest

from cddpm import cluster


@pytest.fixture(scope="session")
def sharing() -> Iterator[None]:
    yield
    if cluster.connected():
        cluster.kill()


@pytest.fixture
def shared_ray(request: pytest.FixtureRequest, sharing: None) -> str:
    """Address of a Ray that this process has joined; its workers know what the test's module defines."""
    cluster.connect("local")
    import ray

    ray.cloudpickle.register_pickle_by_value(request.module)  # workers cannot import a test
    return str(ray.get_runtime_context().gcs_address)


@pytest.fixture
def own_ray() -> None:
    """For tests whose scripts start a Ray, and may kill it: two side by side take each other's trials for dead."""
    if cluster.connected():
        cluster.kill()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that share a Ray come last, one after the other."""
    items.sort(key=lambda item: "shared_ray" in getattr(item, "fixturenames", ()))
