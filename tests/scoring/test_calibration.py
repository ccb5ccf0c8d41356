"""Statistics of healthy residuals, and residuals in their units."""

import json

import numpy as np
import pytest

from cddpm.config import ScoringConfig
from cddpm.errors import ArtifactError
from cddpm.scoring.calibration import FEWEST_VOXELS, INTENSITY_BINS, bins, given, standardised, statistics, sums


def volume(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A residual that grows with the intensity of its image, and a brain mask."""
    random = np.random.default_rng(seed)
    image = random.random((6, 20, 20)).astype(np.float16)
    residual = (0.1 + image * (1 + 0.3 * random.normal(size=image.shape))).astype(np.float32)
    return residual, image, random.random(image.shape) < 0.8


def found_in(count: int) -> tuple[dict, list]:
    volumes = [volume(seed) for seed in range(3)]
    return statistics([sums([("250", r), ("500", 2 * r)], x, b, count) for r, x, b in volumes]), volumes


def test_healthy_brains_have_mean_0_and_deviation_1():
    found, volumes = found_in(1)
    for level, factor in (("250", 1), ("500", 2)):
        z = np.concatenate([standardised(factor * r, x, found[level])[b] for r, x, b in volumes]).astype(np.float64)
        assert (z.mean(), z.std()) == (pytest.approx(0, abs=1e-4), pytest.approx(1, abs=1e-4))
    assert found["500"]["mean"][0] == pytest.approx(2 * found["250"]["mean"][0])


def test_by_intensity_each_bin_has_mean_0_and_deviation_1():
    found, volumes = found_in(INTENSITY_BINS)
    z = np.concatenate([standardised(r, x, found["250"])[b] for r, x, b in volumes]).astype(np.float64)
    x = np.concatenate([x[b] for _, x, b in volumes]).astype(np.float64)
    for i in range(INTENSITY_BINS):
        inside = (x >= i / 16) & ((x < (i + 1) / 16) | (i == 15))
        assert np.count_nonzero(inside) >= FEWEST_VOXELS
        assert (z[inside].mean(), z[inside].std()) == (pytest.approx(0, abs=1e-3), pytest.approx(1, abs=1e-3))


def test_hand_worked_numbers_of_seeds_together():
    r = np.array([[[1.0, 3.0, 9.0]]], np.float32)
    image, brain = np.zeros((1, 1, 3), np.float16), np.array([[[True, True, False]]])
    found = statistics([sums([("250", r), ("250", r + 4)], image, brain, 1)])
    assert found == {"250": {"mean": [4.0], "deviation": [pytest.approx(np.sqrt(5))]}}
    assert json.loads(json.dumps(found)) == found


def test_a_bin_with_few_voxels_has_the_statistics_of_all():
    residual, image, brain = volume(0)
    image[0, 0, 0], brain[0, 0, 0] = 1.5, True  # beyond 1: the outermost bin
    image[...] = np.where(image == 1.5, image, image / 2)
    found = statistics([sums([("all", residual)], image, brain, INTENSITY_BINS)])["all"]
    whole = statistics([sums([("all", residual)], image, brain, 1)])["all"]
    assert found["mean"][15] == pytest.approx(whole["mean"][0])
    assert found["deviation"][15] == pytest.approx(whole["deviation"][0])
    assert found["mean"][3] != pytest.approx(whole["mean"][0], rel=0.05)


def test_a_residual_that_never_varies_stays_finite():
    nothing = np.zeros((1, 20, 20), np.float32)
    found = statistics([sums([("all", nothing)], nothing, nothing == 0, 1)])["all"]
    assert not standardised(nothing, nothing, found).any()


def test_what_was_not_kept_is_named():
    assert given({"all": {}})(ScoringConfig(normalise="healthy-z")) == {"all": {}}
    with pytest.raises(ArtifactError, match="'healthy-z' needs the statistics"):
        given(None)(ScoringConfig(normalise="healthy-z"))
    with pytest.raises(ValueError, match="'none' needs no statistics"):
        bins("none")
