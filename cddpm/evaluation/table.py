"""One table of all results: method x data set x measure, each number with its uncertainty and the published ones beside it."""

import csv
import io
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from cddpm.config import EvaluationConfig
from cddpm.errors import DataError
from cddpm.published.numbers import Published, published, rerun
from cddpm.scoring.glossary import MEASURES, describe
from cddpm.scoring.metrics import mean
from cddpm.scoring.statistics import (
    Comparison,
    FoldResult,
    Interval,
    Spread,
    bootstrap_interval,
    compare,
    holm,
    over_folds,
    paired,
    subject_means,
)
from cddpm.tracking.provenance import Provenance

HEADLINE = ("dice", "auprc")
"""Measures of the preprint's table."""
_OF_VOLUMES = ("_std", "_volumes")
"""Endings of columns that say something about the mean over volumes, not about the method."""
_FACTORS = ("volumes", "volume_index", "l1_ratio")
"""Numbers without unit that are no part of a whole: not told in percent."""
_NUMBER = re.compile(r"\d+(?:\.\d+)?")
_POOLED = "a number of the whole data set, no mean over its volumes"

Place = tuple[str, str, str]
"""Method, data set, measure."""


@dataclass(frozen=True)
class Cell:
    """One number of one method on one data set, in the unit of the measure (shares from 0 to 1)."""

    spread: Spread
    interval: Interval
    published: Published | None = None
    comparison: Comparison | None = None
    """With ``ResultTable.against``; none for that method itself, and where there is nothing to compare."""
    best: bool = False
    note: str = ""
    """Why there is no number, or what it leaves out."""
    rerun: Published | None = None
    """What another group got with the published code."""


@dataclass(frozen=True)
class ResultTable:
    """All numbers, and what is needed to read them."""

    provenance: Provenance
    methods: tuple[str, ...]
    datasets: tuple[str, ...]
    measures: tuple[str, ...]
    folds: tuple[int, ...]
    against: str | None
    rules: EvaluationConfig
    cells: dict[Place, Cell]

    @property
    def significance(self) -> float:
        """Largest adjusted p of a difference that is marked."""
        return round(1 - self.rules.confidence, 12)

    def differs(self, cell: Cell) -> bool:
        """Whether the method differs from ``against``, after correction for all comparisons of the column."""
        adjusted = cell.comparison.adjusted if cell.comparison else None
        return adjusted is not None and adjusted < self.significance

    def has(self, dataset: str, measures: Iterable[str]) -> bool:
        """Whether any method has a number there."""
        return any(
            self.cells[method, dataset, measure].spread.mean is not None
            for measure in measures
            if measure in self.measures
            for method in self.methods
        )


def in_percent(measure: str) -> bool:
    """Whether people tell this measure in percent: a part of a whole."""
    return describe(measure).unit == "" and measure not in _FACTORS


def shown_unit(measure: str) -> str:
    """Unit in which tables show the measure; empty if it has none."""
    return "%" if in_percent(measure) else describe(measure).unit


def build_table(
    results: Sequence[FoldResult],
    rules: EvaluationConfig,
    provenance: Provenance,
    against: str | None = None,
    methods: Sequence[str] = (),
    datasets: Sequence[str] = (),
    seed: int = 0,
) -> ResultTable:
    """The table of ``results``; rows and columns in the order of ``methods`` and ``datasets``, then of appearance.

    ``against`` is the method that the others are compared with. A method or data set that is named but has no result
    gives empty cells that say so. Raises ``DataError`` if a fold is there twice, or ``against`` is no method of the table.
    """
    by_place = _by_place(results)
    names = tuple(dict.fromkeys([*methods, *(r.method for r in results)]))
    sets = tuple(dict.fromkeys([*datasets, *(r.dataset for r in results)]))
    if against is not None and against not in names:
        raise DataError(f"method '{against}' is to be compared with, but has no row; there are {', '.join(names)}")
    folds = tuple(sorted({r.fold for r in results}))
    measures = _measures(results)
    cells: dict[Place, Cell] = {}
    for dataset in sets:
        groups = {method: by_place.get((method, dataset), []) for method in names}
        for measure in measures:
            column = _column(groups, dataset, measure, folds, rules, against, seed)
            cells |= {(method, dataset, measure): cell for method, cell in column.items()}
    return ResultTable(provenance, names, sets, measures, folds, against, rules, cells)


def _by_place(results: Sequence[FoldResult]) -> dict[tuple[str, str], list[FoldResult]]:
    found: dict[tuple[str, str], list[FoldResult]] = {}
    for result in sorted(results, key=lambda r: r.fold):
        group = found.setdefault((result.method, result.dataset), [])
        if group and group[-1].fold == result.fold:
            raise DataError(f"{result.place}: given twice; a table takes each fold once")
        group.append(result)
    return found


def _measures(results: Sequence[FoldResult]) -> tuple[str, ...]:
    """The headline first, then in the order of the glossary, rates and sizes rising."""
    known = {name for result in results for name in result.measures}
    own = [name for name in known if name in MEASURES or not name.endswith(_OF_VOLUMES)]
    order = list(MEASURES.values())

    def rank(name: str) -> tuple[bool, int, list[float], str]:
        return name not in HEADLINE, order.index(describe(name)), [float(n) for n in _NUMBER.findall(name)], name

    return tuple(sorted(own, key=rank))


def _column(
    groups: Mapping[str, Sequence[FoldResult]],
    dataset: str,
    measure: str,
    folds: Sequence[int],
    rules: EvaluationConfig,
    against: str | None,
    seed: int,
) -> dict[str, Cell]:
    """Cells of one data set and measure by method."""
    comparisons = _comparisons(groups, measure, rules, against, seed)
    column = {
        method: Cell(
            over_folds(group_values(group, measure)),
            _interval(group, measure, rules, seed),
            published(method, dataset, measure),
            comparisons.get(method),
            note=_note(group, measure, folds),
            rerun=rerun(method, dataset, measure),
        )
        for method, group in groups.items()
    }
    best = _best(column, measure)
    return {method: replace(cell, best=method in best) for method, cell in column.items()}


def group_values(group: Sequence[FoldResult], measure: str) -> list[float | None]:
    """The data set's number per fold."""
    return [result.measures.get(measure) for result in group]


def _comparisons(
    groups: Mapping[str, Sequence[FoldResult]], measure: str, rules: EvaluationConfig, against: str | None, seed: int
) -> dict[str, Comparison]:
    """By method; only of measures with a better and a worse that are means over volumes."""
    if against is None or describe(measure).better is None:
        return {}
    able = {method: group for method, group in groups.items() if group and _is_mean_of_volumes(group, measure)}
    made = {
        method: compare(paired(group, able[against], measure), rules.permutation_resamples, seed)
        for method, group in able.items()
        if method != against and against in able
    }
    adjusted = holm({method: comparison.p for method, comparison in made.items()})
    return {method: replace(comparison, adjusted=adjusted.get(method)) for method, comparison in made.items()}


def _interval(group: Sequence[FoldResult], measure: str, rules: EvaluationConfig, seed: int) -> Interval:
    if not _is_mean_of_volumes(group, measure):
        return Interval(None, None, None, 0, _POOLED)
    values = subject_means(group, measure).values()
    return bootstrap_interval(values, rules.bootstrap_resamples, rules.confidence, seed)


def _is_mean_of_volumes(group: Sequence[FoldResult], measure: str) -> bool:
    """Whether the data set's number is the mean over its volumes, so that subjects can tell how sure it is."""
    for result in group:
        volumes, whole = mean(value for _, _, value in result.values(measure)), result.measures.get(measure)
        if (volumes is None) != (whole is None):
            return False
        if volumes is not None and whole is not None and not math.isclose(volumes, whole, rel_tol=1e-6, abs_tol=1e-12):
            return False
    return True


def _note(group: Sequence[FoldResult], measure: str, folds: Sequence[int]) -> str:
    """Why a number is missing, or over fewer folds than others."""
    there = {result.fold for result in group}
    undefined = [result.fold for result in group if result.measures.get(measure) is None]
    missing = [fold for fold in folds if fold not in there]
    if not group:
        return "not run"
    if len(undefined) == len(group):
        return "undefined in every fold"
    parts = [_without(missing, "not run"), _without(undefined, "undefined")]
    return "; ".join(part for part in parts if part)


def _without(folds: Sequence[int], why: str) -> str:
    name = "fold" if len(folds) == 1 else "folds"
    return f"without {name} {', '.join(map(str, folds))} ({why})" if folds else ""


def _best(column: Mapping[str, Cell], measure: str) -> set[str]:
    """Methods with the best mean; none if all are equal, or there is only one."""
    means = {method: cell.spread.mean for method, cell in column.items() if cell.spread.mean is not None}
    better = describe(measure).better
    if better is None or len(set(means.values())) < 2:
        return set()
    top = max(means.values()) if better == "higher" else min(means.values())
    return {method for method, value in means.items() if value == top}


COLUMNS = (
    "method",
    "dataset",
    "measure",
    "unit",
    "better",
    "mean",
    "std",
    "folds",
    "lo",
    "hi",
    "subjects",
    "published",
    "published_std",
    "published_source",
    "rerun",
    "rerun_source",
    "best",
    "against",
    "difference",
    "p",
    "p_holm",
    "compared_subjects",
    "left_out",
    "note",
)
"""Of the CSV; all numbers of a line are in its ``unit``."""


def csv_text(table: ResultTable) -> str:
    """Long form: a line per method, data set and measure, empty where a number is undefined; ``note`` says why."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for (method, dataset, measure), cell in table.cells.items():
        writer.writerow([method, dataset, measure, *_csv_numbers(table, measure, cell)])
    return text.getvalue()


def _csv_numbers(table: ResultTable, measure: str, cell: Cell) -> list[object]:
    factor = 100.0 if in_percent(measure) else 1.0

    def scaled(value: float | None) -> float | None:
        return None if value is None else float(f"{factor * value:.12g}")

    comparison = cell.comparison or Comparison(None, None, 0)
    known, again = cell.published, cell.rerun
    against = table.against if cell.comparison else None
    notes = [cell.note, cell.interval.note, comparison.note]
    return [
        shown_unit(measure),
        describe(measure).better,
        scaled(cell.spread.mean),
        scaled(cell.spread.std),
        cell.spread.folds,
        scaled(cell.interval.low),
        scaled(cell.interval.high),
        cell.interval.subjects,
        *([known.mean, known.std, known.source] if known else [None, None, None]),
        *([again.mean, again.source] if again else [None, None]),
        int(cell.best),
        against,
        scaled(comparison.difference),
        comparison.p,
        comparison.adjusted,
        comparison.subjects if against else None,
        ";".join(comparison.left_out),
        "; ".join(dict.fromkeys(note for note in notes if note)),
    ]
