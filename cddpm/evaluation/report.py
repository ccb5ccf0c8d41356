"""The files of an evaluation, and what a person reads in the terminal before and after it.

A table is drawn in two ways: as Markdown, with pipes that GitHub draws, padded so that the text itself can be read in a terminal;
and for the terminal, as wide as that is. Both are cut between data sets.
"""

import csv
import io
import re
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.text import Text as RichText

from cddpm import artifact
from cddpm.config import PUBLISHED_SHAPE, DataConfig
from cddpm.data.phantom.folder import LABEL
from cddpm.evaluation import table
from cddpm.evaluation.fold import Outcome, all_results
from cddpm.evaluation.grid import Grid, Line, Text, details, headline
from cddpm.evaluation.plan import Plan
from cddpm.evaluation.table import HEADLINE, ResultTable
from cddpm.storage import is_uri
from cddpm.text import Console, Table
from cddpm.text.numbers import fine_score
from cddpm.tracking import provenance
from cddpm.tracking.address import to_publish
from cddpm.tracking.provenance import header

WIDTH = 120
"""Characters of a line of Markdown; wider tables are cut between data sets."""
_LIST_SIGN = re.compile(r" ([-+*#>]|\d+[.)])(?= )")
_GLUE = "\x1f"
"""Stands for a space at which no line may break."""
SHIFT_COLUMNS = ("dice", "oracle_dice", "auprc", "l1_ratio", "jensen_shannon", "wasserstein")
"""Of domain shifts, in the Markdown; the CSV has all."""


@dataclass(frozen=True)
class Files:
    """What ``write`` made."""

    table: ResultTable
    markdown: Path
    all: list[Path]


def write(plan: Plan, outcomes: Sequence[Outcome]) -> Files:
    """The tables as Markdown and CSV, one CSV line per volume, and domain shifts if there were any."""
    results = all_results(outcomes)
    first = plan.first
    where = provenance.here(_data(first.data), _is_real(first.data), window_of(first.data), plan.doubt)
    against = plan.compared_with if len(plan.methods) > 1 else None
    made = table.build_table(results, first.evaluation, where, against, list(plan.methods), seed=first.seed)
    shifts = [
        {"method": o.method, "fold": o.fold, "trained_on": o.modality, **row} for o in outcomes for row in o.shifts
    ]
    text = document(made, f"{plan.kind.capitalize()} '{plan.name}'") + _shift_section(shifts)
    contents = {
        f"{plan.kind}.md": text,
        f"{plan.kind}.csv": table.csv_text(made),
        "volumes.csv": _csv({"method": r.method, "fold": r.fold, **row} for r in results for row in r.rows),
        **({"shifts.csv": _csv(shifts)} if shifts else {}),
    }
    for name, content in contents.items():
        artifact.write_text(plan.folder / name, content)
    return Files(made, plan.folder / f"{plan.kind}.md", [plan.folder / name for name in contents])


def _is_real(data: DataConfig) -> bool:
    """Whether the scans are not a phantom of ours, made here or by ``cddpm data phantom``."""
    if data.data_dir and is_uri(data.data_dir):
        return True
    folders = [Path(data.data_dir)] if data.data_dir else [data.table.parent] if data.table else []
    return bool(folders) and not any((folder / LABEL).exists() for folder in folders)


def _data(data: DataConfig) -> str:
    if data.table is not None:
        return f"{data.table.name} ({data.splits} splits)"
    if data.data_dir is not None:
        return f"{Path(data.data_dir).name} ({data.splits} splits)"
    made = data.phantom
    return (
        f"{made.size} phantom, seed {made.seed} ({made.healthy_train} healthy training scans, {made.unhealthy_val} validation "
        f"and {made.unhealthy_test} test scans per unhealthy data set)"
    )


def window_of(data: DataConfig) -> str:
    """What of each brain is measured: all of it, or the window that is trained on; in voxels, before and after rescaling.

    Lesions beyond a window count in no number of a table but those ``with_unseen``.
    """
    voxels = "voxels as stored" if data.voxel_size_mm is None else f"voxels of {data.voxel_size_mm:g} mm"
    size, rescaled = ("x".join(str(n) for n in shape if n) for shape in (data.volume_shape, data.working_shape))
    where = f"{size} {voxels} around the middle of the {data.centre} ({rescaled} after rescaling)"
    if data.whole_brain:
        return f"all of each brain: every axial slice, through windows of {where}, blended where a plane needs several"
    published = data.volume_shape == PUBLISHED_SHAPE and data.voxel_size_mm in (None, 1.0)
    return f"{'the published window' if published else 'a window'} of {where}"


def _csv(rows: Iterable[Mapping[str, Any]]) -> str:
    """Rows under all their columns, in the order in which these appear."""
    listed = list(rows)
    columns = list(dict.fromkeys(name for row in listed for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(listed)
    return text.getvalue()


def _shift_section(shifts: Sequence[Mapping[str, Any]]) -> str:
    """Mean over folds per method, data set and shift."""
    if not shifts:
        return ""
    places = list(dict.fromkeys((s["method"], s["dataset"], s["shift"]) for s in shifts))
    lines = [
        "| method | data set | shift | " + " | ".join(SHIFT_COLUMNS) + " |",
        "|---|---|---|" + "---:|" * len(SHIFT_COLUMNS),
    ]
    for place in places:
        rows = [s for s in shifts if (s["method"], s["dataset"], s["shift"]) == place]
        lines.append("| " + " | ".join([*place, *(_mean(rows, name) for name in SHIFT_COLUMNS)]) + " |")
    return (
        "\n## Domain shift\n\nThe same models on shifted test scans, at the thresholds of unshifted validation; means over "
        "folds. Jensen-Shannon (nats) and Wasserstein (intensity) tell how far the reconstruction's histogram is from the "
        "input's, inside the brain.\n\n" + "\n".join(lines) + "\n"
    )


def _mean(rows: Sequence[Mapping[str, Any]], name: str) -> str:
    values = [row[name] for row in rows if row.get(name) is not None]
    return fine_score(sum(values) / len(values) if values else None)


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


def opening(plan: Plan, console: Console) -> None:
    """What will be done."""
    modalities = ", ".join(
        f"{config.data.modality} ({', '.join(config.data.unhealthy)})" for config in next(iter(plan.methods.values()))
    )
    trained = sum(config.method == "diffusion" for configs in plan.methods.values() for config in configs)
    console.print(
        f"[bold]{plan.kind} '{plan.name}'[/]: {', '.join(plan.methods)}; folds {', '.join(map(str, plan.folds))}; "
        f"{modalities}: {trained * len(plan.folds)} trainings"
    )


def closing(plan: Plan, files: Files, undelivered: int, console: Console) -> None:
    """The headline, and where the rest is."""
    show(files.table, console)
    if undelivered:
        console.print(escape(to_publish(undelivered, plan.first.output_dir)), style="yellow")
    console.print(f"all measures, per data set: {console.path(files.markdown)}")
    console.print(f"per volume and as CSV:      {console.path(files.markdown.parent)}")


def show(table: ResultTable, console: Console, measures: Sequence[str] = HEADLINE) -> None:
    """Header lines, the headline table and its legend."""
    for name, text in header(table.provenance, table.folds):
        console.print(RichText.assemble((f"{name}: ", "bold"), text))
    _draw(headline(table, measures), console)


def _draw(grid: Grid, console: Console) -> None:
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
