"""Rows under headings, as wide as the terminal allows."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

from rich.console import Console, ConsoleOptions, RenderResult
from rich.text import Text

from cddpm.text.words import WHOLE, broken, rows, widest_line, widest_word

GAP = 2
BELOW = 2
"""So many columns may stand below their row; with more, all do."""


@dataclass(frozen=True)
class _Column:
    heading: Text
    style: str
    right: bool
    no_wrap: bool
    cells: list[Text] = field(default_factory=list)

    @property
    def natural(self) -> int:
        return max(map(widest_line, [self.heading, *self.cells]))

    def least(self, after_dots: bool) -> int:
        return max(widest_word(text, after_dots) for text in [self.heading, *self.cells])


class Table:
    """Columns side by side, broken between words and after the dots of names; what finds no room stands below its row.

    Where even that does not fit, each row becomes ``heading: cell`` lines. Headings and cells are markup, or ``Text``, and
    may hold line feeds.
    """

    def __init__(self, title: str = "", *, show_header: bool = True) -> None:
        self._title = Text.from_markup(title, emoji=False, style="bold")
        self._show_header = show_header
        self._columns: list[_Column] = []
        self._styles: list[str] = []

    def add_column(
        self,
        heading: str | Text = "",
        *,
        justify: Literal["left", "right"] = "left",
        style: str = "",
        no_wrap: bool = False,
    ) -> None:
        """A column; with ``no_wrap`` its cells are not broken at spaces either."""
        self._columns.append(_Column(_text(heading), style, justify == "right", no_wrap))

    def add_row(self, *cells: str | Text, style: str = "") -> None:
        """A row, one cell for each column."""
        for column, cell in zip(self._columns, cells, strict=True):
            text = _text(cell)
            text.stylize(column.style)
            if column.no_wrap:
                text.stylize(WHOLE)
            column.cells.append(text)
        self._styles.append(style)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Its lines."""
        title = rows(self._title, options.max_width) if self._title.plain else []
        for line in [*title, *self._lines(options.max_width), Text()]:
            line.no_wrap, line.overflow = True, "ignore"
            yield line

    def _lines(self, width: int) -> Iterator[Text]:
        beside, below = list(self._columns), list[_Column]()
        while (widths := _fitted(beside, width)) is None and len(below) < BELOW and self._show_header:
            movable = [column for column in beside[1:] if not column.right]
            if not movable:
                break
            below.append(max(movable, key=lambda column: column.least(after_dots=True)))
            beside.remove(below[-1])
        if widths is None:
            return self._stacked(width)
        return self._side_by_side(beside, widths, below, width)

    def _side_by_side(
        self, beside: Sequence[_Column], widths: Sequence[int], below: Sequence[_Column], width: int
    ) -> Iterator[Text]:
        if self._show_header:
            yield from _row(beside, [column.heading for column in beside], widths, "bold")
            yield Text("─" * (sum(widths) + GAP * (len(widths) - 1)), "dim")
        for number, style in enumerate(self._styles):
            yield from _row(beside, [column.cells[number] for column in beside], widths, style)
            for column in below:
                if column.cells[number].plain:
                    yield from _fact(column.heading, column.cells[number], style, 4, width)

    def _stacked(self, width: int) -> Iterator[Text]:
        for number, style in enumerate(self._styles):
            if number and self._show_header:
                yield Text()
            heads = [column.heading for column in self._columns]
            cells = [column.cells[number] for column in self._columns]
            if not self._show_header:
                heads, cells = cells[:1] + heads[2:], cells[1:]
            for place, (head, cell) in enumerate(zip(heads, cells, strict=True)):
                if cell.plain or (head.plain and not self._show_header):
                    yield from _fact(head, cell, style, 0 if place == 0 else 2, width)


def _row(columns: Sequence[_Column], cells: Sequence[Text], widths: Sequence[int], style: str) -> Iterator[Text]:
    drawn = [rows(cell, width, hang=0) for cell, width in zip(cells, widths, strict=True)]
    for height in range(max(map(len, drawn))):
        line = Text(style=style)
        for number, (column, width) in enumerate(zip(columns, widths, strict=True)):
            part = drawn[number][height].copy() if height < len(drawn[number]) else Text()
            part.align("right" if column.right else "left", width)
            line.append(" " * GAP if number else "").append_text(part)
        line.rstrip()
        yield line


def _fact(head: Text, cell: Text, style: str, indent: int, width: int) -> Iterator[Text]:
    """``head: cell``; further lines of the cell below."""
    first, *more = cell.split("\n", allow_blank=True)
    label = Text.assemble(head, (": ", "dim")) if head.plain else Text()
    yield from broken(Text(" " * indent, style).append_text(label).append_text(first), width)
    for line in more:
        yield from broken(Text(" " * (indent + 2), style).append_text(line), width)


def _text(cell: str | Text) -> Text:
    return Text.from_markup(cell, emoji=False) if isinstance(cell, str) else cell.copy()


def _fitted(columns: Sequence[_Column], room: int) -> list[int] | None:
    """The width of each column side by side; None if they do not fit."""
    room -= GAP * (len(columns) - 1)
    natural = [column.natural for column in columns]
    if sum(natural) <= room:
        return natural
    for after_dots in (False, True):
        least = [column.least(after_dots) for column in columns]
        if sum(least) <= room:
            return _shared_out(least, natural, room)
    return None


def _shared_out(least: Sequence[int], natural: Sequence[int], room: int) -> list[int]:
    """What is left of ``room`` goes to the narrowest columns first, up to their natural width."""
    for cap in range(room, 0, -1):
        widths = [min(wide, max(narrow, cap)) for narrow, wide in zip(least, natural, strict=True)]
        if sum(widths) <= room:
            return widths
    return list(least)
