"""Where trials stand: the leaderboard, and what remains of validation scores on test."""

from collections.abc import Iterator, Sequence

import numpy as np

from cddpm.report.chart import GREY, HEIGHT, SERIES, Chart, chart, dots, line, mark, told
from cddpm.report.document import Block, Cell, Charts, Section, Table, Words, cell
from cddpm.report.setting import short_names, shown
from cddpm.scoring.glossary import describe
from cddpm.search.champion import Contender
from cddpm.search.record import SweepRecord
from cddpm.search.scoring_search import objective_datasets
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
    names, metric = objective_datasets(record.config), record.config.search.objective
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
