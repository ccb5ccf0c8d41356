"""What a promotion may depend on."""

from typing import Any

import pytest

from cddpm.errors import ConfigError
from cddpm.tracking import names
from cddpm.tracking.guard import not_worse, not_worse_than_of_same_aim, required
from cddpm.tracking.version import Version

DATA = {names.FINGERPRINT_STORE: "s1", names.AIM: "dice on A"}


def _version(
    number: int, metrics: dict[str, float], tags: dict[str, str] | None = None, sweep: str | None = None
) -> Version:
    at = DATA if tags is None else tags
    return Version(
        number, (), sweep or f"sweep-{number}", number, "run", "m-1", "f", "2026-01-01T00:00:00+00:00", metrics, at
    )


def _finding(version: Version | None) -> Any:
    return lambda ref: version


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("dice >= 0.4", ""),
        ("dice>=0.4 and A/dice > 0.3", ""),
        ("dice >= 0.41", "its val/dice is 0.4000, required is >= 0.41"),
        ("dice >= 0.4 and A/dice > 0.6", "its val/A/dice is 0.5000, required is > 0.6"),
        ("A/dise > 0.6", "it has no metric 'A/dise'; it has val/A/dice"),
    ],
)
def test_required(text: str, told: str) -> None:
    version = _version(1, {"val/dice": 0.4, "val/A/dice": 0.5})
    assert required(text).refusal(version, _finding(None)).startswith(told)
    assert bool(told) == bool(required(text).refusal(version, _finding(None)))


def test_test_metrics_decide_nothing_unless_forced() -> None:
    with pytest.raises(ConfigError, match=r"measured on test, .* is no test any more; .*--force"):
        required("test/dice > 0.4")
    with pytest.raises(ConfigError, match="measured on test"):
        not_worse("champion", "test/dice")
    version = _version(1, {"test/dice": 0.5})
    assert required("test/dice > 0.4", forced=True).refusal(version, _finding(None)) == ""
    assert not_worse("champion", "test/dice", forced=True).text == "test/dice not worse than champion"
    with pytest.raises(ConfigError, match="only metrics are looked at here"):
        required("params.x > 1")


@pytest.mark.parametrize(
    ("mine", "theirs", "key", "told"),
    [
        (0.5, 0.4, "val/dice", ""),
        (0.4, 0.4, "val/dice", ""),
        (0.3, 0.4, "val/dice", "its val/dice is 0.3000, that of version 2 is 0.4000"),
        (0.3, 0.4, "val/loss", ""),
        (0.5, 0.4, "val/loss", "its val/loss is 0.5000, that of version 2 is 0.4000"),
    ],
)
def test_not_worse(mine: float, theirs: float, key: str, told: str) -> None:
    other = _version(2, {key: theirs})
    assert not_worse("champion", key).refusal(_version(1, {key: mine}), _finding(other)) == told


def test_nobody_is_no_hindrance() -> None:
    version = _version(1, {})
    for guard in (not_worse("champion", "val/dice"), not_worse_than_of_same_aim("champion")):
        assert guard.refusal(version, _finding(None)) == ""
        assert guard.refusal(version, _finding(version)) == ""


def test_what_was_not_measured_is_not_better() -> None:
    guard = not_worse("champion", "val/dice")
    assert "version 1 has no metric 'val/dice'" in guard.refusal(
        _version(1, {}), _finding(_version(2, {"val/dice": 1}))
    )


def test_other_data_are_not_compared() -> None:
    mine = _version(1, {"val/dice": 0.9, "objective": 0.9})
    other = _version(2, {"val/dice": 0.1, "objective": 0.1}, {**DATA, names.FINGERPRINT_STORE: "s2"})
    told = "version 2 was measured on other data (store s2, not s1)"
    assert not_worse("champion", "val/dice").refusal(mine, _finding(other)) == told
    assert not_worse("champion", "val/dice", forced=True).refusal(mine, _finding(other)) == ""
    assert not_worse_than_of_same_aim("champion").refusal(mine, _finding(other)) == told


@pytest.mark.parametrize(
    ("tags", "told"),
    [
        (DATA, ""),
        ({**DATA, names.AIM: "auprc on A"}, "version 2 was chosen by another aim (auprc on A, not dice on A)"),
        ({}, "version 2 was chosen by another aim (not known, not dice on A)"),
        ({names.AIM: "dice on A"}, "it is not known whether version 2 was measured on the same data"),
    ],
)
def test_a_sweep_compares_with_its_own_kind(tags: dict[str, str], told: str) -> None:
    other = _version(2, {"objective": 0.4}, tags)
    guard = not_worse_than_of_same_aim("champion")
    assert guard.refusal(_version(1, {"objective": 0.5}), _finding(other)) == told
    if not told:
        assert "its objective is 0.3000" in guard.refusal(_version(1, {"objective": 0.3}), _finding(other))


def test_a_sweep_has_one_aim() -> None:
    guard = not_worse_than_of_same_aim("champion")
    mine, other = (_version(number, {"objective": 0.4}, {}, "demo") for number in (1, 2))
    assert guard.refusal(mine, _finding(other)) == ""
    better = _version(2, {"objective": 0.5}, {}, "demo")
    assert "its objective is 0.4000" in guard.refusal(mine, _finding(better))
