"""The commands of ``cddpm registry`` that write: promote, rollback, archive, restore, sync."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from cddpm.cli.registry.options import (
    AsJson,
    Dataset,
    Metric,
    Model,
    OutputDir,
    Ref,
    Split,
    Uri,
    Who,
    opened,
    say_loudly,
)
from cddpm.cli.shell import print_json
from cddpm.errors import ConfigError, UndeliveredError
from cddpm.text import Console, path, whole
from cddpm.tracking import query
from cddpm.tracking.address import default_uri, registry_command
from cddpm.tracking.promotion import Guard, Promotion, not_worse, required

Why = Annotated[str | None, typer.Option("--why", help="The reason; it is kept.", show_default=False)]


def promote(
    ref: Ref,
    alias_argument: Annotated[str | None, typer.Argument(metavar="ALIAS", hidden=True)] = None,
    alias: Annotated[str | None, typer.Option("--alias", help="Such as champion.", show_default=False)] = None,
    why: Why = None,
    require: Annotated[
        list[str] | None,
        typer.Option("--require", help="Only if its metrics fulfil this, as in 'dice>=0.4 and Brats21/auprc>0.3'."),
    ] = None,
    not_worse_than: Annotated[
        str | None,
        typer.Option("--not-worse-than", metavar="REF", help="Only if --metric is at least as good as that of REF."),
    ] = None,
    metric: Metric = "dice",
    dataset: Dataset = None,
    split: Split = "val",
    force: Annotated[bool, typer.Option("--force", help="Allow conditions on test metrics, and other data.")] = False,
    who: Who = None,
    uri: Uri = None,
    model: Model = "cddpm",
    as_json: AsJson = False,
) -> None:
    """Point an alias to a version whose package verifies, and keep who did it, when and why."""
    target = alias or alias_argument
    if target is None:
        raise ConfigError(f"promote {ref}: --alias is missing, as in --alias champion")
    guards = _guards(require or [], not_worse_than, (metric, dataset, split), force)
    registry = opened(uri, model)
    if not_worse_than is not None and not_worse_than != target:
        registry.find(not_worse_than)
    reason = why or "; ".join(guard.text for guard in guards)
    if not reason:
        raise ConfigError(f"promote {ref}: --why is missing: say in a sentence why; it is kept")
    if force:
        say_loudly("--force: conditions on test or on other data are let through; the audit keeps it")
    _told(registry.promote(ref, target, reason, who, guards, force), model, as_json)


def rollback(
    alias: Annotated[str, typer.Argument(metavar="ALIAS", help="Such as champion.", show_default=False)],
    why: Why = None,
    who: Who = None,
    uri: Uri = None,
    model: Model = "cddpm",
    as_json: AsJson = False,
) -> None:
    """Point an alias to what it meant before; again, and it goes one further back."""
    _told(opened(uri, model).rollback(alias, why, who), model, as_json)


def archive(
    ref: Ref,
    why: Annotated[str, typer.Option("--why", help="The reason; it is kept.", show_default=False)],
    who: Who = None,
    uri: Uri = None,
    model: Model = "cddpm",
    as_json: AsJson = False,
) -> None:
    """Hide a version from list and best; nothing is deleted, and what an alias points to is refused."""
    version = opened(uri, model).archive(ref, why, who)
    if as_json:
        print_json(version.plain())
    else:
        back = whole(registry_command(uri or default_uri(Path("outputs")), model, "restore", str(version.number)))
        Console().print(f"Version {version.number} of '{escape(model)}' is archived; {back} brings it back.")


def restore(ref: Ref, uri: Uri = None, model: Model = "cddpm", as_json: AsJson = False) -> None:
    """Show an archived version again."""
    version = opened(uri, model).restore(ref)
    if as_json:
        print_json(version.plain())
    else:
        Console().print(f"Version {version.number} of '{escape(model)}' is in the lists again.")


def sync(
    output_dir: OutputDir = Path("outputs"),
    uri: Annotated[
        str | None,
        typer.Option(
            "--tracking-uri",
            help="Bring all of it to this lab book, not to those that the configurations name.",
            show_default=False,
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Make MLflow show what the folders of sweeps and evaluations say; exit code 9 if something is missing."""
    from cddpm.publishing import folders, publish_all

    console = Console()
    if not folders(output_dir):
        console.print(f"No sweep or evaluation in {path(output_dir)}.") if not as_json else print_json([])
        return
    outcomes = publish_all(output_dir, uri)
    if as_json:
        print_json([dataclasses.asdict(one) for one in outcomes])
    else:
        for one in outcomes:
            console.print(f"{whole(one.name)}: {one.said}")
    faults = [f"{one.name}: {one.fault}" for one in outcomes if one.fault]
    faults += [f"{one.name}: refused: {line}" for one in outcomes for line in one.refused]
    if faults:
        raise UndeliveredError("\n".join(["not everything is in MLflow:", *faults]))


def _guards(
    require: Sequence[str], not_worse_than: str | None, metric: tuple[str, str | None, str], force: bool
) -> list[Guard]:
    guards = [required(text, force) for text in require]
    if not_worse_than is not None:
        guards.append(not_worse(not_worse_than, query.score_key(*metric), force))
    return guards


def _told(entry: Promotion, model: str, as_json: bool) -> None:
    if as_json:
        print_json(entry.plain())
        return
    before = f" (was version {entry.previous})" if entry.previous not in (None, entry.version) else ""
    Console().print(f"'{entry.alias}' is now version {entry.version} of '{escape(model)}'{before}.")
