"""How the champion works: Dice and precision over all thresholds on validation."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cddpm.data.store import SliceStore
from cddpm.errors import CddpmError
from cddpm.reconstruct.cohort import Cohort
from cddpm.reconstruct.reconstruction import Reconstruction, cache_path
from cddpm.report.chart import GREY, SERIES, Chart, chart, line, mark, told
from cddpm.report.document import Charts, Section, Words
from cddpm.scoring import operating_point
from cddpm.scoring.operating_point import Histogram
from cddpm.scoring.score import ALL, HEALTHY
from cddpm.search import scoring_search
from cddpm.search.record import SweepRecord, TrialRecord

STEPS = 240
"""Points of a drawn curve."""


@dataclass(frozen=True)
class Curves:
    """Histograms of the champion's anomaly scores on validation, by data set; of healthy volumes over brain voxels."""

    unhealthy: Mapping[str, Sequence[Histogram]]
    healthy: Sequence[Histogram]
    thresholds: Mapping[str, float]

    def chosen(self, name: str) -> float:
        """The threshold of a data set, or that of all."""
        return self.thresholds.get(name, self.thresholds[ALL])


def curves_of(record: SweepRecord, trial: TrialRecord) -> Curves:
    """Score the validation reconstructions of ``trial`` once. Raises ``CddpmError`` if they or the store are not there."""
    assert trial.result is not None  # asked for finished trials only
    config = record.trial_config(trial)
    reconstruction = Reconstruction.open(cache_path(record.artifacts, trial.result.reconstruction))
    store = SliceStore.open(record.artifacts / "store" / str(reconstruction.made_from["store"]), verify=False)
    scorer = Cohort.of(store, config.data, "val").scorer(reconstruction, threads=2)
    scoring = scoring_search.scoring_with(config, trial.result.best.params)
    groups = {name: scorer.histograms(name, scoring) for name in scorer.datasets}
    return Curves(groups, scorer.histograms(HEALTHY, scoring), trial.result.best.thresholds)


def section(record: SweepRecord) -> Section:
    """Curves over all thresholds of the champion."""
    title, best = "Operating points", record.champion
    if best is None:
        return Section("operating", title, [Words("No trial has finished.", "missing")])
    try:
        curves = curves_of(record, best)
    except CddpmError as error:
        return Section("operating", title, [Words(f"Curves over all thresholds are not shown: {error}", "missing")])
    test = record.contenders[0].test.aggregates if record.contenders and record.champion is best else {}
    names = [name for name, group in curves.unhealthy.items() if any(h.lesion_voxels for h in group)]
    found = [_dice(curves, names, test), _precision_recall(curves, names), *_healthy(curves)]
    return Section("operating", title, [Charts(found)])


def _dice(curves: Curves, names: Sequence[str], test: Mapping[str, Mapping[str, float]]) -> Chart:
    hover = "%{fullData.name}: Dice %{y:.3f} at threshold %{x:.3f}"
    tested = {name: test[name]["dice"] for name in names if "dice" in test.get(name, {})}
    made = chart(
        [
            *(
                line(*dice_over_thresholds(curves.unhealthy[name]), name, colour, hover)
                for name, colour in _coloured(names)
            ),
            mark(
                [curves.chosen(name) for name in tested],
                list(tested.values()),
                [
                    f"{name}: test Dice {dice:.3f} at threshold {curves.chosen(name):.3f}"
                    for name, dice in tested.items()
                ],
                "test, at this threshold",
            ),
        ],
        "Mean validation Dice against threshold, per data set",
        "Over validation volumes, before the component filter, under the champion's settings. "
        "Dashed: the threshold fixed on validation. Diamond: the test Dice at that threshold, after the filter.",
        "threshold (anomaly score)",
        "mean Dice",
        yaxis_rangemode="tozero",
        showlegend=True,
    )
    for name, colour in _coloured(names):
        made.figure.add_vline(curves.chosen(name), line={"color": colour, "width": 1, "dash": "dash"})
    return made


def _coloured(names: Iterable[str]) -> list[tuple[str, str]]:
    return [(name, SERIES[index % len(SERIES)]) for index, name in enumerate(names)]


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


def _precision_recall(curves: Curves, names: Sequence[str]) -> Chart:
    hover = "%{fullData.name}: precision %{y:.3f} at recall %{x:.3f}"
    pooled = {name: operating_point.pooled(curves.unhealthy[name]) for name in names}
    areas = {name: f"{name}, area {operating_point.average_precision(h):.3f}" for name, h in pooled.items()}
    made = chart(
        [line(*precision_recall(pooled[name]), areas[name], colour, hover) for name, colour in _coloured(names)],
        "Precision against recall over all thresholds, per data set",
        "All voxels of all validation volumes of a data set together, before the component filter. Dotted: the part of voxels "
        "that is lesion, which is the precision of a guess.",
        "recall",
        "precision",
        xaxis_range=[0, 1.02],
        yaxis_range=[0, 1.05],
        showlegend=True,
    )
    for name, colour in _coloured(names):
        lesion, normal = pooled[name].lesion_voxels, pooled[name].normal_voxels
        made.figure.add_hline(lesion / (lesion + normal), line={"color": colour, "width": 1, "dash": "dot"})
    return made


def precision_recall(h: Histogram) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(recall, precision) from the highest threshold down, at up to ``STEPS`` recalls."""
    true_positive = np.cumsum(h.lesion[::-1])
    positive = true_positive + np.cumsum(h.normal[::-1])
    hit = np.flatnonzero(h.lesion[::-1] > 0)
    recall, precision = true_positive[hit] / h.lesion_voxels, true_positive[hit] / positive[hit]
    kept = np.unique(np.minimum(np.searchsorted(recall, np.linspace(0.0, 1.0, STEPS)), recall.size - 1))
    return recall[kept], precision[kept]


def _healthy(curves: Curves) -> list[Chart]:
    if not curves.healthy:
        return []
    h = operating_point.pooled(curves.healthy)
    share = 1.0 - np.cumsum(h.normal) / h.normal_voxels
    thresholds = np.arange(share.size, dtype=np.uint16).view(np.float16).astype(np.float64)
    kept = np.unique(np.searchsorted(thresholds, np.linspace(0.0, thresholds[-1], STEPS)))
    kept = kept[share[kept] > 0]
    hover = "%{y:.3g}% of healthy brains above threshold %{x:.3f}"
    made = chart(
        [line(thresholds[kept], 100 * share[kept], "healthy", GREY, hover)],
        "Part of healthy validation brains above each threshold",
        "Of their brain voxels: what a threshold costs in the healthy.",
        "threshold (anomaly score)",
        "healthy brain above it (%)",
        yaxis_type="log",
        showlegend=True,
    )
    for name, colour in _coloured(curves.unhealthy):
        look = {"color": colour, "width": 1, "dash": "dash"}
        made.figure.add_vline(curves.chosen(name), line=look, name=told(f"threshold of {name}"), showlegend=True)
    return [made]
