"""Promotions: an alias moves from one version to another, and it is written down who moved it, when and why.

Every attempt is one tag of the registered model. It is written as begun before the alias moves, so that a crash leaves the
intent on record, and as done afterwards. An attempt that was overtaken by another, or whose conditions did not hold, is on
record as refused.
"""

import dataclasses
import json
import time
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, Literal

from cddpm.tracking import names
from cddpm.tracking.catalogue import ModelRecord

if TYPE_CHECKING:  # it imports MLflow
    from cddpm.tracking.catalogue_client import CatalogueClient

BEGUN = "interrupted; whether the alias was moved before is not on record"
"""What ``refused`` says of an attempt that has only begun."""
_RIVALS_SECONDS = 60.0
"""Attempts that lie further apart are no rivals: one that is so old and did not move its alias has died."""
_FIRST_COMES_SECONDS, _LATER_COMES_SECONDS, _LOOK_SECONDS = 10.0, 2.0, 0.1


@dataclass(frozen=True)
class Promotion:
    """An entry of the audit."""

    alias: str
    version: int
    previous: int | None
    """What the alias meant before."""
    who: str
    when: str
    """ISO 8601 with microseconds, UTC."""
    why: str
    action: Literal["promote", "rollback"] = "promote"
    conditions: tuple[str, ...] = ()
    """What was asked for, and held (or was not looked at, if ``forced``)."""
    forced: bool = False
    refused: str = ""
    """Why the alias did not move; empty if it did."""

    def plain(self) -> dict[str, Any]:
        """As JSON data."""
        return {**dataclasses.asdict(self), "conditions": list(self.conditions)}


def audit(model: ModelRecord | None) -> dict[str, Promotion]:
    """All entries by their key, oldest first."""
    found = {
        key: _entry(json.loads(value))
        for key, value in (model.tags if model else {}).items()
        if key.startswith(f"{names.PROMOTION}.")
    }
    return dict(sorted(found.items(), key=lambda item: (item[1].when, item[0])))


def history(entries: Iterable[Promotion], alias: str, current: int | None) -> list[int]:
    """The versions that ``alias`` meant, oldest first, without those that were rolled back; the last is ``current``.

    Attempts that never moved the alias tell themselves by what the next one found; so do moves that nobody wrote down.
    """
    stack: list[int] = []
    for entry in entries:
        if entry.alias != alias or entry.refused:
            continue
        _align(stack, entry.previous)
        if entry.action == "rollback" and stack:
            stack.pop()
        if not stack or stack[-1] != entry.version:
            stack.append(entry.version)
    _align(stack, current)
    return stack


def begin(catalogue: "CatalogueClient", model: str, key: str, attempt: Promotion) -> None:
    """Enter the intent, before anything else."""
    _enter(catalogue, model, key, attempt, BEGUN)


def move(catalogue: "CatalogueClient", model: str, key: str, attempt: Promotion, refusal: str) -> Promotion:
    """Point the alias of an attempt that has begun, unless ``refusal`` says why not; call it inside of ``exclusive``.

    Returns what was entered under ``key``. Where nobody can be kept out, of several attempts at once the earliest wins.
    """
    if not refusal and catalogue.contested:
        refusal = _overtaken(catalogue, model, key, attempt)
    if not refusal:
        catalogue.set_alias(model, attempt.alias, attempt.version)
        if catalogue.contested:
            refusal = _moved(catalogue.model(model), attempt.alias, attempt.version)
    return _enter(catalogue, model, key, attempt, refusal)


def moved(alias: str, expected: int | None, found: int | None) -> str:
    """Why an attempt comes too late, empty if it does not."""
    if expected == found:
        return ""
    return f"'{alias}' was moved from {_named(expected)} to {_named(found)} meanwhile"


def _named(version: int | None) -> str:
    return "no version" if version is None else f"version {version}"


def _enter(catalogue: "CatalogueClient", model: str, key: str, attempt: Promotion, refusal: str) -> Promotion:
    entry = dataclasses.replace(attempt, refused=refusal)
    catalogue.tag_model(model, key, json.dumps(entry.plain()))
    return entry


def _entry(record: dict[str, Any]) -> Promotion:
    known = {field.name for field in dataclasses.fields(Promotion)}
    values = {name: value for name, value in record.items() if name in known}
    return Promotion(**{**values, "conditions": tuple(values.get("conditions", ()))})


def _align(stack: list[int], top: int | None) -> None:
    """Make ``top`` the last of the stack: what lies above it never held, what is new was moved by somebody else."""
    if top is None:
        stack.clear()
    elif top in stack:
        while stack[-1] != top:
            stack.pop()
    else:
        stack.append(top)


def _moved(model: ModelRecord | None, alias: str, expected: int | None) -> str:
    return moved(alias, expected, model.aliases.get(alias) if model else None)


def _overtaken(catalogue: "CatalogueClient", name: str, key: str, attempt: Promotion) -> str:
    """Wait for rivals, whose entries are seen but whose alias is not yet; the reason if one of them moved it.

    One that began first is waited for until it is done, one that began later for a moment: it may not have seen this one.
    """
    model = catalogue.model(name)
    rivals = _rivals(audit(model), key, attempt)
    first = any((entry.when, other) < (attempt.when, key) for other, entry in rivals.items())
    end = time.monotonic() + (_FIRST_COMES_SECONDS if first else _LATER_COMES_SECONDS)
    while not (reason := _moved(model, attempt.alias, attempt.previous)) and rivals and time.monotonic() < end:
        time.sleep(_LOOK_SECONDS)
        model = catalogue.model(name)
        rivals = _rivals(audit(model), key, attempt)
    return reason


def _rivals(entries: dict[str, Promotion], key: str, attempt: Promotion) -> dict[str, Promotion]:
    """Other attempts on the same alias that began about now and are not done."""
    return {
        other: entry
        for other, entry in entries.items()
        if other != key
        and entry.alias == attempt.alias
        and entry.refused == BEGUN
        and abs((_time(entry) - _time(attempt)).total_seconds()) < _RIVALS_SECONDS
    }


def _time(entry: Promotion) -> datetime:
    return datetime.fromisoformat(entry.when)
