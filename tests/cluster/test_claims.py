"""Who makes a thing, of all processes of a cluster."""

import os
import signal
import time
from typing import Any

import pytest

from cddpm.cluster import claimed

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(180)]


class Maker:
    def __init__(self) -> None:
        self.claim: Any = None

    def take(self, key: str) -> bool:
        claim = claimed(key)
        if mine := claim.__enter__():
            self.claim = claim  # kept: leaving it would give it back
        else:
            claim.__exit__(None, None, None)
        return mine

    def give_back(self) -> None:
        self.claim.__exit__(None, None, None)

    def pid(self) -> int:
        return os.getpid()


def await_claim(maker: Any, key: str, seconds: float = 30) -> float:
    """Seconds until ``maker`` has the claim."""
    import ray

    start = time.monotonic()
    while not ray.get(maker.take.remote(key)):
        assert time.monotonic() - start < seconds
        time.sleep(0.1)
    return time.monotonic() - start


def test_a_claim_is_one_process_s_until_it_ends_or_dies(shared_ray: str) -> None:
    import ray

    remote: Any = ray.remote(num_cpus=0)(Maker)
    one, two = remote.remote(), remote.remote()
    assert ray.get(one.take.remote("a"))
    assert not ray.get(two.take.remote("a"))
    assert ray.get(two.take.remote("b"))  # another thing is free
    ray.get(one.give_back.remote())
    await_claim(two, "a", 5)

    three = remote.remote()
    assert not ray.get(three.take.remote("a"))
    os.kill(ray.get(two.pid.remote()), signal.SIGKILL)
    await_claim(three, "a")


def test_a_process_without_a_cluster_has_everything_to_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    with claimed("a") as first, claimed("a") as second:
        assert (first, second) == (True, True)
