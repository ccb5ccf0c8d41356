"""Promotions: an alias moves from one version to another, if its guards allow it; who moved it, when and why is written down.

Every attempt is one tag of the registered model. It is written as begun before the alias moves, so that a crash leaves the
intent on record, and as done afterwards. An attempt that was overtaken by another, or whose conditions did not hold, is on
record as refused.
"""

import dataclasses
import json
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, Literal

from cddpm.errors import ConfigError
from cddpm.tracking import names, query
from cddpm.tracking.catalogue import Model, Version

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


def audit(model: Model | None) -> dict[str, Promotion]:
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


def _moved(model: Model | None, alias: str, expected: int | None) -> str:
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


# Guards: what a promotion may depend on


Find = Callable[[str], Version | None]
"""The version that a reference means at the moment; None if it means none."""


@dataclass(frozen=True)
class Guard:
    """``refusal`` of a version says why it may not be promoted, empty if it may."""

    text: str
    """As the audit keeps it."""
    refusal: Callable[[Version, Find], str]


def required(text: str, forced: bool = False) -> Guard:
    """``--require``: metrics of the version itself, ``dice >= 0.4 and Brats21/auprc >= 0.3``.

    Raises ``ConfigError`` for what cannot be read, and for test metrics unless ``forced``: a choice made on test is no test.
    """
    comparisons = query.parse(text, "--require", kind="metrics")
    for comparison in comparisons:
        if comparison.kind != "metrics":
            raise ConfigError(
                f'--require "{text}": {comparison.kind}.{comparison.name}: only metrics are looked at here'
            )
    if query.is_about_test(comparisons):
        _refuse_test(f'--require "{text}"', forced)

    def refusal(version: Version, find: Find) -> str:
        return next((why for c in comparisons if (why := _unfulfilled(c, version))), "")

    return Guard(text, refusal)


def not_worse(ref: str, key: str, forced: bool = False) -> Guard:
    """``--not-worse-than``: the metric ``key`` of the version is at least as good as that of ``ref``, on the same data.

    A ``ref`` that means nothing (yet) hinders nobody. Raises ``ConfigError`` for a test metric unless ``forced``.
    """
    if key.startswith("test/"):
        _refuse_test(f"--not-worse-than {ref} by {key}", forced)

    def refusal(version: Version, find: Find) -> str:
        other = find(ref)
        if other is None or other.number == version.number:
            return ""
        if not forced and (why := _other_data(version, other)):
            return why
        return _worse(version, other, key)

    return Guard(f"{key} not worse than {ref}", refusal)


def not_worse_than_of_same_aim(alias: str) -> Guard:
    """What a sweep asks before it replaces a champion: same data, same aim, and not worse on validation."""

    def refusal(version: Version, find: Find) -> str:
        other = find(alias)
        if other is None or other.number == version.number:
            return ""
        if version.sweep is not None and version.sweep == other.sweep:  # a sweep has one aim and one cohort
            return _worse(version, other, names.OBJECTIVE)
        aims = version.tags.get(names.AIM), other.tags.get(names.AIM)
        if None in aims or aims[0] != aims[1]:
            return (
                f"version {other.number} was chosen by another aim ({aims[1] or 'not known'}, not {aims[0] or 'known'})"
            )
        if names.FINGERPRINT_STORE not in version.tags or names.FINGERPRINT_STORE not in other.tags:
            return f"it is not known whether version {other.number} was measured on the same data"
        return _other_data(version, other) or _worse(version, other, names.OBJECTIVE)

    return Guard(f"{names.OBJECTIVE} not worse than {alias}, on the same data", refusal)


def _refuse_test(what: str, forced: bool) -> None:
    if not forced:
        raise ConfigError(
            f"{what}: this was measured on test, and a choice made on test is no test any more; use a validation metric "
            "(or --force: the audit keeps it)"
        )


def _unfulfilled(comparison: query.Comparison, version: Version) -> str:
    key = query.metric_key(comparison.name, version.metrics)
    if key is None:
        near = query.nearest_names(comparison.name, version.metrics) or "none"
        return f"it has no metric '{comparison.name}'; it has {near}"
    if comparison.holds(version.metrics[key]):
        return ""
    return f"its {key} is {version.metrics[key]:.4f}, required is {comparison.operator} {comparison.value}"


def _other_data(version: Version, other: Version) -> str:
    stores = version.tags.get(names.FINGERPRINT_STORE), other.tags.get(names.FINGERPRINT_STORE)
    if None in stores or stores[0] == stores[1]:
        return ""
    return f"version {other.number} was measured on other data (store {stores[1]}, not {stores[0]})"


def _worse(version: Version, other: Version, key: str) -> str:
    for one in (version, other):
        if key not in one.metrics:
            near = query.nearest_names(key, one.metrics) or "none"
            return f"version {one.number} has no metric '{key}'; it has {near}"
    mine, theirs = version.metrics[key], other.metrics[key]
    worse = mine < theirs if names.higher_is_better(key) else mine > theirs
    return f"its {key} is {mine:.4f}, that of version {other.number} is {theirs:.4f}" if worse else ""
