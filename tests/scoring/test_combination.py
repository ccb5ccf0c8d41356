"""Combining residuals, against NumPy and SciPy voxel by voxel."""

import numpy as np
import pytest
from scipy import stats

from cddpm.scoring.combination import combined


def maps(count: int) -> list[np.ndarray]:
    random = np.random.default_rng(count)
    found = [random.random((3, 4, 5)).astype(np.float32) for _ in range(count)]
    found[0][0] = 0
    return found


@pytest.mark.parametrize("count", [1, 2, 3, 4, 7, 10])
@pytest.mark.parametrize(
    ("how", "plain"),
    [
        ("mean", lambda a: a.mean(axis=0)),
        ("median", lambda a: np.median(a, axis=0)),
        ("geometric-mean", lambda a: stats.gmean(a, axis=0)),
        ("minimum", lambda a: a.min(axis=0)),
    ],
)
def test_equals_the_plain_way(count, how, plain):
    residuals = maps(count)
    before = [r.copy() for r in residuals]
    with np.errstate(divide="ignore"):
        expected = plain(np.stack(residuals).astype(np.float64))
    assert combined(residuals, how) == pytest.approx(expected, rel=2e-6, abs=1e-7)
    assert all(np.array_equal(a, b) for a, b in zip(residuals, before, strict=True))


def test_weights_count_by_their_ratio():
    residuals = maps(3)
    stack = np.stack(residuals).astype(np.float64)
    for weights in ([1, 2, 5], [0.125, 0.25, 0.625]):
        assert combined(residuals, "mean", weights) == pytest.approx(np.average(stack, 0, [1, 2, 5]), rel=2e-6)
        with np.errstate(divide="ignore"):
            expected = np.exp(np.average(np.log(stack), 0, [1, 2, 5]))
        assert combined(residuals, "geometric-mean", weights) == pytest.approx(expected, rel=2e-6)
    assert np.array_equal(combined(residuals, "mean", [1, 1, 1]), combined(residuals, "mean"))


@pytest.mark.parametrize("how", ["median", "minimum"])
def test_weights_without_meaning_are_refused(how):
    with pytest.raises(ValueError, match=f"combined by '{how}' with weights"):
        combined(maps(2), how, [1, 1])


def test_unknown_ways_and_nothing_are_refused():
    with pytest.raises(ValueError, match="'maximum'; allowed are 'mean', 'median'"):
        combined(maps(2), "maximum")
    with pytest.raises(ValueError, match="0 residuals"):
        combined([], "mean")
