"""``cddpm cluster``: look at what describes a cluster before it costs money, and at a running one before it is given work."""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from cddpm.cli.shell import TrackingUri, print_json
from cddpm.errors import ConfigError, SearchError, TrackingError
from cddpm.text import Console, Table, numbers

if TYPE_CHECKING:
    from cddpm.cluster.doctor import Check, Report

app = typer.Typer(no_args_is_help=True, help="Check what describes a cluster, and look at a running one.")

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of lines.")]


@app.command()
def check(
    file: Annotated[
        Path,
        typer.Argument(metavar="FILE", help="A file for 'ray up', or manifests of KubeRay.", show_default=False),
    ],
    as_json: AsJson = False,
) -> None:
    """List all faults of a cluster file without starting a machine. Exit code 2 if there are any.

    Found is what Ray itself refuses, and what it lets pass: placeholders, other versions, open ports, secrets, no token,
    no storage, missing files, spot machines without a fallback.
    """
    from cddpm.cluster.file import check as look  # with Ray

    found = look(file)
    if as_json:
        print_json({"file": str(file), "faults": [fault._asdict() for fault in found]})
        raise typer.Exit(ConfigError.exit_code if found else 0)
    if found:
        raise ConfigError("\n".join(f"{file}: {fault}" for fault in found))
    console = Console()
    console.print(f"{console.path(file)}: no fault was found")


@app.command()
def doctor(
    address: Annotated[str, typer.Option(help="Ray cluster (or RAY_ADDRESS); auto: the one of this machine.")] = "auto",
    storage: Annotated[str | None, typer.Option(help="Where sweeps keep their output: tried from every node.")] = None,
    tracking_uri: TrackingUri = None,
    as_json: AsJson = False,
) -> None:
    """Try on every node what a training needs, within a minute or two. Exit code 6 if there is a fault, each with its remedy.

    Versions, clocks, disks and shared memory, an all-reduce between the nodes; the storage and MLflow if they are named.
    """
    from cddpm import cluster
    from cddpm.cluster.doctor import examine

    cluster.connect(address)
    report = examine(storage)
    if tracking_uri:
        report.checks.append(_lab_book(tracking_uri))
    if as_json:
        print_json({**dataclasses.asdict(report), "faults": len(report.faults)})
    else:
        show(report, Console())
    raise typer.Exit(SearchError.exit_code if report.faults else 0)


def _lab_book(uri: str) -> "Check":
    from cddpm.cluster.doctor import Check
    from cddpm.tracking.address import without_password
    from cddpm.tracking.connection import connect

    try:
        connect(uri, create=False)
    except TrackingError as error:
        found, _, remedy = str(error).partition(". ")
        return Check("MLflow", found, remedy or "correct --tracking-uri (or MLFLOW_TRACKING_URI)")
    return Check("MLflow", f"{without_password(uri)} answers")


def show(report: "Report", console: Console) -> None:
    """A table of the nodes, a line for each check."""
    table = Table(numbers.counted(len(report.nodes), "node"))
    for heading in ("node", "CPUs", "GPUs", "interface", "cache", "Ray's files", "/dev/shm"):
        table.add_column(heading, justify="left" if heading in ("node", "interface") else "right", no_wrap=True)
    for address, (cpus, gpus, node) in report.nodes.items():
        said = ["-"] * 4
        if node:
            rooms = (node.cache, node.temporary, node.shared_memory)
            said = [escape(node.interface or "loopback"), *(numbers.size(room.free) for room in rooms)]
        table.add_row(escape(address), f"{cpus:g}", f"{gpus:g}", *said)
    console.print(table)
    for check in report.checks:
        mark = "[red]✗[/]" if check.fault else "[green]✓[/]"
        remedy = f"; [bold]{escape(check.remedy)}[/]" if check.fault else ""
        console.print(f"{mark} {escape(check.what)}: {escape(check.found)}{remedy}", hang=4)
    faults = len(report.faults)
    console.print(f"[red]{numbers.counted(faults, 'fault')}[/]" if faults else "[green]no fault was found[/]")
