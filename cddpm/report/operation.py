"""How the champion works: Dice and precision over all thresholds on validation."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cddpm.config import ScoringConfig
from cddpm.data.store import SliceStore
from cddpm.errors import CddpmError
from cddpm.reconstruct.cache import ReconstructionCache, cache_path
from cddpm.report.chart import INK, SERIES, Chart
from cddpm.report.document import Section, charts, figure, paragraph
from cddpm.scoring import operating_point
from cddpm.scoring.operating_point import Histogram
from cddpm.scoring.score import ALL, HEALTHY, Scorer
from cddpm.search import scoring_search
from cddpm.search.record import SweepRecord, TrialRecord
from cddpm.training import stages

STEPS = 240
"""Points of a drawn curve."""


@dataclass(frozen=True)
class Curves:
    """Histograms of the champion's anomaly scores on validation, by data set; of healthy volumes over brain voxels."""

    unhealthy: Mapping[str, Sequence[Histogram]]
    healthy: Sequence[Histogram]
    thresholds: Mapping[str, float]


def curves_of(record: SweepRecord, trial: TrialRecord) -> Curves:
    """Score the validation reconstructions of ``trial`` once. Raises ``CddpmError`` if they or the store are not there."""
    assert trial.result is not None  # asked for finished trials only
    config = record.trial_config(trial)
    cache = ReconstructionCache.open(cache_path(record.artifacts, trial.result.reconstruction))
    store = SliceStore.open(record.artifacts / "store" / str(cache.made_from["store"]), verify=False)
    unhealthy, healthy = stages.cohorts(config, store, "val")
    scorer = Scorer(store, cache, unhealthy, healthy, threads=2)
    scoring = scoring_search.scoring_with(config, trial.result.best.params)
    groups = {name: _histograms(scorer, name, scoring) for name in scorer.datasets}
    return Curves(groups, _histograms(scorer, HEALTHY, scoring), trial.result.best.thresholds)


def _histograms(scorer: Scorer, dataset: str, scoring: ScoringConfig) -> list[Histogram]:
    nothing = np.empty(0, np.int64)
    found = []
    for case in scorer.cases(dataset):
        scores = scorer.anomaly_map(case.index, scoring)
        whole = dataset != HEALTHY
        found.append(
            operating_point.histogram(
                scores if whole else scores.ravel()[case.brain], case.lesion if whole else nothing
            )
        )
    return found


def section(record: SweepRecord) -> Section:
    """Curves over all thresholds of the champion."""
    title, best = "Operating points", record.champion
    if best is None:
        return Section("operating", title, paragraph("No trial has finished.", "missing"))
    try:
        curves = curves_of(record, best)
    except CddpmError as error:
        return Section("operating", title, paragraph(f"Curves over all thresholds are not shown: {error}", "missing"))
    test = record.contenders[0].test.aggregates if record.contenders and record.champion is best else {}
    names = [name for name, group in curves.unhealthy.items() if any(h.lesion_voxels for h in group)]
    figures = [_dice(curves, names, test), _precision_recall(curves, names), *_healthy(curves)]
    return Section("operating", title, charts(figures))


def _dice(curves: Curves, names: Sequence[str], test: Mapping[str, Mapping[str, float]]) -> str:
    with Chart("dice-threshold", "Mean validation Dice against threshold, per data set") as chart:
        marks = []
        for index, name in enumerate(names):
            x, y = dice_over_thresholds(curves.unhealthy[name])
            chart.axes.plot(x, y, color=SERIES[index % len(SERIES)], label=name)
            chosen = curves.thresholds.get(name, curves.thresholds[ALL])
            chart.axes.axvline(chosen, color=SERIES[index % len(SERIES)], linewidth=1, linestyle="--")
            if "dice" in test.get(name, {}):
                marks.append((chosen, test[name]["dice"], f"{name}: test Dice {test[name]['dice']:.3f}"))
        if marks:
            at, reached, tips = zip(*marks, strict=True)
            chart.mark(at, reached, "test, at this threshold", tips)
        chart.axes.set_xlabel("threshold (anomaly score)")
        chart.axes.set_ylabel("mean Dice")
        chart.axes.set_ylim(bottom=0)
        chart.legend()
    return figure(
        chart.svg(),
        "Mean Dice over validation volumes at every threshold, before the component filter, under the champion's settings. "
        "Dashed: the threshold fixed on validation. Diamond: the test Dice at that threshold, after the filter.",
    )


def dice_over_thresholds(group: Sequence[Histogram]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(threshold, mean Dice) at up to ``STEPS`` thresholds, evenly spaced up to where little is left, and the optimum."""
    length = max(h.lesion.size for h in group)
    curve = operating_point.mean_dice_curve(group, length)
    thresholds = np.arange(length, dtype=np.uint16).view(np.float16).astype(np.float64)
    top = int(np.argmax(curve))
    left = np.flatnonzero(curve > 0.02 * curve[top])
    end = thresholds[max(int(left[-1]) if left.size else 0, top)]
    places = np.searchsorted(thresholds, np.linspace(0.0, end, STEPS))
    kept = np.unique(np.minimum(np.append(places, top), length - 1))
    return thresholds[kept], curve[kept]


def _precision_recall(curves: Curves, names: Sequence[str]) -> str:
    with Chart("precision-recall", "Precision against recall over all thresholds, per data set") as chart:
        for index, name in enumerate(names):
            h = operating_point.pooled(curves.unhealthy[name])
            recall, precision = precision_recall(h)
            area, rate = operating_point.average_precision(h), h.lesion_voxels / (h.lesion_voxels + h.normal_voxels)
            colour = SERIES[index % len(SERIES)]
            chart.axes.plot(recall, precision, color=colour, label=f"{name}, area {area:.3f}")
            chart.axes.axhline(rate, color=colour, linewidth=0.8, linestyle=":")
        chart.axes.set_xlim(0, 1)
        chart.axes.set_ylim(0, 1.02)
        chart.axes.set_xlabel("recall")
        chart.axes.set_ylabel("precision")
        chart.legend()
    return figure(
        chart.svg(),
        "Precision against recall over all thresholds, all voxels of all validation volumes of a data set together, before the "
        "component filter. Dotted: the part of voxels that is lesion, which is the precision of a guess.",
    )


def precision_recall(h: Histogram) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(recall, precision) from the highest threshold down, at up to ``STEPS`` recalls."""
    true_positive = np.cumsum(h.lesion[::-1])
    positive = true_positive + np.cumsum(h.normal[::-1])
    hit = np.flatnonzero(h.lesion[::-1] > 0)
    recall, precision = true_positive[hit] / h.lesion_voxels, true_positive[hit] / positive[hit]
    kept = np.unique(np.minimum(np.searchsorted(recall, np.linspace(0.0, 1.0, STEPS)), recall.size - 1))
    return recall[kept], precision[kept]


def _healthy(curves: Curves) -> list[str]:
    if not curves.healthy:
        return []
    h = operating_point.pooled(curves.healthy)
    share = 1.0 - np.cumsum(h.normal) / h.normal_voxels
    thresholds = np.arange(share.size, dtype=np.uint16).view(np.float16).astype(np.float64)
    kept = np.unique(np.searchsorted(thresholds, np.linspace(0.0, thresholds[-1], STEPS)))
    kept = kept[share[kept] > 0]
    with Chart("healthy", "Part of healthy validation brains above each threshold") as chart:
        chart.axes.plot(thresholds[kept], 100 * share[kept], color=INK, label="healthy")
        for index, name in enumerate(curves.unhealthy):
            chosen = curves.thresholds.get(name, curves.thresholds[ALL])
            colour = SERIES[index % len(SERIES)]
            chart.axes.axvline(chosen, color=colour, linewidth=1, linestyle="--", label=f"threshold of {name}")
        chart.axes.set_yscale("log")
        chart.axes.set_xlabel("threshold (anomaly score)")
        chart.axes.set_ylabel("healthy brain above it (%)")
        chart.legend()
    words = "Part of the brain voxels of healthy validation volumes above each threshold: what a threshold costs in the healthy."
    return [figure(chart.svg(), words)]
