"""Speed and memory of this machine.

python launch/bench.py search | train | reconstruct | data | noise | prepare | tracking [--quick]
python launch/bench.py start
python launch/bench.py storage URI [--quick]
python launch/bench.py race SWEEP [--plot FILE.png] [--output FILE.json]

All but the last take --output FILE.json, --json (the numbers instead of the table) and --baseline FILE.json (what --output wrote
before: what moved since). Exit code 1: a bar is missed, or of a baseline a ratio got worse by more than a third.

The numbers mean something only while the machine does nothing else.
"""

import json
import os
import platform
import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from cddpm.cli.shell import guarded_app
from cddpm.errors import ConfigError
from cddpm.models import precision
from cddpm.text import Console, Table

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, no_args_is_help=True, help=__doc__)
Output = Annotated[Path | None, typer.Option(help="JSON file for the numbers.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the numbers as JSON instead of a table.")]
Baseline = Annotated[Path | None, typer.Option(help="JSON file of an earlier run: tell what moved.")]
Quick = Annotated[bool, typer.Option("--quick", help="Small sizes: shows that it runs; bars are not held.")]


@app.command()
def search(
    quick: Quick = False,
    output: Output = None,
    as_json: AsJson = False,
    baseline: Baseline = None,
) -> None:
    """Measure the search against its bars, on a drawn cohort; leaves with 1 if one is missed."""
    from speed import rows
    from speed.row import pin

    how = _how(quick, output, as_json, baseline)
    console, cores, sizes = Console(), pin(), rows.QUICK if quick else rows.Sizes()
    found = []
    with tempfile.TemporaryDirectory(prefix="cddpm-bench-") as folder, console.status("drawing a cohort") as status:
        for line in rows.search_rows(Path(folder), sizes, cores):
            found.append(line)
            status.update(f"measured: {line.work}")
    _told(found, cores, how, console)


@app.command()
def train(quick: Quick = False, output: Output = None, as_json: AsJson = False, baseline: Baseline = None) -> None:
    """Measure a training step of the full model against the plain one, and the machine's ceilings; 1 if a bar is missed."""
    from speed import networks

    _networks(networks.train_rows, _how(quick, output, as_json, baseline))


@app.command()
def reconstruct(
    quick: Quick = False, output: Output = None, as_json: AsJson = False, baseline: Baseline = None
) -> None:
    """Measure the reconstruction of a volume against the plain way; leaves with 1 if a bar is missed."""
    from speed import networks

    _networks(networks.reconstruct_rows, _how(quick, output, as_json, baseline))


@app.command()
def data(quick: Quick = False, output: Output = None, as_json: AsJson = False, baseline: Baseline = None) -> None:
    """Measure the batches of a training; leaves with 1 if a bar is missed."""
    from speed import networks

    _networks(lambda folder, sizes, cores: networks.data_rows(folder, sizes), _how(quick, output, as_json, baseline))


@app.command()
def noise(quick: Quick = False, output: Output = None, as_json: AsJson = False, baseline: Baseline = None) -> None:
    """Measure noise fields; leaves with 1 if a bar is missed."""
    from speed import networks

    _networks(lambda folder, sizes, cores: networks.noise_rows(sizes), _how(quick, output, as_json, baseline))


@app.command()
def prepare(quick: Quick = False, output: Output = None, as_json: AsJson = False, baseline: Baseline = None) -> None:
    """Measure how raw scans are prepared, step by step, and how scans become slices; leaves with 1 if a bar is missed."""
    from speed import raw, scans
    from speed.row import pin

    how = _how(quick, output, as_json, baseline)
    console, cores, found = Console(), pin(), []
    with tempfile.TemporaryDirectory(prefix="cddpm-bench-") as folder, console.status("drawing scans") as status:
        into_slices = scans.rows(Path(folder), scans.QUICK if quick else scans.Sizes())
        for row in chain(into_slices, raw.rows(Path(folder), raw.QUICK if quick else raw.Sizes())):
            found.append(row)
            status.update(f"measured: {row.work}")
    _told(found, cores, how, console)


@dataclass(frozen=True)
class Told:
    """How the numbers are told: the options that all of them share."""

    quick: bool
    output: Path | None
    as_json: bool
    before: dict[str, float]
    """What an earlier run measured, by work."""


def _how(quick: bool, output: Path | None, as_json: bool, baseline: Path | None) -> Told:
    """Raises ``ConfigError``, before anything is measured, for a baseline that is none."""
    return Told(quick, output, as_json, {} if baseline is None else _before(baseline, quick))


def _networks(rows_of: Callable[[Path, Any, int], Iterable[Any]], how: Told) -> None:
    from speed import networks
    from speed.row import pin

    console, cores, found = Console(), pin(), []
    with tempfile.TemporaryDirectory(prefix="cddpm-bench-") as folder, console.status("measuring") as status:
        for row in rows_of(Path(folder), networks.QUICK if how.quick else networks.Sizes(), cores):
            found.append(row)
            status.update(f"measured: {row.work}")
    _told(found, cores, how, console)


@app.command()
def start(output: Output = None, as_json: AsJson = False, baseline: Baseline = None) -> None:
    """Measure how long a training waits for its first step, on a Ray of its own; leaves with 1 if the bar is missed."""
    from speed import start as starts
    from speed.row import pin

    how = _how(False, output, as_json, baseline)
    console, cores = Console(), pin()
    with tempfile.TemporaryDirectory(prefix="cddpm-bench-") as folder, console.status("starting trainings"):
        found = list(starts.measure(Path(folder)))
    _told(found, cores, how, console)


@app.command()
def tracking(
    quick: Quick = False,
    output: Output = None,
    as_json: AsJson = False,
    baseline: Baseline = None,
) -> None:
    """Measure what the lab book costs a training step, on the quickstart's networks; leaves with 1 if the bar is missed."""
    from speed import logging_cost
    from speed.row import pin

    how = _how(quick, output, as_json, baseline)
    console, cores = Console(), pin()
    sizes = logging_cost.QUICK if quick else logging_cost.Sizes()
    with tempfile.TemporaryDirectory(prefix="cddpm-bench-") as folder, console.status("training with and without"):
        found = logging_cost.measure(Path(folder), sizes)
    _told(found, cores, how, console)


@app.command()
def storage(
    uri: Annotated[str, typer.Argument(help="An object store: s3://BUCKET/PREFIX or another.", show_default=False)],
    quick: Quick = False,
    output: Output = None,
    as_json: AsJson = False,
    baseline: Baseline = None,
) -> None:
    """Measure artifacts and states of trainings on their way to a store and back; leaves with 1 if a bar is missed."""
    from speed import storage as stores
    from speed.row import pin

    from cddpm.storage import settled

    how = _how(quick, output, as_json, baseline)
    console, cores, found = Console(), pin(), []
    with tempfile.TemporaryDirectory(prefix="cddpm-bench-") as folder, console.status("moving an artifact") as status:
        for row in stores.measure(settled(uri), Path(folder), stores.QUICK if quick else stores.Sizes()):
            found.append(row)
            status.update(f"measured: {row.work}")
    _told(found, cores, how, console)


def _told(found: list[Any], cores: int, how: Told, console: Console) -> None:
    """Tell the numbers and keep them, and leave with 1 if a bar is missed or a ratio is much worse than it was."""
    from speed.row import worse

    from cddpm import artifact
    from cddpm.cli.shell import print_json

    numbers = {"machine": _machine(cores), "quick": how.quick, "rows": [row.plain() for row in found]}
    if how.output is not None:
        artifact.write_json(how.output, numbers)
    missed = [] if how.quick else [row.work for row in found if row.held is False]
    fallen = [row.work for row in found if worse(row, how.before.get(row.work))]
    if how.as_json:
        print_json({**numbers, "worse": fallen})
    else:
        console.print(_table(found, how.before))
        for number, row in enumerate(found, start=1):
            if row.detail:
                console.print(f"{number}  {escape(row.detail)}", hang=3)
        for words, works in ((f"{len(missed)} of the bars are missed", missed), ("a third worse than before", fallen)):
            if works:
                console.print(f"[red]{words}[/]: {escape('; '.join(works))}")
    if missed or fallen:
        raise typer.Exit(1)


def _before(path: Path, quick: bool) -> dict[str, float]:
    """What was measured, by work. Raises ``ConfigError`` for a file that ``--output`` did not write, or of other sizes."""
    try:
        found = json.loads(path.read_text())
        rows = {row["work"]: float(row["measured"]) for row in found["rows"]}
    except FileNotFoundError:
        raise ConfigError(f"--baseline {path}: no such file") from None
    except (ValueError, KeyError, TypeError):
        raise ConfigError(f"--baseline {path}: no file that --output wrote") from None
    if found.get("quick") is not quick:
        raise ConfigError(f"--baseline {path}: measured {'without' if quick else 'with'} --quick; sizes are others")
    return rows


@app.command()
def race(
    sweep: Annotated[str, typer.Argument(help="A finished sweep: its name, or its folder.", show_default=False)],
    output_dir: Annotated[Path, typer.Option(help="Where sweeps are kept.")] = Path("outputs"),
    plot: Annotated[Path | None, typer.Option(help="PNG file for the two courses.")] = None,
    output: Output = None,
) -> None:
    """Search a finished sweep's scoring space again, on its cache and then the plain way for the same wall-clock."""
    from speed import race as races
    from speed.row import pin

    from cddpm import artifact
    from cddpm.search.record import find

    console, cores = Console(), pin()
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


def _table(found: list[Any], before: Mapping[str, float]) -> Table:
    table = Table("Speed and memory")
    columns = ("", "work", "bar", "measured", *(["before"] if before else []), "held")
    for name in columns:
        table.add_column(name, justify="right" if name in ("bar", "measured", "before") else "left")
    for number, row in enumerate(found, start=1):
        bar = "" if row.bar is None else f"{row.sense} {row.bar:,g}"
        held = {None: "", True: "yes", False: "[red]no[/]"}[row.held]
        once = before.get(row.work)
        earlier = [] if not before else ["" if once is None else _digits(once)]
        table.add_row(str(number), escape(row.work), bar, escape(_measured(row)), *earlier, held)
    return table


def _measured(row: Any) -> str:
    spread = "" if row.spread is None else f" ± {100 * row.spread:.0f} %"
    return f"{_digits(row.measured)} {row.unit}{spread}"


def _digits(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _machine(cores: int) -> dict[str, Any]:
    return {
        "processor": _processor() or platform.processor() or platform.machine(),
        "bfloat16": sorted(precision.cpu_flags() & precision.CPU_FLAGS.keys()),
        "cores": cores,
        "load": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
    }


def _processor(cpuinfo: Path = Path("/proc/cpuinfo")) -> str | None:
    """The processor's name as Linux tells it."""
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, None)


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    guarded_app(app)
