"""The median filter equals SciPy's, bit for bit."""

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from cddpm.scoring.postprocess import median_filter


def plain(volume: np.ndarray, kernel: int) -> np.ndarray:
    return ndimage.median_filter(volume.astype(np.float32), kernel, mode="reflect").astype(np.float16)


def same_bits(a: np.ndarray, b: np.ndarray) -> bool:
    return np.array_equal(a.view(np.uint16), b.view(np.uint16))


@pytest.mark.parametrize("kernel", [3, 5, 7])
@pytest.mark.parametrize("shape", [(9, 13, 11), (3, 40, 70), (1, 1, 1), (2, 3, 1), (5, 6, 530)])
def test_equals_scipy_on_random_volumes_of_any_shape(kernel, shape):
    volume = np.random.default_rng(kernel).random(shape).astype(np.float16)
    assert same_bits(median_filter(volume, kernel), plain(volume, kernel))


@pytest.mark.parametrize("kernel", [3, 5, 7])
def test_equals_scipy_where_most_voxels_are_zero(kernel):
    random = np.random.default_rng(1)
    for box in [np.s_[4:9, 5:20, 3:17], np.s_[:3, :4, :5], np.s_[9:, 20:, 14:], np.s_[6:7, 8:9, 9:10]]:
        volume = np.zeros((12, 24, 20), np.float16)
        volume[box] = random.random(volume[box].shape)
        assert same_bits(median_filter(volume, kernel), plain(volume, kernel))


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from([3, 5, 7]),
    st.tuples(st.integers(1, 9), st.integers(1, 14), st.sampled_from([1, 8, 60, 700])),
    st.floats(0, 1),
    st.integers(0, 2**31),
)
def test_no_median_but_zeros_is_skipped(kernel, shape, filled, seed):
    """Blocks of numbers among zeros: pieces of rows of any length, gaps of any width."""
    random = np.random.default_rng(seed)
    occupied = random.random(tuple(-(-n // 4) for n in shape)) < filled
    for axis in range(3):
        occupied = np.repeat(occupied, 4, axis)
    occupied = occupied[tuple(slice(n) for n in shape)] & (random.random(shape) < 0.9)
    volume = np.where(occupied, random.random(shape), 0).astype(np.float16)
    assert same_bits(median_filter(volume, kernel), plain(volume, kernel))


@pytest.mark.parametrize("kernel", [3, 5])
def test_equals_scipy_with_negative_numbers_ties_and_the_smallest_and_largest_float16(kernel):
    random = np.random.default_rng(2)
    volume = random.choice([-65504.0, -0.5, 0.0, 6e-8, 0.25, 0.25, 65504.0], (8, 12, 14)).astype(np.float16)
    assert same_bits(median_filter(volume, kernel), plain(volume, kernel))


def test_median_of_a_hand_worked_window():
    volume = np.arange(27, dtype=np.float16).reshape(3, 3, 3)
    assert median_filter(volume, 3)[1, 1, 1] == 13


def test_kernel_1_changes_nothing_but_negative_zero():
    volume = np.array([[[-0.0, 0.5, -2.0]]], np.float16)
    assert same_bits(median_filter(volume, 1), np.array([[[0.0, 0.5, -2.0]]], np.float16))


def test_a_speck_vanishes_and_a_constant_stays():
    speck = np.zeros((9, 9, 9), np.float16)
    speck[4, 4, 4] = 1
    assert not median_filter(speck, 3).any()
    constant = np.full((4, 5, 6), 0.3, np.float16)
    assert same_bits(median_filter(constant, 5), constant)


def test_commutes_with_flips_and_transposes():
    volume = np.random.default_rng(3).random((10, 11, 12)).astype(np.float16)
    filtered = median_filter(volume, 5)
    assert same_bits(median_filter(np.ascontiguousarray(volume[::-1, :, ::-1]), 5), filtered[::-1, :, ::-1].copy())
    assert same_bits(median_filter(volume.transpose(2, 0, 1), 5), filtered.transpose(2, 0, 1).copy())


@pytest.mark.parametrize(
    ("volume", "kernel", "message"),
    [
        (np.zeros((3, 3, 3), np.float32), 3, "3-D float32; a 3-D float16"),
        (np.zeros((3, 3), np.float16), 3, "2-D float16; a 3-D float16"),
        (np.zeros((3, 3, 3), np.float16), 4, "kernel: 4; allowed are 1, 3, 5, 7"),
    ],
)
def test_refuses_other_types_and_kernels(volume, kernel, message):
    with pytest.raises(ValueError, match=message):
        median_filter(volume, kernel)


@pytest.mark.parity
def test_equals_the_published_code(published, rounding, near):
    inside = published["a_eroded_mask"] > 0
    residual = np.abs(published["a_orig"] - published["a_reco"]).astype(np.float16) * inside
    middle = len(residual) // 2
    near("median 5, float16", median_filter(residual, 5), published["a_median5"], rounding)
    near("median 3, float16", median_filter(residual, 3)[middle], published["a_median3_slice_mid"], rounding)


@pytest.mark.slow
def test_is_at_least_8_times_faster_than_scipy():
    grid = np.indices((50, 96, 96)) / np.array((50, 96, 96)).reshape(3, 1, 1, 1) - 0.5
    brain = (grid**2 * np.array((5, 7, 5)).reshape(3, 1, 1, 1)).sum(0) < 1
    volume = (brain * np.random.default_rng(0).random(brain.shape)).astype(np.float16)
    median_filter(volume, 5)
    ours = min(seconds(lambda: median_filter(volume, 5)) for _ in range(5))
    assert seconds(lambda: ndimage.median_filter(volume.astype(np.float32), 5)) > 8 * ours


def seconds(function) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start
