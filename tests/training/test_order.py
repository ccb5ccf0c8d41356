"""The data order: passes of permutations, a function of seed and position alone."""

import numpy as np
import pytest

from cddpm.training.order import batch_rows, evenly_spaced

ROWS = np.array([3, 5, 8, 13, 21, 34, 55])


def stream(seed: int, length: int, size: int) -> np.ndarray:
    return np.concatenate([batch_rows(ROWS, seed, start, size) for start in range(0, length, size)])


@pytest.mark.parametrize("seed", [0, 1, 2**63 - 1])
def test_each_pass_sees_every_slice_once(seed: int) -> None:
    seen = stream(seed, 5 * len(ROWS), len(ROWS))
    for lap in seen.reshape(5, len(ROWS)):
        assert sorted(lap) == list(ROWS)


def test_the_stream_does_not_depend_on_the_batch_size() -> None:
    whole = stream(4, 60, 60)
    for size in (1, 2, 3, 4, 5, 6, 10, 12, 15, 20, 30):  # 30 is longer than four passes
        assert np.array_equal(stream(4, 60, size), whole), size


def test_the_stream_can_be_entered_anywhere() -> None:
    whole = stream(4, 60, 60)
    for start in range(55):
        assert np.array_equal(batch_rows(ROWS, 4, start, 5), whole[start : start + 5])


def test_passes_and_seeds_differ() -> None:
    rows = np.arange(100)
    laps = [tuple(batch_rows(rows, seed, 100 * lap, 100)) for seed in (0, 1) for lap in range(3)]
    assert len(set(laps)) == 6
    assert all(lap != tuple(rows) for lap in laps)


@pytest.mark.parametrize("world", [1, 2, 4])
def test_the_ranks_parts_are_the_batch(world: int) -> None:
    batch = batch_rows(ROWS, 9, 16, 8)
    parts = [batch[rank::world] for rank in range(world)]
    assert {len(p) for p in parts} == {8 // world}
    assert sorted(np.concatenate(parts)) == sorted(batch)


def test_a_single_slice_is_repeated() -> None:
    assert list(batch_rows(np.array([7]), 0, 3, 4)) == [7, 7, 7, 7]


def test_evenly_spaced_rows() -> None:
    assert list(evenly_spaced(np.arange(10, 21), 3)) == [10, 15, 20]
    assert list(evenly_spaced(np.arange(3), 5)) == [0, 1, 2]
    assert list(evenly_spaced(np.arange(5), 1)) == [0]
    for count in range(1, 60):
        picked = evenly_spaced(np.arange(60), count)
        assert len(np.unique(picked)) == count
