"""What a table shows, as lines of text: the same for Markdown and the terminal.

A headline has up to four lines per method (number, interval, published number, what others got with the published code),
so that all data sets stay side by side; what is too wide is cut between data sets into blocks of about equal width.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from cddpm.data.geometry import CUT_FRACTION
from cddpm.evaluation.table import Cell, ResultTable, in_percent, shown_unit
from cddpm.published.numbers import RERUN_SOURCE, SOURCE, Published
from cddpm.scoring.glossary import describe
from cddpm.scoring.statistics import Interval

NOTHING = "-"
DIFFERS = "†"
_FINE_BELOW_ONE = ("%", "ml")
_COARSE = (*_FINE_BELOW_ONE, "mm", "dB", "voxels", "lesions", "components", "volumes")
"""Units of which one decimal is enough."""
_TITLES = {"dice": "Dice", "auprc": "AUPRC", "hd95": "HD95", "auroc": "AUROC"}


@dataclass(frozen=True)
class Text:
    """One cell."""

    text: str
    strong: bool = False


@dataclass(frozen=True)
class Line:
    """One line; the first line of a group is not faint."""

    labels: tuple[str, ...]
    cells: tuple[Text, ...]
    faint: bool = False


@dataclass(frozen=True)
class Grid:
    """Lines under a head, and what explains them."""

    labels: tuple[str, ...]
    head: tuple[str, ...]
    lines: tuple[Line, ...]
    legend: tuple[str, ...]
    together: int = 1
    """So many neighbouring columns are never cut apart."""

    def blocks(self, width: int | None, strong_extra: int = 0) -> list["Grid"]:
        """This grid cut into as few blocks as fit ``width`` characters, each with all labels; none: one block.

        ``strong_extra`` is what a strong text needs beyond its length. A single data set may still be too wide.
        """
        groups = len(self.head) // self.together
        for count in range(1, groups + 1):
            size = math.ceil(groups / count) * self.together
            parts = [self._columns(start, start + size) for start in range(0, len(self.head), size)]
            if width is None or all(part.width(strong_extra) <= width for part in parts):
                return parts
        return [self._columns(start, start + self.together) for start in range(0, len(self.head), self.together)]

    def _columns(self, start: int, stop: int) -> "Grid":
        lines = tuple(replace(line, cells=line.cells[start:stop]) for line in self.lines)
        return replace(self, head=self.head[start:stop], lines=lines)

    def width(self, strong_extra: int = 0) -> int:
        """Characters of a line with ``| `` before each cell and ``|`` at the end."""
        return sum(self.widths(strong_extra)) + 3 * (len(self.labels) + len(self.head)) + 1

    def widths(self, strong_extra: int = 0) -> list[int]:
        """Characters of each column."""
        labels = [[name, *(line.labels[i] for line in self.lines)] for i, name in enumerate(self.labels)]
        cells = [
            [name, *(c.text + " " * (strong_extra if c.strong else 0) for c in (line.cells[i] for line in self.lines))]
            for i, name in enumerate(self.head)
        ]
        return [max(map(len, column)) for column in (*labels, *cells)]


class _Notes:
    """Letters for reasons, in the order in which they are met."""

    def __init__(self) -> None:
        self._letters: dict[str, str] = {}

    def mark(self, note: str) -> str:
        if not note:
            return ""
        return f" ({self._letters.setdefault(note, _letter(len(self._letters)))})"

    def lines(self) -> list[str]:
        return [f"({letter}) {note}." for note, letter in self._letters.items()]


def _letter(index: int) -> str:
    """a to z, then aa, ab and so on."""
    before, last = divmod(index, 26)
    return (_letter(before - 1) if before else "") + chr(ord("a") + last)


def title(measure: str) -> str:
    """Short name of a measure in a head."""
    return _TITLES.get(measure, measure)


def headline(table: ResultTable, measures: Sequence[str]) -> Grid:
    """Rows are methods, columns data sets x ``measures``; data sets without any such number are left out."""
    shown = [name for name in measures if name in table.measures]
    datasets = [name for name in table.datasets if table.has(name, shown)]
    places = [(dataset, measure) for dataset in datasets for measure in shown]
    notes = _Notes()
    lines: list[Line] = []
    for method in table.methods:
        cells = [(measure, table.cells[method, dataset, measure]) for dataset, measure in places]
        lines.append(Line((method,), tuple(_number(table, *pair, notes) for pair in cells)))
        if any(cell.spread.mean is not None for _, cell in cells):
            interval = tuple(_interval(*pair, notes) for pair in cells)
            lines.append(Line((f"↳ {100 * table.rules.confidence:g} % interval",), interval, faint=True))
        if any(cell.published for _, cell in cells):
            lines.append(Line(("↳ published",), tuple(_published(cell.published) for _, cell in cells), faint=True))
        if any(cell.rerun for _, cell in cells):
            lines.append(Line(("↳ re-run by others",), tuple(_rerun(cell.rerun) for _, cell in cells), faint=True))
    head = tuple(f"{dataset} {_with_unit(m)}" if m == shown[0] else _with_unit(m) for dataset, m in places)
    legend = [*_legend(table, places, intervals=True), *_about_published(table, places), *notes.lines()]
    legend += _unseen(table)
    return Grid(("method",), head, tuple(lines), tuple(legend), max(1, len(shown)))


def details(table: ResultTable, dataset: str) -> Grid:
    """Rows are measures that have a better and a worse, columns methods."""
    notes = _Notes()
    measures = [m for m in table.measures if describe(m).better is not None and table.has(dataset, [m])]
    lines = []
    for measure in measures:
        arrow = "↑" if describe(measure).better == "higher" else "↓"
        cells = tuple(_number(table, measure, table.cells[m, dataset, measure], notes) for m in table.methods)
        lines.append(Line((measure, f"{shown_unit(measure)} {arrow}".strip()), cells))
    places = [(dataset, measure) for measure in measures]
    legend = [
        "↑ higher is better, ↓ lower is better; what each measure is: cddpm glossary. Intervals, p-values, "
        "thresholds and counts stand in the CSV file.",
        *_legend(table, places, intervals=False),
        *notes.lines(),
    ]
    return Grid(("measure", "unit"), table.methods, tuple(lines), tuple(legend))


def _unseen(table: ResultTable) -> list[str]:
    """What of brains and lesions no model of the table has looked at, where it is more than a trifle."""
    found = []
    for dataset in table.datasets:
        brain, brain_ml, lesion_ml, seen_ml = (
            _largest(table, dataset, name)
            for name in ("brain_unseen", "brain_unseen_ml", "lesion_unseen_ml", "lesion_ml")
        )
        if brain > CUT_FRACTION or lesion_ml > CUT_FRACTION * seen_ml:
            part = (
                f", {lesion_ml:.2g} ml of lesions ({lesion_ml / (lesion_ml + seen_ml):.1%})"
                if lesion_ml + seen_ml
                else ""
            )
            found.append(f"{dataset} {brain_ml:.0f} ml of brain ({brain:.1%}){part}")
    if not found:
        return []
    return [
        f"Beyond the model's window, so not looked at and in no number but those with_unseen, per scan: {'; '.join(found)}. "
        "data.volume_shape: [192, 192, null] looks at all of it."
    ]


def _largest(table: ResultTable, dataset: str, measure: str) -> float:
    """Over methods, of their means; 0 without any."""
    cells = [table.cells[method, dataset, measure] for method in table.methods if measure in table.measures]
    return max((cell.spread.mean for cell in cells if cell.spread.mean is not None), default=0.0)


def _with_unit(measure: str) -> str:
    unit = shown_unit(measure)
    return f"{title(measure)} ({unit})" if unit not in ("", "%") else title(measure)


def _number(table: ResultTable, measure: str, cell: Cell, notes: _Notes) -> Text:
    mean, std = cell.spread.mean, cell.spread.std
    if mean is None:
        return Text(NOTHING + notes.mark(cell.note))
    digits = _digits(measure, mean)
    spread = "" if std is None else f"±{_shown(measure, std, digits)}"
    mark = DIFFERS if table.differs(cell) else ""
    return Text(f"{_shown(measure, mean, digits)}{spread}{mark}{notes.mark(cell.note)}", cell.best)


def _interval(measure: str, cell: Cell, notes: _Notes) -> Text:
    if cell.spread.mean is None:
        return Text(NOTHING)  # the line above says why
    interval: Interval = cell.interval
    if interval.low is None or interval.high is None:
        return Text(NOTHING + notes.mark(interval.note))
    digits = _digits(measure, cell.spread.mean)
    low, high = (_shown(measure, bound, digits) for bound in (interval.low, interval.high))
    return Text(f"[{low}, {high}]{notes.mark(interval.note)}")


def _published(known: Published | None) -> Text:
    if known is None:
        return Text(NOTHING)
    std = "" if known.std is None else f"±{known.std:.2f}"
    return Text(f"{known.mean:.2f}{std}")


def _rerun(known: Published | None) -> Text:
    return Text(NOTHING if known is None else f"{known.mean:.1f}")


def _digits(measure: str, value: float) -> int:
    """Decimals: one of a coarse unit (two of percent and ml below 1), else three digits that count."""
    if shown_unit(measure) not in _COARSE:
        return 2 if value == 0 else min(6, max(0, 2 - math.floor(math.log10(abs(value)))))
    return 2 if shown_unit(measure) in _FINE_BELOW_ONE and 0 < abs(_scaled(measure, value)) < 1 else 1


def _scaled(measure: str, value: float) -> float:
    return 100 * value if in_percent(measure) else value


def _shown(measure: str, value: float, digits: int) -> str:
    return f"{_scaled(measure, value):.{digits}f}"


def _legend(table: ResultTable, places: Sequence[tuple[str, str]], intervals: bool) -> list[str]:
    folds = ", ".join(map(str, table.folds))
    spread = f"mean±sample standard deviation (n-1) over folds {folds}"
    if len(table.folds) == 1:
        spread = f"numbers of fold {folds}: one fold has no standard deviation"
    percent = " Shares are in %." if any(in_percent(measure) for _, measure in places) else ""
    lines = [f"{spread[0].upper()}{spread[1:]}; bold: the best of a column.{percent}"]
    if not intervals:
        lines = [lines[0].replace("of a column", "of a row")]
    else:
        lines.append(_about_intervals(table, places))
    return [*lines, *_about_tests(table, places, "column" if intervals else "row")]


def _about_intervals(table: ResultTable, places: Sequence[tuple[str, str]]) -> str:
    counts = []
    for dataset in dict.fromkeys(dataset for dataset, _ in places):
        found = {
            table.cells[method, dataset, measure].interval.subjects
            for method in table.methods
            for name, measure in places
            if name == dataset
        } - {0}
        counts.append(f"{dataset} {_range(found)}")
    return (
        f"[low, high]: {100 * table.rules.confidence:g} % bootstrap interval (BCa, {table.rules.bootstrap_resamples} "
        f"resamples) of the mean over test subjects, each averaged over folds first; subjects: {', '.join(counts)}."
    )


def _range(numbers: Iterable[int]) -> str:
    ordered = sorted(numbers)
    if not ordered:
        return "0"
    return str(ordered[0]) if ordered[0] == ordered[-1] else f"{ordered[0]} to {ordered[-1]}"


def _about_tests(table: ResultTable, places: Sequence[tuple[str, str]], family: str) -> list[str]:
    cells = [(place[0], table.cells[method, *place]) for method in table.methods for place in places]
    made = [cell.comparison for _, cell in cells if cell.comparison is not None]
    if table.against is None or not made:
        return []
    lines = [
        f"{DIFFERS} differs from {table.against}: two-sided paired permutation test over subjects, p < "
        f"{table.significance:g} after Holm's correction over the methods of a {family}."
    ]
    lines += _about_power(table, places)
    left = {(dataset, name) for dataset, cell in cells if cell.comparison for name in cell.comparison.left_out}
    if left:
        lines.append(
            f"Subjects with a value in one method only: {len(left)}; tests leave them out where they lack (names: CSV file)."
        )
    return lines


def _about_power(table: ResultTable, places: Sequence[tuple[str, str]]) -> list[str]:
    """Data sets with too few subjects for any mark: a test of n subjects cannot give a p below 2 / 2^n."""
    lines = []
    for dataset in dict.fromkeys(dataset for dataset, _ in places):
        reach, subjects = [], 0
        for measure in (measure for name, measure in places if name == dataset):
            found = [c for m in table.methods if (c := table.cells[m, dataset, measure].comparison) and c.p is not None]
            reach += [min(c.smallest for c in found) * len(found)] if found else []
            subjects = max([subjects, *(c.subjects for c in found)])
        if reach and min(reach) >= table.significance:
            lines.append(
                f"{dataset}: no {DIFFERS} was possible; with {subjects} subjects the smallest corrected p is "
                f"{min(1.0, *reach):.2g}."
            )
    return lines


def _about_published(table: ResultTable, places: Sequence[tuple[str, str]]) -> list[str]:
    known = {method for method in table.methods for place in places if table.cells[method, *place].published}
    lines = []
    if known:
        warning = (
            ""
            if table.provenance.real
            else " They are no measure of the numbers above, which are of synthetic volumes."
        )
        lines.append(f"published: {SOURCE}; real data, mean over folds in %, standard deviations not noted.{warning}")
    if any(table.cells[method, *place].rerun for method in table.methods for place in places):
        lines.append(f"re-run by others: {RERUN_SOURCE}; the published code on the same splits, run by another group.")
    without = [method for method in table.methods if method not in known]
    if without:
        lines.append(f"Nothing is published for {', '.join(without)} on these data sets.")
    return lines
