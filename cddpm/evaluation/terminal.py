"""A table in the terminal, cut between data sets to its width."""

from collections.abc import Iterator, Sequence

from rich.text import Text as RichText

from cddpm.evaluation.grid import Grid, details, headline
from cddpm.evaluation.table import HEADLINE, ResultTable
from cddpm.text import Console, Table
from cddpm.tracking.provenance import header


def show(table: ResultTable, console: Console, measures: Sequence[str] = HEADLINE) -> None:
    """Header lines, the headline table and its legend."""
    for name, text in header(table.provenance, table.folds):
        console.print(RichText.assemble((f"{name}: ", "bold"), text))
    _show(headline(table, measures), console)


def show_details(table: ResultTable, dataset: str, console: Console) -> None:
    """All measures of one data set."""
    console.print(RichText(f"{dataset}: all measures", "bold"))
    _show(details(table, dataset), console)


def _show(grid: Grid, console: Console) -> None:
    if not grid.lines or not grid.head:
        console.print("No method has a number here.")
        return
    for drawn in tables(grid, console.width):
        console.print(drawn)
    for line in grid.legend:
        console.print(RichText(line, "dim"), hang=0)


def tables(grid: Grid, width: int) -> Iterator[Table]:
    """The blocks of ``grid`` that fit ``width`` characters."""
    for block in grid.blocks(width):
        table = Table()
        for name in block.labels:
            table.add_column(RichText(name))
        for name in block.head:
            table.add_column(RichText(name), justify="right", no_wrap=True)
        for line in block.lines:
            cells = [RichText(cell.text, "bold green" if cell.strong else "") for cell in line.cells]
            table.add_row(*map(RichText, line.labels), *cells, style="dim" if line.faint else "")
        yield table
