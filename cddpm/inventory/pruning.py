"""What may be freed, in which order, and the freeing.

Never: what a registered model was made from, what an unfinished sweep or evaluation needs, what is being written, what
cannot be made again, and whatever any of those was made from. Of the rest the cheapest to make again goes first, of equally
cheap the oldest, and nothing goes before all that was made from it: no reference between artifacts is left dangling.
"""

import contextlib
import logging
import shutil
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cddpm import artifact
from cddpm.errors import ArtifactError, StorageError
from cddpm.inventory.entry import Entry, Kind, Referrer, running
from cddpm.reconstruct import part

logger = logging.getLogger(__name__)

DAY_SECONDS = 86400.0
_COST: tuple[Kind, ...] = (
    "leftover",
    "score",
    "reconstruction",
    "prediction",
    "unfinished",
    "encoder",
    "checkpoint",
    "store",
)
"""Cheapest to make again first."""
_LEFTOVER_DAYS = 1.0
"""A younger one may be somebody's work."""


@dataclass(frozen=True)
class Policy:
    """What to free. Each rule narrows; without any, all that may be freed is."""

    keep_days: float | None = None
    """Nothing younger goes."""
    maximum_bytes: int | None = None
    """Stop as soon as no more than this is kept."""
    unreferenced: bool = False
    """Nothing goes that a sweep or an evaluation names, finished or not."""


@dataclass(frozen=True)
class Step:
    """One thing to free. ``parts`` are those of a prediction that no kept reconstruction needs; None: all of the entry."""

    entry: Entry
    bytes: int
    parts: frozenset[tuple[str, part.Step]] | None = None


def protected(
    entries: Sequence[Entry], campaigns: Iterable[Referrer], models: Mapping[str, Iterable[str]]
) -> dict[str, str]:
    """Fingerprints that must stay, each with the reason; what those were made from stays with them.

    ``models``: what each registered model was made from.
    """
    reasons: dict[str, str] = {}
    for model, names in models.items():
        reasons |= dict.fromkeys(names, f"{model} was made from it")
    for one in campaigns:
        reasons |= dict.fromkeys(one.packaged - reasons.keys(), f"a model package of {one.label} was made from it")
        reasons |= dict.fromkeys(_wanted(entries, one) - reasons.keys(), f"{one.label} is {one.state}")
    for entry in entries:
        if not entry.remakable:
            reasons.setdefault(entry.fingerprint, "it cannot be made again from here")
        if entry.kind == "unfinished" and artifact.is_locked(_lock_of(entry)):
            reasons.setdefault(entry.fingerprint, "it is being made")
    return reasons


def _wanted(entries: Sequence[Entry], campaign: Referrer) -> set[str]:
    """What a campaign may still use: all of its slice stores while it runs, else what its trials name and that made of it."""
    if campaign.state == "finished":
        return set()
    names = campaign.named | campaign.needed
    stores = {entry.fingerprint for entry in entries if entry.kind == "store"}
    stores = stores & with_ancestors(entries, dict.fromkeys(names, "")).keys() or stores  # all, before it names any
    if campaign.state == "unfinished":
        return stores | _with_descendants(entries, names)
    if campaign.state == "running":
        return _with_descendants(entries, names | stores)
    raise ValueError(f"state: {campaign.state!r}; allowed are finished, unfinished and running")


def with_ancestors(entries: Iterable[Entry], reasons: Mapping[str, str]) -> dict[str, str]:
    """``reasons``, and for everything that those were made from the reason that it is needed."""
    parents = {entry.fingerprint: entry.parents for entry in entries}
    found, waiting = dict(reasons), list(reasons)
    while waiting:
        child = waiting.pop()
        for parent in parents.get(child, frozenset()) - found.keys():
            found[parent] = f"{child}, which stays, was made from it"
            waiting.append(parent)
    return found


def _with_descendants(entries: Sequence[Entry], names: Iterable[str]) -> set[str]:
    found: set[str] = set()
    more = set(names)
    while more:
        found |= more
        more = {entry.fingerprint for entry in entries if entry.parents & more} - found
    return found


def _lock_of(entry: Entry) -> Path:
    """What a training holds that is at work in this folder."""
    return entry.path.with_name(f"{entry.path.name}.lock")


def total_bytes(entries: Iterable[Entry]) -> int:
    """What all of them take on the disk."""
    return sum(entry.bytes for entry in entries)


def plan(
    entries: Sequence[Entry], kept: Mapping[str, str], named: frozenset[str], policy: Policy, now: float | None = None
) -> list[Step]:
    """What to free, in this order.

    ``kept`` (see ``protected``) stays; what is ``named`` by sweeps and evaluations, and its scores, if the policy says so.
    """
    return _Planner(entries, kept, named, policy, time.time() if now is None else now).steps()


class _Planner:
    def __init__(
        self, entries: Sequence[Entry], kept: Mapping[str, str], named: frozenset[str], policy: Policy, now: float
    ) -> None:
        scores = {entry.fingerprint for entry in entries if entry.kind == "score" and entry.parents & named}
        self.kept = kept.keys() | (named | scores if policy.unreferenced else frozenset())
        self.needed = with_ancestors(entries, dict.fromkeys(self.kept, "")).keys()
        self.policy, self.now = policy, now
        self.left = {(entry.kind, entry.fingerprint): entry for entry in entries}
        self.gone: dict[str, set[tuple[str, part.Step]]] = {}
        self.size = total_bytes(entries)

    def steps(self) -> list[Step]:
        return list(self._steps())

    def _steps(self) -> Iterator[Step]:
        before = -1
        while before != self.size:  # what was freed last may have been the last that an earlier one was kept for
            before = self.size
            for entry in sorted(self.left.values(), key=_order):
                if entry.kind in _COST and not self._enough() and self._is_old(entry):
                    yield from self._freeing(entry)

    def _freeing(self, entry: Entry) -> Iterator[Step]:
        if entry.fingerprint in self.kept:
            return
        children = [other for other in self.left.values() if entry.fingerprint in other.parents]
        if entry.fingerprint not in self.needed and not children:
            del self.left[entry.kind, entry.fingerprint]
            step = Step(entry, entry.bytes - sum(entry.parts[key] for key in self.gone.get(entry.fingerprint, ())))
            self.size -= step.bytes
            yield step
            yield from self._parts(entry.needs, entry.parents)
        elif entry.kind == "prediction":
            yield from self._parts(frozenset(entry.parts), frozenset({entry.fingerprint}))

    def _parts(self, parts: frozenset[tuple[str, part.Step]], predictions: frozenset[str]) -> Iterator[Step]:
        """Those of ``parts`` that no reconstruction needs any more."""
        for name in predictions - self.kept:
            entry = self.left.get(("prediction", name))
            if entry is not None:
                needed = [other.needs for other in self.left.values() if name in other.parents]
                gone = self.gone.setdefault(name, set())
                unneeded = (parts & entry.parts.keys()).difference(gone, *needed)
                if unneeded:
                    gone |= unneeded
                    step = Step(entry, sum(entry.parts[key] for key in unneeded), unneeded)
                    self.size -= step.bytes
                    yield step

    def _enough(self) -> bool:
        return self.policy.maximum_bytes is not None and self.size <= self.policy.maximum_bytes

    def _is_old(self, entry: Entry) -> bool:
        days = (self.now - entry.modified) / DAY_SECONDS
        if entry.kind == "leftover" and days < _LEFTOVER_DAYS:
            return False
        return self.policy.keep_days is None or days >= self.policy.keep_days


def _order(entry: Entry) -> tuple[int, float, str]:
    cost = _COST.index(entry.kind) if entry.kind in _COST else len(_COST)
    return cost, entry.modified, entry.fingerprint


@contextlib.contextmanager
def alone(artifacts: Path) -> Iterator[None]:
    """One process frees at a time. Raises ``StorageError`` if another is at it."""
    try:
        with artifact.lock(artifacts / ".prune.lock", wait=False):
            yield
    except BlockingIOError:
        raise StorageError(f"{artifacts}: another process is freeing space here; wait for it") from None


def carry_out(steps: Sequence[Step], output_dir: Path, before: Sequence[str]) -> Iterator[tuple[Step, int]]:
    """Free one step after the other; yields each with the bytes that it freed.

    ``before``: what was running when the steps were planned. Raises ``ArtifactError`` when something has started since: it
    may need what was to be freed.
    """
    for step in steps:
        started = sorted(set(running(output_dir)) - set(before))
        if started:
            raise ArtifactError(f"{', '.join(started)} has started meanwhile; nothing more is freed. Run this again")
        with artifact.storage_errors(step.entry.path):
            yield step, _free(step)


def _free(step: Step) -> int:
    entry = step.entry
    if entry.kind == "prediction":
        return _free_parts(step)
    if entry.kind == "unfinished":
        return _free_unfinished(step)
    _remove(entry.path)
    return step.bytes


def _free_unfinished(step: Step) -> int:
    """A training that would go on there waits until it is gone, and begins anew."""
    try:
        with artifact.lock(_lock_of(step.entry), wait=False):
            _remove(step.entry.path)
    except BlockingIOError:
        logger.warning("%s: is being made again; left alone", step.entry.path)
        return 0
    return step.bytes


def _remove(path: Path) -> None:
    """It disappears at once; what a crash leaves of it is a leftover."""
    going = path.with_name(f".{path.name.lstrip('.')}.{uuid.uuid4().hex[:8]}.partial")
    path.rename(going)
    shutil.rmtree(going)


def _free_parts(step: Step) -> int:
    entry, parts = step.entry, frozenset(step.entry.parts) if step.parts is None else step.parts
    freed, busy = 0, False
    for volume in sorted({volume for volume, _ in parts}):
        with part.claim(entry.path, volume) as mine:
            if not mine:
                logger.warning("%s: volume '%s' is being predicted; left alone", entry.path, volume)
                busy = True
                continue
            for number, file in part.parts_of(entry.path, volume).items():
                if (volume, number) in parts:
                    freed += entry.parts.get((volume, number), 0)
                    file.unlink(missing_ok=True)
    if step.parts is None and not busy:
        _remove(entry.path)
        return step.bytes
    return freed
