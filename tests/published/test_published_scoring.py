"""The published evaluation under its own names: hand-worked numbers, and its errors where they are known."""

import math

import numpy as np
import pytest

from cddpm.config import ScoringConfig
from cddpm.errors import DataError
from cddpm.published.scoring import (
    ReferenceVolume,
    healthy_reference_metrics,
    reference_anomaly_map,
    reference_metrics,
    reference_threshold,
    search_array,
)
from cddpm.scoring.metrics import confusion
from cddpm.scoring.operating_point import Histogram, best_dice, histogram, seed_search, threshold_value

RAW = ScoringConfig(erosion_divisor=None, median_kernel=1, minimum_component_voxels=2)


def volume(residual: np.ndarray, lesion: np.ndarray, label: float = 1.0) -> ReferenceVolume:
    """A volume whose reconstruction misses exactly ``residual`` (S, H, W); all of it is brain."""
    return ReferenceVolume(residual, np.zeros_like(residual), np.ones(residual.shape, np.uint8), lesion, label)


def corner() -> ReferenceVolume:
    """2 x 3 x 4 voxels: a lesion of 3, two of them at 0.75, one missed; one lonely false voxel in another sagittal slice."""
    residual, lesion = np.full((2, 3, 4), 0.125, np.float32), np.zeros((2, 3, 4), np.uint8)
    lesion[0, 0, :3] = 1
    residual[0, 0, :2] = 0.75
    residual[1, 2, 3] = 0.5
    return volume(residual, lesion)


def test_hand_worked_volume_at_a_given_threshold() -> None:
    found = reference_metrics([corner()], RAW, 0.25)
    # the lonely voxel is removed: TP 2, FP 0, FN 1, TN 21, and stored as TN, FN, FP, TP
    assert [found[f"{name}PerVol"] for name in ("TP", "FP", "TN", "FN")] == [[21], [1], [0], [2]]
    assert found["DiceScorePerVol"] == [0.8]
    assert found["TPRPerVol"] == found["RecallPerVol"] == [2 / 3]
    assert (found["FPRPerVol"], found["PrecisionPerVol"]) == ([0], [1])
    assert found["SpecificityPerVol"] == [0]  # FP / (FP + FN) of the true counts
    assert found["AccuracyPerVol"] == [23 / 24]
    assert found["BestThresholdPerVol"] == [0.25]
    assert found["lesionSizePerVol"] == found["lesionSizePerSlice"] == [3]
    assert found["l1recoErrorUnhealthy"] == [pytest.approx((0.75 * 2 + 0.125) / 3)]
    assert found["l1recoErrorHealthy"] == [pytest.approx((0.5 + 20 * 0.125) / 21)]
    assert found["l2recoErrorAll"] == [pytest.approx((2 * 0.75**2 + 0.5**2 + 21 * 0.125**2) / 24)]


def test_slices_are_those_of_the_first_published_axis() -> None:
    found = reference_metrics([corner()], RAW, 0.25)
    assert found["labelPerSlice"] == [1, 0, 0]  # three sagittal slices, not two axial ones
    means = [(2 * 0.75 + 6 * 0.125) / 8, 0.125, (0.5 + 7 * 0.125) / 8]
    assert found["AnomalyScoreRecoPerSlice"] == pytest.approx(means)
    assert found["AUCAnomalyRecoPerSlice"] == [1]
    assert (found["PrecisionPerSlice"], found["RecallPerSlice"]) == ([1], [2 / 3])


def test_validation_takes_each_volume_at_its_own_best_threshold() -> None:
    weak = corner()
    weak = ReferenceVolume(weak.image / 4, weak.reconstruction, weak.mask, weak.segmentation)
    found = reference_metrics([corner(), weak], RAW)
    assert found["BestThresholdPerVol"][0] == pytest.approx(4 * found["BestThresholdPerVol"][1])
    assert found["DicePerVolMean"] == 0.8
    assert found["DicePerVolStd"] == 0
    assert found["DicePerVolMean"] > reference_metrics([corner(), weak], RAW, 0.25)["DicePerVolMean"]


def test_names_say_the_wrong_thing_as_published() -> None:
    random = np.random.default_rng(0)
    residual = random.random((6, 8, 10)).astype(np.float32)
    lesion = (random.random((6, 8, 10)) < 0.2).astype(np.uint8)
    found = reference_metrics([volume(residual, lesion)], RAW.model_copy(update={"minimum_component_voxels": 0}), 0.6)
    counts = confusion(residual > 0.6, lesion > 0)
    assert found["FPRPerVol"] == [counts.false_discovery_rate]
    assert found["FPRPerVol"] != [counts.false_positive_rate]
    assert found["SpecificityPerVol"] != [counts.specificity]
    stored = [found[f"{name}PerVol"][0] for name in ("TP", "FP", "TN", "FN")]
    assert stored == [counts.true_negative, counts.false_negative, counts.false_positive, counts.true_positive]


def test_healthy_limits_are_quantiles_over_all_voxels() -> None:
    residual = np.linspace(0, 1, 1001, dtype=np.float32).reshape(7, 11, 13)
    found = healthy_reference_metrics([volume(residual, np.zeros(residual.shape, np.uint8), 0.0)], RAW)
    assert [found[name] for name in ("t_1p", "t_5p", "t_10p")] == pytest.approx([0.99, 0.95, 0.9], abs=1e-6)
    assert found["labelPerVol"] == [0]
    assert math.isnan(found["l1recoErrorUnhealthyMean"])
    assert math.isnan(found["DicePerVolMean"])
    assert "DiceScorePerVol" not in found


def test_an_empty_prediction_and_an_empty_lesion_give_numbers_or_nan() -> None:
    nothing = reference_metrics([corner()], RAW, 0.9)
    assert (nothing["DiceScorePerVol"], nothing["PrecisionPerVol"]) == ([0], [0])
    assert math.isnan(nothing["HausPerVol"][0])
    case = corner()
    healthy = ReferenceVolume(case.image, case.reconstruction, case.mask, np.zeros_like(case.segmentation))
    mixed = reference_metrics([case, healthy], RAW, 0.25)
    assert math.isnan(mixed["AUPRCPerVol"][1])
    assert mixed["AUPRCPerVolMean"] == mixed["AUPRCPerVol"][0]


def test_residual_mode_is_ignored_as_published() -> None:
    squared = RAW.model_copy(update={"residual": "l2"})
    np.testing.assert_array_equal(reference_anomaly_map(corner(), squared), reference_anomaly_map(corner(), RAW))


def test_automatic_threshold_pools_the_voxels() -> None:
    volumes = [corner(), volume(np.full((2, 3, 4), 0.25, np.float32), np.ones((2, 3, 4), np.uint8))]
    maps = np.concatenate([v.image.ravel() for v in volumes])
    truths = np.concatenate([v.segmentation.ravel() > 0 for v in volumes])
    assert reference_threshold(volumes, RAW) == search_array(maps, truths).threshold


def test_no_volume_is_refused() -> None:
    for function in (reference_metrics, healthy_reference_metrics):
        with pytest.raises(DataError, match="of no volume"):
            function([], RAW)


def test_search_worked_by_hand() -> None:
    # Lesion at 1, the rest at 0: every threshold in [0, 1) is perfect; the lower quarter wins each of ten times.
    scores, lesion = np.array([0, 0, 1], np.float16), np.array([False, False, True])
    found = seed_search(histogram(scores, lesion))
    assert (found.dice, found.threshold) == (1, 0.25 / 2**9)


def test_search_goes_to_the_better_side() -> None:
    scores, lesion = np.array([0.5, 0.5, 0.9, 1.0], np.float16), np.array([False, False, True, True])
    found = seed_search(histogram(scores, lesion))
    # 0.25 finds all four (Dice 2/3), 0.75 finds the two (Dice 1); then the lower of equal points in [0.5, 1]
    assert found.dice == 1
    assert 0.5 <= found.threshold < 0.9


@pytest.mark.parametrize("seed", range(6))
def test_search_on_a_histogram_is_the_search_on_the_array_and_never_beats_the_optimum(seed: int) -> None:
    random = np.random.default_rng(seed)
    lesion = random.random(500) < 0.2
    scores = (random.random(500) * (1 + lesion)).astype(np.float16)
    counted, plain = seed_search(histogram(scores, lesion)), search_array(scores, lesion)
    assert counted == plain
    assert counted.dice <= best_dice([[histogram(scores, lesion)]]).dice


def test_search_without_lesion_or_prediction() -> None:
    top = int(np.float16(2.0).view(np.uint16))
    empty = np.zeros(top + 1, np.int64)
    scores = empty.copy()
    scores[[0, top]] = 5
    assert threshold_value(top) == 2
    found = seed_search(Histogram(empty, scores))
    assert (found.dice, found.threshold) == (0, 2 * 0.25 / 2**9)
    found = seed_search(Histogram(empty[:1], np.array([9])))
    assert (found.dice, found.threshold) == (0, 0)
