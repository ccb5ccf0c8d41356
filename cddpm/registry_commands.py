"""``cddpm registry``: list, compare, promote and fetch trained models."""

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

if TYPE_CHECKING:  # MLflow takes a second to import: only a command that runs pays for it
    from cddpm.tracking.registry import Promotion, Registry, Version

app = typer.Typer(no_args_is_help=True, help="List, compare, promote and fetch trained models.")

_SHOWN_ELSEWHERE = ("mlflow.", "cddpm.sweep", "cddpm.trial", "cddpm.kind", "cddpm.fingerprint.package")

Uri = Annotated[
    str | None,
    typer.Option(
        "--tracking-uri",
        envvar="MLFLOW_TRACKING_URI",
        help="MLflow server or database; without it sqlite:///outputs/mlflow.db here.",
        show_default=False,
    ),
]
Model = Annotated[str, typer.Option("--model", help="Name of the registered model.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
Ref = Annotated[
    str, typer.Argument(metavar="REF", help="Version number, alias, run id or <sweep>/<trial>.", show_default=False)
]
Metric = Annotated[str, typer.Option("--metric", help="dice, auprc, ... or objective.")]
Dataset = Annotated[str | None, typer.Option("--dataset", help="One data set; without it the mean over all.")]
Split = Annotated[
    str, typer.Option("--split", help="val, or test if you must: a choice made on test is no test any more.")
]


@app.command("list")
def list_command(uri: Uri = None, model: Model = "cddpm", as_json: AsJson = False) -> None:
    """List all versions, newest first."""
    registry = _open(uri, model)
    versions = registry.versions()
    if as_json:
        _print_json([_plain(version) for version in versions])
    elif versions:
        _print_versions(
            versions, f"{model}: {len(versions)} versions", {"objective": "objective", "val/dice": "val/dice"}
        )
    else:
        Console().print(f"No model is registered as '{escape(model)}' in {escape(registry.uri)}.", soft_wrap=True)


@app.command()
def best(
    metric: Metric = "dice",
    dataset: Dataset = None,
    split: Split = "val",
    top: Annotated[int, typer.Option("--top", min=1, help="How many.")] = 5,
    uri: Uri = None,
    model: Model = "cddpm",
    as_json: AsJson = False,
) -> None:
    """Rank versions by a validation metric, best first."""
    registry = _open(uri, model)
    versions = registry.best(metric, dataset, split, top)
    if as_json:
        _print_json([_plain(version) for version in versions])
        return
    key = registry.metric_key(metric, dataset, split)
    also = sorted({name for v in versions for name in v.metrics if _is_sibling(name, metric, split)} - {key})
    columns = {name: _column(name) for name in (key, *also[:3])}
    _print_versions(versions, f"{model}: best by {key}", columns, dated=False)


@app.command()
def show(ref: Ref, uri: Uri = None, model: Model = "cddpm", as_json: AsJson = False) -> None:
    """Show one version: where it comes from, what was measured, who promoted it and why."""
    registry = _open(uri, model)
    version = registry.find(ref)
    audit = registry.promotions(version.number)
    if as_json:
        _print_json({**_plain(version), "promotions": [dataclasses.asdict(entry) for entry in audit]})
        return
    _print_facts(version, model)
    if audit:
        _print_audit(audit)


@app.command()
def promote(
    ref: Ref,
    alias: Annotated[str, typer.Argument(metavar="ALIAS", help="Such as champion.", show_default=False)],
    why: Annotated[str, typer.Option("--why", help="The reason; it is kept.", show_default=False)],
    uri: Uri = None,
    model: Model = "cddpm",
    as_json: AsJson = False,
) -> None:
    """Point an alias to a version whose package verifies, and keep who did it, when and why."""
    entry = _open(uri, model).promote(ref, alias, why)
    if as_json:
        _print_json(dataclasses.asdict(entry))
        return
    before = f" (was version {entry.previous})" if entry.previous not in (None, entry.version) else ""
    Console().print(f"'{alias}' is now version {entry.version} of '{escape(model)}'{before}.", soft_wrap=True)


@app.command()
def pull(
    ref: Ref,
    directory: Annotated[Path, typer.Argument(metavar="DIRECTORY", help="Where to put it.", show_default=False)],
    uri: Uri = None,
    model: Model = "cddpm",
    as_json: AsJson = False,
) -> None:
    """Fetch a model package and compare its digests."""
    registry = _open(uri, model)
    version = registry.find(ref)
    path = registry.pull(str(version.number), directory).resolve()
    if as_json:
        _print_json({"version": version.number, "fingerprint": version.fingerprint, "directory": str(path)})
    else:
        Console().print(f"Version {version.number} ({version.fingerprint}) is in {escape(str(path))}", soft_wrap=True)


def _open(uri: str | None, model: str) -> "Registry":
    from cddpm.tracking.address import default_uri
    from cddpm.tracking.registry import Registry

    return Registry.open(uri or default_uri(Path("outputs")), model)


def _plain(version: "Version") -> dict[str, Any]:
    return {**dataclasses.asdict(version), "trial_name": version.trial_name}


def _print_json(value: Any) -> None:
    typer.echo(json.dumps(value, indent=2, sort_keys=True))


def _is_sibling(name: str, metric: str, split: str) -> bool:
    return name.startswith(f"{split}/") and name.endswith(f"/{metric}")


def _column(metric: str) -> str:
    """The data set of ``val/Brats21/dice``; ``val/dice`` is the mean over them."""
    parts = metric.split("/")
    return parts[1] if len(parts) == 3 else "mean" if len(parts) == 2 else metric


def _print_versions(versions: list["Version"], title: str, metrics: dict[str, str], dated: bool = True) -> None:
    """A table with a column per metric name -> heading."""
    table = _table(title)
    table.add_column("version", justify="right")
    table.add_column("trial", overflow="fold")
    for heading in metrics.values():
        table.add_column(escape(heading), justify="right", no_wrap=True)
    table.add_column("aliases", style="green", overflow="fold")
    if dated:
        table.add_column("created", no_wrap=True)
    for version in versions:
        values = [_number(version.metrics.get(name)) for name in metrics]
        name = escape(version.trial_name or version.run_id)
        when = [version.created[:10]] if dated else []
        table.add_row(str(version.number), name, *values, escape("\n".join(version.aliases)), *when)
    Console().print(table)


def _table(title: str, **options: bool) -> Table:
    return Table(title=escape(title), title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, **options)  # type: ignore[arg-type]


def _print_facts(version: "Version", model: str) -> None:
    table = _table(f"{model}, version {version.number}", show_header=False)
    table.add_column(style="cyan", no_wrap=True)
    table.add_column(overflow="fold")
    rows = {
        "aliases": ", ".join(version.aliases) or "-",
        "trial": version.trial_name or "-",
        "run": version.run_id,
        "created": _minute(version.created) + " UTC",
        "package": version.fingerprint,
        **{name: f"{value:.4f}" for name, value in sorted(version.metrics.items())},
        **{name: value for name, value in sorted(version.tags.items()) if not name.startswith(_SHOWN_ELSEWHERE)},
    }
    for name, value in rows.items():
        table.add_row(escape(name), escape(value))
    Console().print(table)


def _print_audit(audit: list["Promotion"]) -> None:
    table = _table("Promotions")
    for name in ("when (UTC)", "alias", "was", "who"):
        table.add_column(name, no_wrap=True)
    table.add_column("why", overflow="fold", ratio=1)
    for entry in audit:
        was = str(entry.previous) if entry.previous is not None else "-"
        table.add_row(_minute(entry.when), escape(entry.alias), was, escape(entry.who), escape(entry.why))
    Console().print(table)


def _minute(when: str) -> str:
    return when[:16].replace("T", " ")


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
