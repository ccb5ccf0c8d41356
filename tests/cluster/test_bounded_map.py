"""Work that takes much memory, as Ray tasks: results in order, and a process that dies takes no other's work with it."""

import os

import pytest

from cddpm import cluster

pytestmark = [pytest.mark.ray, pytest.mark.slow]


def _work(number: int) -> str:
    if number == 2:
        os._exit(1)
    return f"done {number}"


def test_results_come_in_order_and_the_lost_one_is_told(shared_ray: str) -> None:
    lost: list[str] = []

    def told(number: int, why: str) -> str:
        lost.append(why)
        return f"lost {number}"

    found = list(cluster.bounded_map(_work, list(range(5)), told, at_once=2, memory_bytes=1 << 40))
    assert found == ["done 0", "done 1", "lost 2", "done 3", "done 4"]
    assert len(lost) == 1
    assert lost[0]


def test_an_error_of_the_work_is_raised_as_it_was(shared_ray: str) -> None:
    with pytest.raises(ZeroDivisionError):
        list(cluster.bounded_map(lambda number: 1 // number, [1, 0], lambda number, why: 0))
