"""float16 to float32 and back: every number there is, and every boundary between two of them."""

import numpy as np
import pytest
from numpy.typing import NDArray

from cddpm.scoring import half

ALL = np.arange(0x7C00, dtype=np.uint16)
"""Bits of every finite float16 >= 0."""


def bits(values: NDArray) -> NDArray:
    return values.view(np.uint16 if values.dtype == np.float16 else np.uint32)


def test_every_float16_becomes_the_same_float32() -> None:
    every = np.concatenate([ALL, ALL | 0x8000]).view(np.float16)
    assert np.array_equal(bits(half.single(every)), bits(every.astype(np.float32)))


def test_around_every_boundary_the_nearest_float16_is_found_ties_to_even() -> None:
    exact = ALL.view(np.float16).astype(np.float32)
    middle = (exact[1:] + exact[:-1]) / 2
    around = [np.nextafter(middle, np.float32(0)), middle, np.nextafter(middle, np.float32(1e6)), exact]
    numbers = np.concatenate(around)
    assert np.array_equal(bits(half.positive(numbers)), bits(numbers.astype(np.float16)))


@pytest.mark.nightly
@pytest.mark.timeout(600)
def test_of_all_float32_one_in_thirteen_becomes_the_float16_that_numpy_makes_of_it() -> None:
    step = 1 << 24
    for low in range(0, 0x47800000, step):  # up to 65,536
        numbers = np.arange(low, low + step, 13, dtype=np.uint32).view(np.float32)
        assert np.array_equal(bits(half.positive(numbers)), bits(np.clip(numbers, 0, 65504).astype(np.float16))), hex(
            low
        )


def test_below_zero_counts_as_zero_and_what_is_too_large_as_the_largest() -> None:
    numbers = np.array([[-0.0, -1.0, -1e-9], [65519.9, 65520.0, 3e38]], np.float32)
    assert np.array_equal(bits(half.positive(numbers)), [[0, 0, 0], [0x7BFF] * 3])


@pytest.mark.parametrize("shape", [(0,), (1,), (1023,), (1024,), (3, 7, 101), (2, 1025, 1)])
@pytest.mark.parametrize("weight", [1.0, 0.3])
def test_adds_what_numpy_adds_in_any_shape_and_layout(shape: tuple[int, ...], weight: float) -> None:
    random = np.random.default_rng(len(shape))
    doubled = (*shape[:-1], 2 * shape[-1])
    halves = random.standard_normal(doubled).astype(np.float16)[..., ::2]  # not contiguous
    total = random.standard_normal(shape, np.float32)
    expected = total + np.float32(weight) * halves.astype(np.float32)
    half.add(total, halves, weight)
    assert np.array_equal(bits(total), bits(expected))
    assert np.array_equal(half.single(halves), halves.astype(np.float32))
    assert half.positive(total).shape == shape


def test_nan_stays_nan_and_other_shapes_are_refused() -> None:
    assert np.array_equal(np.isnan(half.positive(np.array([np.nan, 1.0, -np.nan], np.float32))), [True, False, True])
    with pytest.raises(ValueError, match="one shape is needed"):
        half.add(np.zeros((2, 3), np.float32), np.zeros(3, np.float16))
    with pytest.raises(ValueError, match="contiguous"):
        half.add(np.zeros((2, 6), np.float32)[:, ::2], np.zeros((2, 3), np.float16))
