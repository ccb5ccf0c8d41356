"""What is kept, as ``cddpm cache ls`` shows it: a table, or rows of JSON."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from rich.markup import escape

from cddpm.text import Console, Table, numbers

if TYPE_CHECKING:  # heavy imports: only a command that runs pays for them
    from cddpm.inventory.entry import Entry, Referrer
    from cddpm.inventory.shadow import Shadow


@dataclass(frozen=True)
class Known:
    """The artifacts of an output folder, or of an object store and its cache on this node, and who refers to them."""

    title: str
    """Where, as markup."""
    entries: "list[Entry]"
    campaigns: "list[Referrer]"
    models: Mapping[str, frozenset[str]] = field(default_factory=dict)
    far: "Shadow | None" = None
    """Of an object store."""
    cached: Mapping[tuple[str, str], int] = field(default_factory=dict)
    """Of an object store: bytes in this node's cache, by kind and fingerprint."""

    def referrers(self, entry: "Entry") -> list[str]:
        """The sweeps, evaluations and registered models that name this artifact."""
        name = entry.fingerprint
        own = [one.label for one in self.campaigns if name in one.named]
        return [*dict.fromkeys(own), *(label for label, names in self.models.items() if name in names)]

    def children(self, entry: "Entry") -> "list[Entry]":
        """The artifacts that were made from it."""
        return [other for other in self.entries if entry.fingerprint in other.parents]

    def place(self, entry: "Entry") -> str:
        """Its path, or its address in the store."""
        return self.far.told(entry.path) if self.far else str(entry.path)

    def stored(self, entry: "Entry") -> int | None:
        """Bytes in the object store; None if this node's cache alone has it."""
        return entry.bytes if self.far and entry.path.is_relative_to(self.far.folder) else None

    def near(self, entry: "Entry") -> int | None:
        """Bytes in this node's cache; None if it is not there."""
        return self.cached.get((entry.kind, entry.fingerprint))


def plain(entry: "Entry", known: Known) -> dict[str, Any]:
    """An artifact as JSON tells it."""
    where = {"bytes_in_bucket": known.stored(entry), "bytes_in_cache": known.near(entry)} if known.far else {}
    return {
        **where,
        "kind": entry.kind,
        "fingerprint": entry.fingerprint,
        "path": known.place(entry),
        "bytes": entry.bytes,
        "modified": entry.modified,
        "made_from": dict(entry.made_from),
        "parts": len(entry.parts) or len(entry.needs) or None,
        "referred_to_by": known.referrers(entry),
        "made_into": [f"{other.kind} {other.fingerprint}" for other in known.children(entry)],
        "fault": entry.fault,
    }


def show(known: Known) -> None:
    """Print the table of artifacts."""
    stored = [entry for entry in known.entries if known.far is None or known.stored(entry) is not None]
    title = f"{known.title}: {len(stored)} artifacts, {numbers.size(sum(entry.bytes for entry in stored))}"
    if known.far:
        title += f"; in this node's cache: {len(known.cached)}, {numbers.size(sum(known.cached.values()))}"
    console, table = Console(), Table(title)
    sizes = ("in the bucket", "in the cache") if known.far else ("size",)
    for name in ("artifact", *sizes, "age", "made from", "referred to by"):
        short = name in (*sizes, "age")
        table.add_column(name, justify="right" if short else "left", no_wrap=short)
    parts = {entry.fingerprint: entry.parts for entry in known.entries if entry.kind == "prediction"}
    for entry in known.entries:
        size = numbers.size(_viewed(entry, parts)) + "*" if entry.view else numbers.size(entry.bytes)
        for_whom = _summed(known.referrers(entry), known.children(entry))
        where = [size] if known.far is None else _where(entry, known, size)
        row = (
            f"{entry.kind} {entry.fingerprint}",
            *where,
            numbers.age(entry.modified),
            _origin(entry, known),
            for_whom,
        )
        table.add_row(*map(escape, row))
    console.print(table)
    if any(entry.view for entry in known.entries):
        console.print("* parts of its prediction, which are counted there")


def _where(entry: "Entry", known: Known, size: str) -> list[str]:
    """The cells of an object store and its cache; ``size``: of the artifact, where it is."""
    near = known.near(entry)
    cached = numbers.NOTHING if near is None else size if entry.view else numbers.size(near)
    return [numbers.NOTHING if known.stored(entry) is None else size, cached]


def _viewed(entry: "Entry", parts: Mapping[str, Mapping[Any, int]]) -> int:
    own = parts.get(str(entry.made_from.get("prediction")), {})
    return sum(own.get(key, 0) for key in entry.needs)


def _origin(entry: "Entry", known: Known) -> str:
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
    fault = entry.fault and (known.far.told(entry.fault) if known.far else entry.fault)
    return "\n".join(names) or fault or "-"


def _summed(labels: list[str], children: "list[Entry]") -> str:
    shown = labels[:3] + ([f"and {len(labels) - 3} more"] if len(labels) > 3 else [])
    counts = Counter(child.kind for child in children)
    return "\n".join(shown + [f"{count} {kind}{'s' * (count > 1)}" for kind, count in counts.items()]) or "-"
