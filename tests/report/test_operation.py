"""Curves over all thresholds, against each threshold tried by itself."""

import numpy as np
import pytest
from numpy.typing import NDArray

from cddpm.report import standing
from cddpm.scoring import operating_point
from cddpm.scoring.operating_point import Histogram, histogram
from cddpm.search.record import SweepRecord

pytestmark = pytest.mark.slow


def volumes(count: int = 3) -> list[tuple[NDArray[np.float16], NDArray[np.bool_]]]:
    draw = np.random.default_rng(0)
    lesions = [draw.random(300) < 0.2 for _ in range(count)]
    return [((draw.random(300) * 0.5 + 0.3 * lesion).astype(np.float16), lesion) for lesion in lesions]


def dice(scores: NDArray[np.float16], lesion: NDArray[np.bool_], threshold: float) -> float:
    found = scores > threshold
    return float(2 * (found & lesion).sum() / (found.sum() + lesion.sum()))


def test_dice_at_every_drawn_threshold_and_the_optimum() -> None:
    made = volumes()
    group: list[Histogram] = [histogram(*v) for v in made]
    thresholds, curve = standing.dice_over_thresholds(group)
    assert len(thresholds) <= standing.STEPS + 1
    assert (np.diff(thresholds) > 0).all()
    for threshold, value in zip(thresholds, curve, strict=True):
        assert value == pytest.approx(np.mean([dice(*v, threshold) for v in made]))
    assert curve.max() == operating_point.best_dice([group]).dice


def test_precision_and_recall_at_every_drawn_point() -> None:
    scores, lesion = volumes(1)[0]
    recall, precision = standing.precision_recall(histogram(scores, lesion))
    every = {}
    for threshold in np.unique(scores):
        found = scores >= threshold
        every[float((found & lesion).sum() / lesion.sum())] = float((found & lesion).sum() / found.sum())
    assert recall[-1] == 1.0
    assert (np.diff(recall) > 0).all()
    for r, p in zip(recall, precision, strict=True):
        assert p >= every[float(r)] - 1e-12  # several thresholds have one recall; the first of them is drawn


def test_the_champions_curves_have_its_own_threshold_at_the_top(finished: SweepRecord) -> None:
    best = finished.champion
    assert best is not None
    assert best.result is not None
    curves = standing.curves_of(finished, best)
    for name, group in curves.unhealthy.items():
        thresholds, curve = standing.dice_over_thresholds(group)
        assert thresholds[np.argmax(curve)] == best.result.best.thresholds[name]
        before = best.result.best.datasets[name]["dice_before_component_filter"]
        assert curve.max() == pytest.approx(before)


def test_three_charts_of_a_finished_sweep(finished: SweepRecord) -> None:
    dice, precision, healthy = (chart.figure for chart in standing.operation(finished).charts)
    assert [trace.name for trace in dice.data] == ["A", "B", "test, at this threshold"]
    assert "test Dice" in dice.data[-1].hovertext[0]
    assert len(dice.layout.shapes) == len(precision.layout.shapes) == len(healthy.layout.shapes) == 2
    assert (healthy.data[0].y > 0).all()  # its axis is logarithmic


def test_without_artifacts_the_reason_is_told(long: SweepRecord, empty: SweepRecord) -> None:
    body = standing.operation(long).body
    assert "Curves over all thresholds are not shown" in body
    assert "does not exist" in body
    assert "No trial has finished" in standing.operation(empty).body
