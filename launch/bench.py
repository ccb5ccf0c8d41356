"""Speed and memory of this machine.

python launch/bench.py search [--quick] [--output FILE.json]
python launch/bench.py train | reconstruct | data | noise [--quick] [--output FILE.json]
python launch/bench.py start [--output FILE.json]
python launch/bench.py tracking [--quick] [--output FILE.json]
python launch/bench.py storage URI [--quick] [--output FILE.json]
python launch/bench.py race SWEEP [--plot FILE.png] [--output FILE.json]

The numbers mean something only while the machine does nothing else.
"""

import os
import platform
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from cddpm.cli.shell import guarded_app
from cddpm.text import Console, Table

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, no_args_is_help=True, help=__doc__)
Output = Annotated[Path | None, typer.Option(help="JSON file for the numbers.")]


@app.command()
def search(
    quick: Annotated[bool, typer.Option("--quick", help="Small sizes: shows that it runs; bars are not held.")] = False,
    output: Output = None,
) -> None:
    """Measure the search against its bars, on a drawn cohort; leaves with 1 if one is missed."""
    from speed import rows

    console, cores, sizes = Console(), rows.pin(), rows.QUICK if quick else rows.Sizes()
    found = []
    with tempfile.TemporaryDirectory(prefix="cddpm-bench-") as folder, console.status("drawing a cohort") as status:
        for row in rows.search_rows(Path(folder), sizes, cores):
            found.append(row)
            status.update(f"measured: {row.work}")
    _told(found, cores, quick, output, console)


Quick = Annotated[bool, typer.Option("--quick", help="Small sizes: shows that it runs; bars are not held.")]


@app.command()
def train(quick: Quick = False, output: Output = None) -> None:
    """Measure a training step of the full model against the plain one, and the machine's ceilings; 1 if a bar is missed."""
    from speed import networks

    _networks(networks.train_rows, quick, output)


@app.command()
def reconstruct(quick: Quick = False, output: Output = None) -> None:
    """Measure the reconstruction of a volume against the plain way; leaves with 1 if a bar is missed."""
    from speed import networks

    _networks(networks.reconstruct_rows, quick, output)


@app.command()
def data(quick: Quick = False, output: Output = None) -> None:
    """Measure the batches of a training; leaves with 1 if a bar is missed."""
    from speed import networks

    _networks(lambda folder, sizes, cores: networks.data_rows(folder, sizes), quick, output)


@app.command()
def noise(quick: Quick = False, output: Output = None) -> None:
    """Measure noise fields; leaves with 1 if a bar is missed."""
    from speed import networks

    _networks(lambda folder, sizes, cores: networks.noise_rows(sizes), quick, output)


def _networks(rows_of: Callable[[Path, Any, int], Iterable[Any]], quick: bool, output: Path | None) -> None:
    from speed import networks, rows

    console, cores, found = Console(), rows.pin(), []
    with tempfile.TemporaryDirectory(prefix="cddpm-bench-") as folder, console.status("measuring") as status:
        for row in rows_of(Path(folder), networks.QUICK if quick else networks.Sizes(), cores):
            found.append(row)
            status.update(f"measured: {row.work}")
    _told(found, cores, quick, output, console)


@app.command()
def start(output: Output = None) -> None:
    """Measure how long a training waits for its first step, on a Ray of its own; leaves with 1 if the bar is missed."""
    from speed import rows
    from speed import start as starts

    console, cores = Console(), rows.pin()
    with tempfile.TemporaryDirectory(prefix="cddpm-bench-") as folder, console.status("starting trainings"):
        found = list(starts.measure(Path(folder)))
    _told(found, cores, False, output, console)


@app.command()
def tracking(
    quick: Annotated[bool, typer.Option("--quick", help="A few steps: shows that it runs; bars are not held.")] = False,
    output: Output = None,
) -> None:
    """Measure what the lab book costs a training step, on the quickstart's networks; leaves with 1 if the bar is missed."""
    from speed import logging_cost, rows

    console, cores = Console(), rows.pin()
    sizes = logging_cost.QUICK if quick else logging_cost.Sizes()
    with tempfile.TemporaryDirectory(prefix="cddpm-bench-") as folder, console.status("training with and without"):
        found = logging_cost.measure(Path(folder), sizes)
    _told(found, cores, quick, output, console)


@app.command()
def storage(
    uri: Annotated[str, typer.Argument(help="An object store: s3://BUCKET/PREFIX or another.", show_default=False)],
    quick: Annotated[
        bool, typer.Option("--quick", help="A few megabytes: shows that it runs; bars are not held.")
    ] = False,
    output: Output = None,
) -> None:
    """Measure artifacts and states of trainings on their way to a store and back; leaves with 1 if a bar is missed."""
    from speed import rows
    from speed import storage as stores

    from cddpm.storage import settled

    console, cores, found = Console(), rows.pin(), []
    with tempfile.TemporaryDirectory(prefix="cddpm-bench-") as folder, console.status("moving an artifact") as status:
        for row in stores.measure(settled(uri), Path(folder), stores.QUICK if quick else stores.Sizes()):
            found.append(row)
            status.update(f"measured: {row.work}")
    _told(found, cores, quick, output, console)


def _told(found: list[Any], cores: int, quick: bool, output: Path | None, console: Console) -> None:
    """Print the table, keep the numbers, and leave with 1 if a bar is missed."""
    from cddpm import artifact

    console.print(_table(found))
    for number, row in enumerate(found, start=1):
        if row.detail:
            console.print(f"{number}  {escape(row.detail)}", hang=3)
    if output is not None:
        artifact.write_json(output, {"machine": _machine(cores), "quick": quick, "rows": [r.plain() for r in found]})
    missed = [row for row in found if row.held is False]
    if missed and not quick:
        console.print(f"[red]{len(missed)} of the bars are missed[/]")
        raise typer.Exit(1)


@app.command()
def race(
    sweep: Annotated[str, typer.Argument(help="A finished sweep: its name, or its folder.", show_default=False)],
    output_dir: Annotated[Path, typer.Option(help="Where sweeps are kept.")] = Path("outputs"),
    plot: Annotated[Path | None, typer.Option(help="PNG file for the two courses.")] = None,
    output: Output = None,
) -> None:
    """Search a finished sweep's scoring space again, on its cache and then the plain way for the same wall-clock."""
    from speed import race as races
    from speed import rows

    from cddpm import artifact
    from cddpm.search.record import find

    console, cores = Console(), rows.pin()
    with console.status("searching both ways"):
        found = races.run(find(sweep, output_dir), cores)
    cached, plain = found.cached, found.plain
    ratio = (len(cached.best) / cached.seconds[-1]) / (len(plain.best) / plain.seconds[-1])
    table = Table(f"Sweep '{escape(found.sweep)}', {found.volumes} validation volumes, {cores} cores")
    for name in ("way", "settings", "seconds", "settings/hour", "best Dice"):
        table.add_column(name, justify="left" if name == "way" else "right")
    for name, way in (("on cached reconstructions", cached), ("plain", plain)):
        count, seconds = len(way.best), way.seconds[-1]
        table.add_row(name, f"{count:,}", f"{seconds:.1f}", f"{3600 * count / seconds:,.0f}", f"{way.best[-1]:.4f}")
    console.print(table)
    console.print(
        f"{ratio:.0f} times as many settings in the same time; the plain way's best has {found.checked:.4f} exactly"
    )
    if plot is not None:
        races.draw(found, plot)
    if output is not None:
        artifact.write_json(output, {"machine": _machine(cores), **found.plain_data()})


def _table(found: list[Any]) -> Table:
    table = Table("Speed and memory")
    for name in ("", "work", "bar", "measured", "held"):
        table.add_column(name, justify="right" if name in ("bar", "measured") else "left")
    for number, row in enumerate(found, start=1):
        bar = "" if row.bar is None else f"{row.sense} {row.bar:,g}"
        held = {None: "", True: "yes", False: "[red]no[/]"}[row.held]
        table.add_row(str(number), escape(row.work), bar, escape(f"{_digits(row.measured)} {row.unit}"), held)
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
    guarded_app(app)
