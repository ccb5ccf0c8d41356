"""What a promotion may depend on: conditions on the version, and a comparison with the one that it replaces."""

from collections.abc import Callable
from dataclasses import dataclass

from cddpm.errors import ConfigError
from cddpm.text.likeness import nearest
from cddpm.tracking import names
from cddpm.tracking.version import Version
from cddpm.tracking.version_condition import Comparison, is_about_test, metric_key, parse

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
    comparisons = parse(text, "--require", kind="metrics")
    for comparison in comparisons:
        if comparison.kind != "metrics":
            raise ConfigError(
                f'--require "{text}": {comparison.kind}.{comparison.name}: only metrics are looked at here'
            )
    if is_about_test(comparisons):
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


def _unfulfilled(comparison: Comparison, version: Version) -> str:
    key = metric_key(comparison.name, version.metrics)
    if key is None:
        near = nearest(comparison.name, version.metrics) or sorted(version.metrics)[:8]
        return f"it has no metric '{comparison.name}'; it has {', '.join(near) or 'none'}"
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
            near = nearest(key, one.metrics) or sorted(one.metrics)[:8]
            return f"version {one.number} has no metric '{key}'; it has {', '.join(near) or 'none'}"
    mine, theirs = version.metrics[key], other.metrics[key]
    worse = mine < theirs if names.higher_is_better(key) else mine > theirs
    return f"its {key} is {mine:.4f}, that of version {other.number} is {theirs:.4f}" if worse else ""
