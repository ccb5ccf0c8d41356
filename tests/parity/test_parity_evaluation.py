"""The published evaluation dictionary, entry by entry, and the ten-step search it rests on."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from own_reference.volumes import degenerate_cases, reference_volume
from reference_settings import Arrays, load_arrays, turned

from cddpm.config import ScoringConfig
from cddpm.published.scoring import (
    ReferenceVolume,
    healthy_reference_metrics,
    reference_anomaly_map,
    reference_metrics,
    reference_threshold,
    search_array,
)
from cddpm.scoring.operating_point import histogram, seed_search

pytestmark = pytest.mark.parity
SCORING = ScoringConfig()


@pytest.fixture(scope="module")
def arrays(reference_dir: Path) -> Arrays:
    return load_arrays(reference_dir, "postprocess")


@pytest.fixture(scope="module")
def published(reference_dir: Path) -> dict[str, Any]:
    return dict(json.loads((reference_dir / "postprocess_evaldict.json").read_text()))


@pytest.fixture(scope="module")
def volumes(arrays: Arrays) -> list[ReferenceVolume]:
    """A and B, (X, Y, Z) turned to (S, H, W)."""
    return [reference_volume(arrays, which) for which in "ab"]


def same(found: dict[str, Any], expected: dict[str, Any], what: str, near: Callable[..., None]) -> None:
    """Every entry, none more and none less; NaN where the published number is NaN."""
    assert sorted(found) == sorted(expected)
    errors = []
    for name, value in expected.items():
        ours, theirs = np.atleast_1d(np.array(found[name], float)), np.atleast_1d(np.array(value, float))
        assert np.array_equal(np.isnan(ours), np.isnan(theirs)), name
        assert ours.shape == theirs.shape, name
        difference = np.abs(np.nan_to_num(ours) - np.nan_to_num(theirs)).max()
        errors.append(difference / max(np.abs(np.nan_to_num(theirs)).max(), 1e-12) if difference else 0.0)
        assert errors[-1] <= 1e-4, f"{name}: {ours} against {theirs}"
    near(f"evaluation dictionary, {what} ({len(expected)} entries)", 1 + max(errors), 1.0)


@pytest.mark.slow
def test_validation_dictionary(volumes, published, near) -> None:
    same(reference_metrics(volumes, SCORING), published["val_brats21_A_then_B"], "validation", near)


@pytest.mark.slow
def test_test_dictionary_at_the_threshold_of_validation(volumes, published, near) -> None:
    threshold = reference_threshold(volumes, SCORING)
    near("automatic threshold over two volumes", threshold, published["val_threshold_total"], 1e-6)
    same(reference_metrics(volumes[1:], SCORING, threshold), published["test_brats21_B"], "test", near)


def test_healthy_dictionary(volumes, published, near) -> None:
    b = volumes[1]
    healthy = ReferenceVolume(b.image, b.reconstruction, b.mask, np.zeros_like(b.segmentation))
    found = healthy_reference_metrics([healthy], SCORING)
    same(found, published["val_healthy_IXI_B_no_seg"], "healthy validation", near)


@pytest.mark.slow
def test_anomaly_map(volumes, arrays, near) -> None:
    near("eroded residual, median 5", reference_anomaly_map(volumes[0], SCORING), turned(arrays["a_median5"]), 1e-7)
    smaller = reference_anomaly_map(volumes[0], ScoringConfig(median_kernel=3))
    middle = smaller[len(smaller) // 2]
    near("eroded residual, median 3", middle, arrays["a_median3_slice_mid"], 1e-7)


@pytest.mark.parametrize("arithmetic", ["f32", "f64"])
def test_threshold_search_on_arrays_and_histograms(arrays, near, arithmetic) -> None:
    scores, lesion = arrays["a_median5"], arrays["a_seg"] > 0
    half = scores.astype(np.float16)
    exact = np.array_equal(half, scores)
    for found, limit in (
        (search_array(scores, lesion), 1e-6),
        (seed_search(histogram(half, lesion)), 1e-6 if exact else 2e-3),
    ):
        near("ten-step search, threshold", found.threshold, arrays[f"a_best_thresh_{arithmetic}"], limit)
        near("ten-step search, Dice", found.dice, arrays[f"a_best_dice_{arithmetic}"], limit)


def test_threshold_search_of_degenerate_inputs(arrays) -> None:
    for name, scores, lesion in degenerate_cases():
        for found in (search_array(scores, lesion), seed_search(histogram(scores.astype(np.float16), lesion))):
            assert [found.dice, found.threshold] == arrays[name].tolist(), name
    assert math.isnan(arrays["edge_dice_empty_empty"])


def test_the_three_dictionaries_are_there(published) -> None:
    assert {name for name, table in published.items() if isinstance(table, dict)} == {
        "val_brats21_A_then_B",
        "test_brats21_B",
        "val_healthy_IXI_B_no_seg",
    }
