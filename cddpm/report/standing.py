"""Where trials stand: the leaderboard, what remains of validation scores on test, the champion's curves over all thresholds."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cddpm.data.store import SliceStore
from cddpm.errors import CddpmError
from cddpm.reconstruct.cohort import Cohort
from cddpm.reconstruct.reconstruction import Reconstruction, cache_path
from cddpm.report.chart import GREY, HEIGHT, SERIES, Chart, chart, dots, line, mark, told
from cddpm.report.document import Block, Cell, Charts, Section, Table, Words, cell, short_names, shown
from cddpm.scoring import operating_point
from cddpm.scoring.glossary import describe
from cddpm.scoring.operating_point import Histogram
from cddpm.scoring.score import ALL, HEALTHY
from cddpm.search.champion import Contender
from cddpm.search.point import scoring_with
from cddpm.search.record import SweepRecord, TrialRecord
from cddpm.text.numbers import NOTHING, duration, score

MEASURES = ("dice", "oracle_dice", "auprc", "auroc", "precision", "recall", "false_positive_rate")
"""Of the table of test scores."""


def leaderboard(record: SweepRecord) -> Section:
    """Every trial once, best validation value first."""
    if not record.trials:
        return Section("leaderboard", "Leaderboard", [Words("No trial has begun.", "missing")])
    paths = list(dict.fromkeys(p for t in record.trials for p in record.settings(t)))
    names = short_names(paths)
    objective = record.config.search.objective
    columns = ["trial", f"validation {objective}", "unswept", "state", "time", *names.values(), "note"]
    caption = (
        f"Every trial once. 'validation {objective}': best over the scoring settings that were tried, on validation; "
        "'unswept': the same model under the configuration's own scoring settings. A trial that was stopped early has no such "
        "value, but a preview on a few volumes: see its note. A click on a heading sorts."
    )
    return Section("leaderboard", "Leaderboard", [Table(caption, columns, list(_lines(record, paths)))])


def _lines(record: SweepRecord, paths: Sequence[str]) -> Iterator[list[Cell]]:
    order = {"finished": 0, "stopped early": 1, "running": 2, "interrupted": 3, "failed": 4}
    best = record.champion
    for trial in sorted(record.trials, key=lambda t: (order[t.state], -(t.objective or t.preview or 0.0), t.number)):
        result, settings = trial.result, record.settings(trial)
        name = trial.name + (" champion" if trial is best and record.contenders else "")
        yield [
            Cell(name, float(trial.number), trial is best),
            cell(trial.objective, score),
            cell(result.default.objective if result else None, score),
            Cell(trial.state),
            cell(result.seconds if result else None, duration),
            *(Cell(shown(p, settings[p]), _number(settings[p])) if p in settings else Cell(NOTHING) for p in paths),
            Cell(trial.note),
        ]


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def gap(record: SweepRecord) -> Section:
    """Champion, unswept defaults and intensity threshold: validation beside test."""
    title = "From validation to test"
    if not record.contenders:
        words = "Test was not scored: a sweep does that once, at its end, for its champion."
        return Section("test", title, [Words(words, "missing")])
    names, metric = record.config.objective_datasets, record.config.search.objective
    blocks: list[Block] = [
        Words(_verdict(record.contenders, names, metric)),
        Charts([_dumbbell(record.contenders, names, metric)]),
        Table(
            f"Objective: {metric}, mean over volumes, then over {', '.join(names)}. Operating points are those of validation.",
            ["contender", f"validation {metric}", f"test {metric}", "test - validation"],
            [_gap_line(c, names, metric) for c in record.contenders],
        ),
        Table(
            "Test, mean over the volumes of each data set. " + _glossary(record.contenders),
            ["contender", "data set", "volumes", *MEASURES],
            [line for c in record.contenders for line in _test_lines(c)],
        ),
    ]
    return Section("test", title, blocks)


def _verdict(contenders: Sequence[Contender], names: tuple[str, ...], metric: str) -> str:
    first = contenders[0]
    gap = first.metric(names, metric) - first.validation
    text = f"The champion has {first.validation:.3f} on validation and {first.metric(names, metric):.3f} on test ({gap:+.3f})."
    plain = next((c for c in contenders if c.name == "unswept defaults"), None)
    if plain is None:
        return text
    other = plain.metric(names, metric) - plain.validation
    return (
        f"{text} The unswept defaults, of which validation chose nothing but a threshold, differ by {other:+.3f}: so much lies "
        f"in the two cohorts. The rest, {gap - other:+.3f}, comes of choosing on validation, and of chance."
    )


def _dumbbell(contenders: Sequence[Contender], names: tuple[str, ...], metric: str) -> Chart:
    rows = np.arange(len(contenders), dtype=float)
    before, test = [c.validation for c in contenders], [c.metric(names, metric) for c in contenders]
    gaps = np.column_stack([before, test, np.full(len(rows), np.nan)])
    return chart(
        [
            line(gaps.ravel(), np.repeat(rows, 3), "", GREY, showlegend=False),
            dots(
                before,
                rows,
                [f"{c.name}: validation {v:.3f}" for c, v in zip(contenders, before, strict=True)],
                "validation",
                SERIES[0],
                size=10,
            ),
            mark(test, rows, [f"{c.name}: test {v:.3f}" for c, v in zip(contenders, test, strict=True)], "test"),
        ],
        f"Validation and test {metric} of {', '.join(c.name for c in contenders)}",
        "On validation (circle) and on test (diamond), at the threshold of validation.",
        metric,
        "",
        height=min(HEIGHT, 120 + 40 * len(contenders)),
        yaxis_tickvals=rows,
        yaxis_ticktext=[told(c.name) for c in contenders],
        yaxis_range=[len(contenders) - 0.4, -0.6],
    )


def _gap_line(contender: Contender, names: tuple[str, ...], metric: str) -> list[Cell]:
    test = contender.metric(names, metric)
    difference = test - contender.validation
    return [
        Cell(contender.name),
        cell(contender.validation, score),
        cell(test, score),
        Cell(f"{difference:+.3f}", difference),
    ]


def _test_lines(contender: Contender) -> Iterator[list[Cell]]:
    for dataset, values in contender.test.aggregates.items():
        numbers = [cell(values.get(name), score) for name in MEASURES]
        yield [Cell(contender.name), Cell(dataset), cell(int(values["volumes"])), *numbers]


def _glossary(contenders: Sequence[Contender]) -> str:
    there = {name for c in contenders for values in c.test.aggregates.values() for name in values}
    return "; ".join(f"{name}: {describe(name).meaning}" for name in MEASURES if name in there) + "."


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
    scoring = scoring_with(config, trial.result.best.params)
    groups = {name: scorer.histograms(name, scoring) for name in scorer.datasets}
    return Curves(groups, scorer.histograms(HEALTHY, scoring), trial.result.best.thresholds)


def operation(record: SweepRecord) -> Section:
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
