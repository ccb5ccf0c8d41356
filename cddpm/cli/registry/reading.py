"""The commands of ``cddpm registry`` that change nothing there: list, best, show, compare, lineage, pull, verify."""

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from cddpm.cli.registry import tables
from cddpm.cli.registry.options import (
    TEST_WARNING,
    Archived,
    AsJson,
    Dataset,
    Metric,
    Model,
    OutputDir,
    Ref,
    Refs,
    Split,
    Uri,
    Where,
    opened,
    say_loudly,
)
from cddpm.cli.shell import print_json
from cddpm.errors import ArtifactError, ConfigError
from cddpm.text import Console, whole
from cddpm.tracking import query
from cddpm.tracking.catalogue import Version

_SHOWN = 100
"""Rows of a list: nobody reads more, and drawing thousands takes seconds."""


def list_command(
    where: Where = "",
    sweep: Annotated[str | None, typer.Option("--sweep", help="Only of this sweep.", show_default=False)] = None,
    sort: Annotated[
        str, typer.Option("--sort", help="version (newest first), created, trial, or a metric (best first).")
    ] = "version",
    archived: Archived = False,
    top: Annotated[
        int | None,
        typer.Option("--top", min=1, help="How many; without it the first 100 (in JSON all).", show_default=False),
    ] = None,
    uri: Uri = None,
    model: Model = "cddpm",
    as_json: AsJson = False,
) -> None:
    """List versions, newest first."""
    conditions = _conditions(where)
    registry = opened(uri, model)
    found = query.in_order(registry.select(conditions, sweep, archived), sort, model)[:top]
    if query.is_about_test(conditions) or sort.startswith("test/"):
        say_loudly(TEST_WARNING)
    if as_json:
        print_json([version.plain() for version in found])
    elif found:
        metrics = {"objective": "objective", "val/dice": "val/dice"}
        keys = {key for version in found for key in version.metrics}
        sorted_by = {key: key for key in (sort, f"val/{sort}") if key in keys}
        shown = found if top else found[:_SHOWN]
        tables.versions(shown, f"{model}: {len(found)} versions", {**metrics, **sorted_by})
        if len(found) > len(shown):
            Console().print(
                f"and {len(found) - len(shown)} more: --top {len(found)} shows them, --where chooses among them"
            )
    elif where or sweep:
        Console().print(f"No version of '{escape(model)}' fits.")
    else:
        Console().print(f"No model is registered as '{escape(model)}' in {whole(registry.uri)}.")


def best(
    metric: Metric = "dice",
    dataset: Dataset = None,
    split: Split = "val",
    where: Where = "",
    top: Annotated[int, typer.Option("--top", min=1, help="How many.")] = 5,
    archived: Archived = False,
    uri: Uri = None,
    model: Model = "cddpm",
    as_json: AsJson = False,
) -> None:
    """Rank versions by a validation metric, best first."""
    conditions = _conditions(where)
    if query.is_about_test(conditions) and split != "test":
        raise ConfigError(f'--where "{where}": looks at test; choose by validation, or say --split test')
    registry = opened(uri, model)
    found = registry.best(metric, dataset, split, top, conditions, archived)
    key, on_test = query.score_key(metric, dataset, split), split == "test"
    if on_test:
        say_loudly(TEST_WARNING)
    if as_json:
        warning = {"warning": TEST_WARNING} if on_test else {}
        ranking = {"metric": key, "split": split, "chosen_on_test": on_test, **warning}
        print_json({**ranking, "versions": [version.plain() for version in found]})
        return
    if not found:
        Console().print(f"No version of '{escape(model)}' fits.")
        return
    also = sorted({name for v in found for name in v.metrics if _is_sibling(name, metric, split)} - {key})
    columns = {name: _column(name) for name in (key, *also[:3])}
    tables.versions(found, f"{model}: best by {key}" + (", WHICH IS TEST" if on_test else ""), columns)


def show(ref: Ref, uri: Uri = None, model: Model = "cddpm", as_json: AsJson = False) -> None:
    """Show one version: where it comes from, what was measured, who promoted it and why."""
    registry = opened(uri, model)
    version = registry.find(ref)
    audit = registry.promotions(version.number)
    if as_json:
        print_json({**version.plain(), "promotions": [entry.plain() for entry in audit]})
        return
    tables.facts(version, model)
    if audit:
        tables.audit(audit)


def compare(refs: Refs, split: Split = "val", uri: Uri = None, model: Model = "cddpm", as_json: AsJson = False) -> None:
    """Settings that differ, metrics, and scores per subject with intervals and paired tests against the first."""
    from cddpm.tracking.version_comparison import side_by_side

    if len(refs) < 2:
        raise ConfigError(f"compare {refs[0]}: name at least two versions")
    query.score_key("dice", None, split)  # is it a split?
    registry = opened(uri, model)
    found = side_by_side(registry, [registry.find(ref) for ref in refs], split)
    if split == "test":
        say_loudly("compared on TEST: choose no model by it")
    if as_json:
        print_json(found.plain())
    else:
        tables.comparison(found, model)


def lineage(
    ref: Ref,
    output_dir: OutputDir = Path("outputs"),
    uri: Uri = None,
    model: Model = "cddpm",
    as_json: AsJson = False,
) -> None:
    """What a version descends from: data, store, encoder, checkpoint, reconstruction, score."""
    from cddpm.tracking.lineage import ancestry

    registry = opened(uri, model)
    version = registry.find(ref)
    steps = ancestry(registry, version, output_dir / "artifacts")
    if as_json:
        print_json({"model": model, "version": version.number, "steps": [step.plain() for step in steps]})
    else:
        tables.tree(steps, f"{model}, version {version.number}")


def pull(
    ref: Ref,
    directory: Annotated[Path, typer.Argument(metavar="DIRECTORY", help="Where to put it.", show_default=False)],
    uri: Uri = None,
    model: Model = "cddpm",
    as_json: AsJson = False,
) -> None:
    """Fetch a model package and compare its digests."""
    registry = opened(uri, model)
    version = registry.find(ref)
    path = registry.pull(str(version.number), directory).resolve()
    if as_json:
        print_json({"version": version.number, "fingerprint": version.fingerprint, "directory": str(path)})
    else:
        console = Console()
        console.print(f"Version {version.number} ({version.fingerprint}) is in {console.path(path)}")


def verify(
    refs: Annotated[
        list[str] | None, typer.Argument(metavar="[REF]...", help="Without any, all versions, archived ones too.")
    ] = None,
    uri: Uri = None,
    model: Model = "cddpm",
    as_json: AsJson = False,
) -> None:
    """Compare every registered package with its digests; exit code 4 if one is damaged or gone."""
    registry = opened(uri, model)
    chosen = [registry.find(ref) for ref in refs] if refs else registry.versions()
    rows: list[tuple[Version, str | None]] = []
    for version in chosen:
        try:
            registry.verify(version)
            rows.append((version, None))
        except ArtifactError as error:
            rows.append((version, str(error)))
    if as_json:
        print_json(
            [
                {"version": v.number, "fingerprint": v.fingerprint, "whole": fault is None, "fault": fault}
                for v, fault in rows
            ]
        )
    else:
        tables.checks(rows, f"{model}: {len(rows)} packages")
    bad = [fault for _, fault in rows if fault is not None]
    if bad:
        raise ArtifactError(f"{len(bad)} of {len(rows)} registered packages are damaged or gone:\n" + "\n".join(bad))


def _conditions(text: str) -> list[query.Comparison]:
    return query.parse(text, "--where") if text else []


def _is_sibling(name: str, metric: str, split: str) -> bool:
    return name.startswith(f"{split}/") and name.endswith(f"/{metric}")


def _column(metric: str) -> str:
    """The data set of ``val/Brats21/dice``; ``val/dice`` is the mean over them."""
    parts = metric.split("/")
    return parts[1] if len(parts) == 3 else "mean" if len(parts) == 2 else metric
