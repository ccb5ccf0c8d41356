"""``cddpm cache``: what is kept of earlier work, whether it is sound, and freeing space."""

import contextlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from cddpm.cli.kept import Known, plain, show
from cddpm.cli.shell import print_json
from cddpm.errors import ArtifactError, ConfigError, TrackingError
from cddpm.text import Console, command, numbers, whole

if TYPE_CHECKING:  # heavy imports: only a command that runs pays for them
    from cddpm.inventory.entry import Entry, Referrer
    from cddpm.inventory.pruning import Policy, Step
    from cddpm.inventory.shadow import Shadow

app = typer.Typer(no_args_is_help=True, help="Show, check and free what is kept of earlier work.")

OutputDir = Annotated[Path, typer.Option("--output-dir", help="Output folder of the sweeps.")]
Uri = Annotated[
    str | None,
    typer.Option(
        "--tracking-uri",
        envvar="MLFLOW_TRACKING_URI",
        help="MLflow server or database to ask beside those that the sweeps name.",
        show_default=False,
    ),
]
Store = Annotated[
    str | None,
    typer.Option(
        "--storage",
        help="Look into an object store (s3://BUCKET/PREFIX, ...) instead of the output folder.",
        show_default=False,
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


@app.command("ls")
def list_command(
    output_dir: OutputDir = Path("outputs"), uri: Uri = None, storage: Store = None, as_json: AsJson = False
) -> None:
    """Show every artifact: what it was made from, and what refers to it."""
    with contextlib.ExitStack() as stack:
        if storage is None:
            artifacts = _artifacts(output_dir)
            known = Known(Console().path(artifacts), *_survey(artifacts, output_dir))
        else:
            known = _known_afar(stack.enter_context(_shadow(storage)), output_dir)
        note = None
        try:
            known = replace(known, models=_models(known.campaigns, output_dir, uri))
        except TrackingError as error:
            note = f"Registered models are not shown: {error}"
        if as_json:
            print_json({"artifacts": [plain(entry, known) for entry in known.entries], "note": note})
            return
        show(known)
    if storage is None and (store := _cache_of(artifacts)):
        shown = whole(command("cddpm", "cache", "ls", "--storage", store))
        Console().print(f"This is the cache of {escape(store)} on this node; {shown} shows what lies there")
    if note:
        Console(stderr=True).print(f"[yellow]{escape(note)}[/]")


@app.command()
def verify(output_dir: OutputDir = Path("outputs"), storage: Store = None, as_json: AsJson = False) -> None:
    """Compare every byte with its digest; exit code 4 names what is damaged.

    Of an object store every byte is fetched for it, and none is kept.
    """
    from cddpm.inventory.entry import damage, survey

    read: dict[str, int] = {}
    if storage is None:
        entries = survey(_artifacts(output_dir))
        faults = [fault for entry in entries for fault in damage(entry)]
    else:
        with _shadow(storage) as far:
            entries = far.survey()
            size, objects = _cost(far, entries)
            if not as_json:
                Console(stderr=True).print(f"fetching {numbers.size(size)} in {numbers.counted(objects, 'object')} ...")
            faults, read = far.damage(entries), {"bytes_read": size}
    if as_json:
        print_json({"artifacts": len(entries), "faults": faults, **read})
    if faults:
        once = "their folder is deleted" if storage is None else "their manifest is deleted there"
        raise ArtifactError(
            "\n".join(
                [
                    f"{len(faults)} faults in {len(entries)} artifacts; damaged parts of predictions and scores are made again "
                    f"by whoever needs them, other artifacts once {once}:",
                    *faults,
                ]
            )
        )
    if not as_json:
        held = sum(entry.bytes for entry in entries)
        Console().print(f"{len(entries)} artifacts ({numbers.size(held)}) are as they were written.")


@app.command()
def prune(
    output_dir: OutputDir = Path("outputs"),
    keep_days: Annotated[
        float | None, typer.Option("--keep-days", min=0, help="Keep what is younger.", show_default=False)
    ] = None,
    max_gib: Annotated[
        float | None, typer.Option("--max-gib", min=0, help="Stop when no more than this is kept.", show_default=False)
    ] = None,
    unreferenced: Annotated[
        bool, typer.Option("--unreferenced", help="Free only what no sweep and no evaluation names.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be freed.")] = False,
    uri: Uri = None,
    storage: Store = None,
    as_json: AsJson = False,
) -> None:
    """Free space; what registered models and unfinished sweeps need stays.

    In an object store, without a rule: only what uploads that never ended left there.
    """
    from cddpm.inventory import pruning

    ruled = keep_days is not None or max_gib is not None or unreferenced
    if storage is not None and not ruled:
        _free_interrupted(storage, dry_run, as_json)
        return
    if not ruled:
        raise ConfigError(
            "say what to free: --unreferenced, --keep-days N, --max-gib X, or several (what all of them allow is freed)"
        )
    policy = pruning.Policy(keep_days, None if max_gib is None else int(max_gib * 2**30), unreferenced)
    if storage is not None:
        from cddpm.inventory.entry import running

        at_work = running(output_dir)  # before anything is looked at
        with _shadow(storage) as far:
            before, done = _prune_afar(far, output_dir, at_work, policy, dry_run, uri)
            rows = _by_artifact(done, far.told)
        _print_freed(before, rows, policy, command("cddpm", "cache", "ls", "--storage", storage), dry_run, as_json)
        return
    artifacts = _artifacts(output_dir)
    with pruning.alone(artifacts):
        before, done = _prune(artifacts, output_dir, policy, dry_run, uri)
    _print_freed(before, _by_artifact(done), policy, _shown(output_dir), dry_run, as_json)


def _shown(output_dir: Path) -> str:
    """The command that shows what lies in a folder."""
    return command("cddpm", "cache", "ls", "--output-dir", output_dir)


@contextlib.contextmanager
def _shadow(storage: str) -> "Iterator[Shadow]":
    """Of an object store. Raises ``ConfigError`` for a folder and for a place without artifacts."""
    from cddpm.inventory.shadow import shadow

    with shadow(_object_store(storage)) as far:
        if not far.objects:
            raise ConfigError(f"--storage {storage}: no artifacts lie there; name the storage of your sweeps")
        yield far


def _object_store(storage: str) -> str:
    from cddpm.storage import is_uri, settled

    place = settled(storage)
    if not is_uri(place):
        raise ConfigError(
            f"--storage {storage}: a folder; allowed is an object store such as s3://BUCKET/PREFIX (--output-dir names folders)"
        )
    return place


def _cache_of(artifacts: Path) -> str | None:
    """The object store that a folder of artifacts is the cache of."""
    from cddpm.shelf import STORAGE

    marker = artifacts.resolve().parent / STORAGE
    return marker.read_text() if marker.is_file() else None


def _known_afar(far: "Shadow", output_dir: Path) -> Known:
    """What lies in the object store, and what of it, or else, in this node's cache."""
    from cddpm.inventory.entry import in_order, survey
    from cddpm.shelf import ARTIFACTS, cache_folder

    entries, near = far.survey(), survey(cache_folder(far.bucket.uri) / ARTIFACTS)
    there = {(one.kind, one.fingerprint) for one in entries}
    alone = [one for one in near if (one.kind, one.fingerprint) not in there]
    cached: dict[tuple[str, str], int] = {(one.kind, one.fingerprint): one.bytes for one in near}
    everything, campaigns = in_order([*entries, *alone]), _campaigns_afar(far, entries, output_dir)
    return Known(whole(escape(far.told(far.artifacts))), everything, campaigns, far=far, cached=cached)


def _campaigns_afar(far: "Shadow", entries: "list[Entry]", output_dir: Path) -> "list[Referrer]":
    """Those of the store; and those of the output folder, if its artifacts are kept there: they may be a second ahead."""
    from cddpm.inventory.entry import referrers
    from cddpm.shelf import ARTIFACTS

    stores = [one.fingerprint for one in entries if one.kind == "store"]
    own = referrers(output_dir, stores) if _cache_of(output_dir / ARTIFACTS) == far.bucket.uri else []
    return own + far.referrers(stores, output_dir.resolve().parent)


def _cost(far: "Shadow", entries: "list[Entry]") -> tuple[int, int]:
    """Bytes and objects that are fetched to verify them."""
    read = far.sizes(one for one in entries if one.kind not in ("unfinished", "leftover"))
    return sum(read.values()), len(read)


def _free_interrupted(storage: str, dry_run: bool, as_json: bool) -> None:
    """Of an object store: parts older than a day that no manifest names."""
    from cddpm.shelf import Shelf

    place = _object_store(storage)
    bucket, found = Shelf.of(place).bucket, Shelf.of(place).interrupted()
    for name in [] if dry_run else found:
        bucket.delete(name)
    if as_json:
        print_json({"dry_run": dry_run, "bytes_freed": sum(found.values()), "freed": sorted(found)})
        return
    size = numbers.size(sum(found.values()))
    Console().print(
        f"{'would free' if dry_run else 'freed'} {size}: {numbers.counted(len(found), 'part')} of uploads that never ended"
    )


def _prune(
    artifacts: Path, output_dir: Path, policy: "Policy", dry_run: bool, uri: str | None
) -> "tuple[int, list[tuple[Step, int]]]":
    """Bytes before, and what was freed with how many bytes each."""
    from cddpm.inventory import pruning
    from cddpm.inventory.entry import running

    at_work = running(output_dir)
    entries, campaigns = _survey(artifacts, output_dir)
    kept = pruning.protected(entries, campaigns, _models(campaigns, output_dir, uri))
    named = frozenset(name for one in campaigns for name in one.named)
    steps = pruning.plan(entries, kept, named, policy)
    planned = [(step, step.bytes) for step in steps]
    return pruning.total_bytes(entries), planned if dry_run else list(pruning.carry_out(steps, output_dir, at_work))


def _prune_afar(
    far: "Shadow", output_dir: Path, at_work: list[str], policy: "Policy", dry_run: bool, uri: str | None
) -> "tuple[int, list[tuple[Step, int]]]":
    """As ``_prune``, in an object store."""
    from cddpm.inventory import pruning

    entries = far.survey()
    campaigns, now = _campaigns_afar(far, entries, output_dir), far.now()
    try:
        models = _models(campaigns, output_dir, uri)
    except TrackingError as error:
        raise TrackingError(
            f"{error}\nWhich artifacts registered models need is unknown, so nothing is freed; run this where the lab book is "
            "(the cluster's head), with its --output-dir"
        ) from error
    kept = far.protected(entries, campaigns, models, now)
    named = frozenset(name for one in campaigns for name in one.named)
    steps = pruning.plan(entries, kept, named, policy, now)
    planned = [(step, step.bytes) for step in steps]
    return pruning.total_bytes(entries), planned if dry_run else list(far.carry_out(steps, output_dir, at_work))


def _artifacts(output_dir: Path) -> Path:
    artifacts = output_dir.resolve() / "artifacts"
    if not artifacts.is_dir():
        raise ConfigError(f"--output-dir {output_dir}: {artifacts} is not there; name the output folder of your sweeps")
    return artifacts


def _survey(artifacts: Path, output_dir: Path) -> "tuple[list[Entry], list[Referrer]]":
    from cddpm.inventory.entry import referrers, survey

    entries = survey(artifacts)
    return entries, referrers(output_dir, [entry.fingerprint for entry in entries if entry.kind == "store"])


def _models(campaigns: "Iterable[Referrer]", output_dir: Path, uri: str | None) -> dict[str, frozenset[str]]:
    """What registered models were made from, of every lab book that the sweeps use. Raises ``TrackingError``."""
    from cddpm.tracking.address import default_uri
    from cddpm.tracking.lineage import registered

    named = {name for one in campaigns for name in one.tracking} or ({None} if uri is None else set())
    uris = {name or default_uri(output_dir) for name in named} | ({uri} if uri else set())
    return {label: names for name in sorted(uris) for label, names in registered(name).items()}


def _print_freed(
    before: int, rows: list[dict[str, Any]], policy: "Policy", shown: str, dry_run: bool, as_json: bool
) -> None:
    """``shown``: the command that shows what is left, and for whom."""
    freed = sum(row["bytes"] for row in rows)
    if as_json:
        print_json({"dry_run": dry_run, "bytes_before": before, "bytes_freed": freed, "freed": rows})
        return
    console = Console()
    for row in rows:
        some = "" if row["whole"] else f", {row['parts']} of its parts"
        age = numbers.age(row["modified"])
        console.print(f"{row['kind']} {escape(row['fingerprint'])}{some}: {numbers.size(row['bytes'])}, {age} old")
    console.print(f"{'would free' if dry_run else 'freed'} {numbers.size(freed)} of {numbers.size(before)}")
    limit = policy.maximum_bytes
    if limit is not None and before - freed > limit:
        console.print(
            f"More than {numbers.size(limit)} is left: the rest is needed or too young ({whole(shown)} shows by whom)"
        )


def _by_artifact(done: "list[tuple[Step, int]]", told: Callable[[Path], str] = str) -> list[dict[str, Any]]:
    """One row per artifact, in the order in which they were begun; parts of a prediction go in several steps."""
    rows: dict[Path, dict[str, Any]] = {}
    for step, size in done:
        entry = step.entry
        row = rows.setdefault(
            entry.path,
            {
                "kind": entry.kind,
                "fingerprint": entry.fingerprint,
                "path": told(entry.path),
                "modified": entry.modified,
                "bytes": 0,
                "parts": 0,
                "whole": False,
            },
        )
        row["bytes"] += size
        row["parts"] = len(entry.parts) if step.parts is None else row["parts"] + len(step.parts)
        row["whole"] = row["whole"] or step.parts is None
    return list(rows.values())
