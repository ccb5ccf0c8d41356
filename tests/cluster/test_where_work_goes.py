"""Work that needs no GPU goes to nodes without one while they have CPUs to spare, and else to idle CPUs beside GPUs."""

import os
import time
from collections.abc import Iterator

import pytest

from cddpm import cluster

pytestmark = [pytest.mark.ray, pytest.mark.nightly, pytest.mark.timeout(180)]


@pytest.fixture
def nodes(own_ray: None) -> Iterator[dict[str, str]]:
    """Ids of a head with a GPU (which only its resources know of) and two CPUs, and of a node with two CPUs."""
    import ray
    from ray.cluster_utils import Cluster

    ours = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "num_gpus": 1, "include_dashboard": False})
    plain = ours.add_node(num_cpus=2)
    ours.wait_for_nodes()
    os.environ["RAY_ADDRESS"] = ours.address
    try:
        ray.init(address=ours.address)
        found = {one["NodeID"]: one for one in ray.nodes()}
        (gpu,) = [key for key, one in found.items() if one["Resources"].get("GPU")]
        yield {"gpu": gpu, "cpu": plain.node_id}
    finally:
        ray.shutdown()
        ours.shutdown()
        os.environ.pop("RAY_ADDRESS", None)


def test_cpus_beside_a_gpu_come_last(nodes: dict[str, str]) -> None:
    def node(seconds: float) -> str:  # in here, since nodes cannot import this file
        import ray

        time.sleep(seconds)
        return str(ray.get_runtime_context().get_node_id())

    few = list(cluster.parallel_map(node, [0.0]))
    assert few == [nodes["cpu"]]
    many = list(cluster.parallel_map(node, [2.0] * 4))
    assert set(many) == set(nodes.values())
