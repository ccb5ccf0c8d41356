"""Speed and memory of this machine against the bars of the project, on a drawn cohort; starts no Ray, needs no data.

python launch/bench.py search [--quick] [--output FILE.json]

Leaves with 1 if a bar is missed. The numbers mean something only while the machine does nothing else.
"""

import os
import platform
import tempfile
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from cddpm.shell import guarded


class Subject(StrEnum):
    """What is measured."""

    search = "search"


def main(
    subject: Annotated[Subject, typer.Argument(help="What is measured.")] = Subject.search,
    quick: Annotated[bool, typer.Option("--quick", help="Small sizes: shows that it runs; bars are not held.")] = False,
    output: Annotated[Path | None, typer.Option(help="JSON file for the numbers.")] = None,
) -> None:
    """Measure and print each row of the table of speed and memory."""
    from cddpm import artifact
    from cddpm.speed import rows

    console, cores, sizes = Console(), rows.pin(), rows.QUICK if quick else rows.Sizes()
    found = []
    with tempfile.TemporaryDirectory(prefix="cddpm-bench-") as folder, console.status("drawing a cohort") as status:
        for row in rows.search_rows(Path(folder), sizes, cores):
            found.append(row)
            status.update(f"measured: {row.work}")
    console.print(_table(found))
    for number, row in enumerate(found, start=1):
        if row.detail:
            console.print(f"{number}  {row.detail}", soft_wrap=True, highlight=False)
    if output is not None:
        artifact.write_json(output, {"machine": _machine(cores), "quick": quick, "rows": [r.plain() for r in found]})
    missed = [row for row in found if row.held is False]
    if missed and not quick:
        console.print(f"[red]{len(missed)} of the bars are missed[/]")
        raise typer.Exit(1)


def _table(found: list[Any]) -> Table:
    table = Table(title="Speed and memory")
    for name in ("", "work", "bar", "measured", "held"):
        table.add_column(name, justify="right" if name in ("bar", "measured") else "left")
    for number, row in enumerate(found, start=1):
        bar = "" if row.bar is None else f"{row.sense} {row.bar:,g}"
        held = {None: "", True: "yes", False: "[red]no[/]"}[row.held]
        table.add_row(str(number), row.work, bar, f"{_digits(row.measured)} {row.unit}", held)
    return table


def _digits(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _machine(cores: int) -> dict[str, Any]:
    return {
        "processor": platform.processor() or platform.machine(),
        "cores": cores,
        "load": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
    }


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    guarded(main)
