"""The box around a brain: decided by the brain alone."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cddpm.data.field import around, put_back, take, within

SIZES = st.tuples(*[st.integers(1, 9)] * 3)


@given(size=SIZES, before=st.tuples(*[st.integers(0, 9)] * 3), behind=st.tuples(*[st.integers(0, 9)] * 3))
def test_it_moves_with_the_brain(size, before, behind) -> None:
    brain = np.ones(size, bool)
    start, shape = around(brain, (5, 30, 8), (1, 2.5, 0))
    moved = np.pad(brain, tuple(zip(before, behind, strict=True)))
    again, same = around(moved, (5, 30, 8), (1, 2.5, 0))
    assert same == shape
    assert again == tuple(s + b for s, b in zip(start, before, strict=True))
    assert [2 * s + f for s, f in zip(start, shape, strict=True)] == list(size)  # one centre


@pytest.mark.parametrize(("needed", "field"), [(100, (-3, 26)), (20, (-3, 26)), (15, (-1, 22)), (2, (6, 8))])
def test_margin_and_need_by_hand(needed: int, field: tuple[int, int]) -> None:
    """20 voxels of brain, a margin of 3: never more than asked for and a margin, to the parity of the brain."""
    start, shape = around(np.ones((20, 20, 20), bool), (needed, 99, 99), (3, 0, 0))
    assert (start[0], shape[0]) == field
    assert (start[1], shape[1]) == (0, 20)


def test_a_stray_voxel_is_kept_but_moves_nothing() -> None:
    brain = np.zeros((60, 40, 40), bool)
    brain[10:30, 10:30, 10:30] = True
    brain[55, 12, 12] = True
    (first, *_), (size, *_) = around(brain, (99, 99, 99), (0, 0, 0))
    assert first + size / 2 == 20
    assert first + size == 56


@given(size=SIZES, start=st.tuples(*[st.integers(-12, 12)] * 3), shape=SIZES)
def test_what_was_taken_goes_back(size, start, shape) -> None:
    array = np.arange(1, np.prod(size) + 1).reshape(size)
    there = within(start, shape, size)
    wanted = np.zeros_like(array)
    wanted[there] = array[there]
    np.testing.assert_array_equal(put_back(take(array, start, shape), start, size), wanted)
