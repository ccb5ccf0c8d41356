"""``cddpm cache``: what is kept of earlier work, whether it is sound, and freeing space."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from cddpm.cli.shell import print_json
from cddpm.errors import ArtifactError, ConfigError, TrackingError
from cddpm.text import Console, Table, command, numbers, whole

if TYPE_CHECKING:  # heavy imports: only a command that runs pays for them
    from cddpm.inventory.entry import Entry, Referrer
    from cddpm.inventory.pruning import Policy, Step

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
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


@dataclass(frozen=True)
class _Known:
    """The artifacts of an output folder and who refers to them."""

    entries: "list[Entry]"
    campaigns: "list[Referrer]"
    models: Mapping[str, frozenset[str]]

    def referrers(self, entry: "Entry") -> list[str]:
        """The sweeps, evaluations and registered models that name this artifact."""
        name = entry.fingerprint
        own = [one.label for one in self.campaigns if name in one.named]
        return own + [label for label, names in self.models.items() if name in names]

    def children(self, entry: "Entry") -> "list[Entry]":
        """The artifacts that were made from it."""
        return [other for other in self.entries if entry.fingerprint in other.parents]


@app.command("ls")
def list_command(output_dir: OutputDir = Path("outputs"), uri: Uri = None, as_json: AsJson = False) -> None:
    """Show every artifact: what it was made from, and what refers to it."""
    artifacts = _artifacts(output_dir)
    entries, campaigns = _survey(artifacts, output_dir)
    models: dict[str, frozenset[str]] = {}
    note = None
    try:
        models = _models(campaigns, output_dir, uri)
    except TrackingError as error:
        note = f"Registered models are not shown: {error}"
    known = _Known(entries, campaigns, models)
    if as_json:
        print_json({"artifacts": [_plain(entry, known) for entry in entries], "note": note})
        return
    _print_entries(known, artifacts)
    if note:
        Console(stderr=True).print(f"[yellow]{escape(note)}[/]")


@app.command()
def verify(output_dir: OutputDir = Path("outputs"), as_json: AsJson = False) -> None:
    """Compare every byte with its digest; exit code 4 names what is damaged."""
    from cddpm.inventory.entry import damage, survey

    entries = survey(_artifacts(output_dir))
    faults = [fault for entry in entries for fault in damage(entry)]
    if as_json:
        print_json({"artifacts": len(entries), "faults": faults})
    if faults:
        raise ArtifactError(
            "\n".join(
                [
                    f"{len(faults)} faults in {len(entries)} artifacts; damaged parts of predictions and scores are made again "
                    "by whoever needs them, other artifacts once their folder is deleted:",
                    *faults,
                ]
            )
        )
    if not as_json:
        size = sum(entry.bytes for entry in entries)
        Console().print(f"{len(entries)} artifacts ({numbers.size(size)}) are as they were written.")


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
    storage: Annotated[
        str | None,
        typer.Option("--storage", help="Free what uploads to s3://... that never ended left there, instead."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Free space; what registered models and unfinished sweeps need stays."""
    from cddpm.inventory import pruning

    if storage is not None:
        _free_interrupted(storage, dry_run, as_json)
        return
    if keep_days is None and max_gib is None and not unreferenced:
        raise ConfigError(
            "say what to free: --unreferenced, --keep-days N, --max-gib X, or several (what all of them allow is freed)"
        )
    policy = pruning.Policy(keep_days, None if max_gib is None else int(max_gib * 2**30), unreferenced)
    artifacts = _artifacts(output_dir)
    with pruning.alone(artifacts):
        before, done = _prune(artifacts, output_dir, policy, dry_run, uri)
    _print_freed(before, done, policy, output_dir, dry_run, as_json)


def _free_interrupted(storage: str, dry_run: bool, as_json: bool) -> None:
    """Of an object store: parts older than a day that no manifest names."""
    from cddpm.shelf import Shelf
    from cddpm.storage import is_uri, settled

    place = settled(storage)
    if not is_uri(place):
        raise ConfigError(f"--storage {storage}: a folder; allowed is an object store such as s3://BUCKET/PREFIX")
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


def _plain(entry: "Entry", known: _Known) -> dict[str, Any]:
    return {
        "kind": entry.kind,
        "fingerprint": entry.fingerprint,
        "path": str(entry.path),
        "bytes": entry.bytes,
        "modified": entry.modified,
        "made_from": dict(entry.made_from),
        "parts": len(entry.parts) or len(entry.needs) or None,
        "referred_to_by": known.referrers(entry),
        "made_into": [f"{other.kind} {other.fingerprint}" for other in known.children(entry)],
        "fault": entry.fault,
    }


def _print_entries(known: _Known, artifacts: Path) -> None:
    total = sum(entry.bytes for entry in known.entries)
    console = Console()
    table = Table(f"{console.path(artifacts)}: {len(known.entries)} artifacts, {numbers.size(total)}")
    for name in ("artifact", "size", "age", "made from", "referred to by"):
        short = name in ("size", "age")
        table.add_column(name, justify="right" if short else "left", no_wrap=short)
    parts = {entry.fingerprint: entry.parts for entry in known.entries if entry.kind == "prediction"}
    for entry in known.entries:
        size = numbers.size(_viewed(entry, parts)) + "*" if entry.view else numbers.size(entry.bytes)
        for_whom = _summed(known.referrers(entry), known.children(entry))
        row = (f"{entry.kind} {entry.fingerprint}", size, numbers.age(entry.modified), _origin(entry), for_whom)
        table.add_row(*map(escape, row))
    console.print(table)
    if any(entry.view for entry in known.entries):
        console.print("* parts of its prediction, which are counted there")


def _viewed(entry: "Entry", parts: Mapping[str, Mapping[Any, int]]) -> int:
    own = parts.get(str(entry.made_from.get("prediction")), {})
    return sum(own.get(key, 0) for key in entry.needs)


def _origin(entry: "Entry") -> str:
    made = entry.made_from
    names = [
        f"{name} {made[name]}"
        for name in ("store", "encoder", "checkpoint", "guide")
        if isinstance(made.get(name), str)
    ]
    if entry.kind == "reconstruction" and entry.view:
        view = entry.view
        names = [f"prediction {made.get('prediction')}"]
        names += [
            f"{len(view.volumes)} volumes at {numbers.first_few(view.levels)}, seeds {numbers.first_few(view.seeds)}"
        ]
    if entry.kind == "score":
        names = [f"reconstruction {made['reconstruction']}"] if made.get("reconstruction") else names
    if entry.kind == "store" and "files" in made:
        names += [f"{len(made['files'])} files"]
    if "imported" in made:
        names += [f"imported from {made['imported'].get('file')}"]
    return "\n".join(names) or entry.fault or "-"


def _summed(labels: list[str], children: "list[Entry]") -> str:
    shown = labels[:3] + ([f"and {len(labels) - 3} more"] if len(labels) > 3 else [])
    counts = Counter(child.kind for child in children)
    return "\n".join(shown + [f"{count} {kind}{'s' * (count > 1)}" for kind, count in counts.items()]) or "-"


def _print_freed(
    before: int, done: "list[tuple[Step, int]]", policy: "Policy", output_dir: Path, dry_run: bool, as_json: bool
) -> None:
    freed = sum(size for _, size in done)
    rows = _by_artifact(done)
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
            f"More than {numbers.size(limit)} is left: the rest is needed or too young "
            f"({whole(command('cddpm', 'cache', 'ls', '--output-dir', output_dir))} shows by whom)"
        )


def _by_artifact(done: "list[tuple[Step, int]]") -> list[dict[str, Any]]:
    """One row per artifact, in the order in which they were begun; parts of a prediction go in several steps."""
    rows: dict[Path, dict[str, Any]] = {}
    for step, size in done:
        entry = step.entry
        row = rows.setdefault(
            entry.path,
            {
                "kind": entry.kind,
                "fingerprint": entry.fingerprint,
                "path": str(entry.path),
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
