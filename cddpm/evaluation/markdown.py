"""A table as Markdown: pipes that GitHub draws, padded so that the text itself can be read in a terminal."""

import re
import textwrap
from collections.abc import Iterator, Sequence

from cddpm.evaluation.grid import Grid, Line, Text, details, headline
from cddpm.evaluation.table import HEADLINE, ResultTable
from cddpm.tracking.provenance import header

WIDTH = 120
"""Characters of a line; wider tables are cut between data sets."""
_LIST_SIGN = re.compile(r" ([-+*#>]|\d+[.)])(?= )")
_GLUE = "\x1f"
"""Stands for a space at which no line may break."""


def document(table: ResultTable, title: str, measures: Sequence[str] = HEADLINE, width: int | None = WIDTH) -> str:
    """Header, headline table, and one long table per data set."""
    parts = [f"# {title}", summary(table, measures, width)]
    parts += [f"## {name}: all measures\n\n{_drawn(details(table, name), width)}" for name in table.datasets]
    return "\n\n".join(parts) + "\n"


def summary(table: ResultTable, measures: Sequence[str] = HEADLINE, width: int | None = WIDTH) -> str:
    """Header lines and the headline table, for a README."""
    lines = [f"**{name}:** {text}" for name, text in header(table.provenance, table.folds)]
    return _listed(lines, width) + "\n\n" + _drawn(headline(table, measures), width)


def _drawn(grid: Grid, width: int | None) -> str:
    if not grid.lines or not grid.head:
        return "No method has a number here."
    blocks = ["\n".join(_block(block)) for block in grid.blocks(width, strong_extra=4)]
    return "\n\n".join([*blocks, _listed(grid.legend, width)])


def _listed(lines: Sequence[str], width: int | None) -> str:
    """As a list whose items are wrapped; no continuation begins with what Markdown takes for a list, head or quotation."""
    if width is None:
        return "\n".join(f"- {line}" for line in lines)
    glued = [_LIST_SIGN.sub(f"{_GLUE}\\1", line) for line in lines]
    wrapped = [textwrap.fill(f"- {line}", width, subsequent_indent="  ", break_long_words=False) for line in glued]
    return "\n".join(wrapped).replace(_GLUE, " ")


def _block(grid: Grid) -> Iterator[str]:
    widths, labels = grid.widths(strong_extra=4), len(grid.labels)
    yield _row([*grid.labels, *grid.head], widths, labels)
    yield "|" + "|".join(_rule(w, i < labels) for i, w in enumerate(widths)) + "|"
    for line in grid.lines:
        yield _row(_texts(line), widths, labels)


def _rule(width: int, left: bool) -> str:
    return "-" * (width + 2) if left else "-" * (width + 1) + ":"


def _texts(line: Line) -> list[str]:
    return [*line.labels, *(_marked(cell) for cell in line.cells)]


def _marked(cell: Text) -> str:
    return f"**{cell.text}**" if cell.strong else cell.text


def _row(texts: Sequence[str], widths: Sequence[int], labels: int) -> str:
    cells = [
        _escaped(text).ljust(width) if i < labels else _escaped(text).rjust(width)
        for i, (text, width) in enumerate(zip(texts, widths, strict=True))
    ]
    return "| " + " | ".join(cells) + " |"


def _escaped(text: str) -> str:
    return text.replace("|", r"\|")
