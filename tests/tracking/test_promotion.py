"""Promotions: two at once, killed in the middle, back again; what the audit says of each, and what they may depend on."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cddpm.errors import ConfigError, RefusedError, TrackingError
from cddpm.tracking import names, promotion
from cddpm.tracking.address import file_uri
from cddpm.tracking.catalogue import Version
from cddpm.tracking.catalogue_client import CatalogueClient
from cddpm.tracking.promotion import BEGUN, Promotion, history, not_worse, not_worse_than_of_same_aim, required
from cddpm.tracking.registry import Registry

KINDS = ("file", "contested")
ONE_KIND = ["file", pytest.param("contested", marks=pytest.mark.nightly)]


def _registry(file: Path, kind: str = "file") -> Registry:
    """``contested``: as if the file were a server that others write to as well."""
    registry = Registry.open(file_uri(file))
    if kind == "contested":
        registry._book._file = None
        vars(registry)["_catalogue"] = registry._book
    return registry


@pytest.fixture
def registry(three_versions: Path) -> Registry:
    return _registry(three_versions)


def _of(registry: Registry, alias: str) -> list[Promotion]:
    return [entry for entry in registry.promotions() if entry.alias == alias]


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_of_two_at_once_one_wins_and_the_other_is_told(
    three_versions: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    both_looked = threading.Barrier(2, timeout=60)
    verify = Registry.verify

    def wait(self: Registry, version: object) -> None:
        both_looked.wait()
        verify(self, version)  # type: ignore[arg-type]

    monkeypatch.setattr(Registry, "verify", wait)
    outcomes: dict[int, Promotion | RefusedError] = {}

    def promote(number: int) -> None:
        try:
            outcomes[number] = _registry(three_versions, kind).promote(str(number), "busy", f"reason {number}")
        except RefusedError as error:
            outcomes[number] = error

    threads = [threading.Thread(target=promote, args=(number,)) for number in (1, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    registry = Registry.open(file_uri(three_versions))
    (winner,) = [number for number, outcome in outcomes.items() if isinstance(outcome, Promotion)]
    assert f"'busy' was moved from no version to version {winner} meanwhile" in str(outcomes[3 - winner])
    assert registry.find("busy").number == winner
    audit = {entry.why: entry.refused for entry in _of(registry, "busy")}
    assert audit.keys() == {"reason 1", "reason 2"}
    assert audit[f"reason {winner}"] == ""


@pytest.mark.slow
@pytest.mark.parametrize("kind", ONE_KIND)
def test_killed_between_its_steps_the_alias_stays_and_the_intent_is_known(three_versions: Path, kind: str) -> None:
    _registry(three_versions).promote("1", "steady", "good")
    code = (
        "import os, signal, sys; from pathlib import Path; import test_promotion\n"
        "registry = test_promotion._registry(Path(sys.argv[1]), sys.argv[2])\n"
        "type(registry._book).set_alias = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\n"
        "registry.promote('2', 'steady', 'better')"
    )
    places = [str(Path(__file__).parent), str(Path(__file__).parents[1]), str(Path(__file__).parents[2])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(places)}
    done = subprocess.run([sys.executable, "-c", code, str(three_versions), kind], env=environment, check=False)
    assert done.returncode == -signal.SIGKILL
    registry = _registry(three_versions, kind)
    assert registry.find("steady").number == 1
    registry.verify(registry.find("steady"))
    assert [(entry.why, entry.refused) for entry in _of(registry, "steady")] == [("good", ""), ("better", BEGUN)]
    assert registry.promote("3", "steady", "best").previous == 1


@pytest.mark.slow
def test_promotions_are_kept(registry: Registry) -> None:
    first = registry.promote("1", "champion", " the first ", who="anna")
    second = registry.promote("3", "champion", "better loss", who="ben")
    assert (first.previous, second.previous, first.why) == (None, 1, "the first")
    assert _of(registry, "champion") == [first, second]
    assert registry.promotions(3) == [second]
    assert registry.versions()[0].aliases == ("champion",)


@pytest.mark.parametrize("alias", ["latest", "v3", "V12", "", "a b", "3", "a/b", "x" * 65])
def test_impossible_aliases(registry: Registry, alias: str) -> None:
    with pytest.raises(TrackingError, match="alias: "):
        registry.promote("1", alias, "why not")


def test_a_promotion_needs_a_reason(registry: Registry) -> None:
    with pytest.raises(TrackingError, match="why: "):
        registry.promote("1", "champion", "  ")


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_rollback_goes_back_one_by_one(three_versions: Path, kind: str) -> None:
    registry = _registry(three_versions, kind)
    for number in ("1", "3", "2"):
        registry.promote(number, "champion", "next")
    back = registry.rollback("champion", who="anna")
    assert (back.version, back.previous, back.why, back.action) == (3, 2, "rollback of version 2", "rollback")
    assert registry.rollback("champion", "worse on MSLUB").version == 1
    with pytest.raises(TrackingError, match="'champion' of 'cddpm' never meant anything else than version 1"):
        registry.rollback("champion")
    assert registry.find("champion").number == 1


@pytest.mark.slow
def test_rollback_of_what_is_no_alias_names_the_nearest(registry: Registry) -> None:
    registry.promote("1", "champion", "first")
    with pytest.raises(TrackingError, match="'champoin' is no alias of 'cddpm'; there are champion"):
        registry.rollback("champoin")


@pytest.mark.slow
def test_an_archived_version_does_not_come_back(registry: Registry) -> None:
    registry.promote("1", "champion", "first")
    registry.promote("2", "champion", "second")
    registry.archive("1", "superseded", who="anna")
    with pytest.raises(RefusedError, match=r"version 1 of 'cddpm' is archived; .*restore 1"):
        registry.rollback("champion")
    with pytest.raises(RefusedError, match="is archived"):
        registry.promote("1", "other", "why")
    assert not registry.restore("1").archived
    assert registry.rollback("champion").version == 1


@pytest.mark.slow
def test_what_an_alias_points_to_is_not_archived(registry: Registry) -> None:
    registry.promote("2", "champion", "first")
    with pytest.raises(RefusedError, match="version 2 of 'cddpm' is champion; promote another one"):
        registry.archive("2", "old")
    assert not registry.find("2").archived


def _entry(version: int, previous: int | None, action: str = "promote", refused: str = "") -> Promotion:
    return Promotion(
        "a", version, previous, "me", "2026-01-01T00:00:00.000000+00:00", "why", action, (), False, refused
    )  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("entries", "current", "expected"),
    [
        ([], None, []),
        ([], 4, [4]),  # set in MLflow's pages
        ([_entry(1, None), _entry(2, 1)], 2, [1, 2]),
        ([_entry(1, None), _entry(2, 1), _entry(1, 2)], 1, [1, 2, 1]),
        ([_entry(1, None), _entry(2, 1), _entry(1, 2, "rollback")], 1, [1]),
        ([_entry(1, None), _entry(2, 1), _entry(3, 2), _entry(2, 3, "rollback"), _entry(1, 2, "rollback")], 1, [1]),
        ([_entry(1, None), _entry(2, 1, refused=BEGUN), _entry(3, 1)], 3, [1, 3]),
        ([_entry(1, None), _entry(2, 1, refused=BEGUN)], 2, [1, 2]),  # died after the alias had moved
        ([_entry(1, None), _entry(3, 7)], 3, [1, 7, 3]),  # 7 was set in MLflow's pages
        ([_entry(1, None), _entry(1, 1)], 1, [1]),
        ([_entry(1, None), _entry(2, None)], 2, [2]),  # the alias was deleted in between
    ],
)
def test_history(entries: list[Promotion], current: int | None, expected: list[int]) -> None:
    assert history(entries, "a", current) == expected
    assert history(entries, "other", None) == []


class _Rival:
    """A catalogue where somebody else's attempt is carried out, or is not, after ours was entered."""

    contested = True

    def __init__(self, inner: CatalogueClient, after_looks: int | None, name: str) -> None:
        self._inner, self._left, self._name = inner, after_looks, name

    def __getattr__(self, name: str) -> Callable[..., object]:
        return getattr(self._inner, name)  # type: ignore[no-any-return]

    def model(self, name: str) -> object:
        if self._left is not None:
            self._left -= 1
            if self._left == 0:
                self._inner.set_alias(name, "busy", 3)
        return self._inner.model(name)


@pytest.mark.slow
@pytest.mark.parametrize(("after_looks", "wins"), [(3, False), (None, True)])
def test_a_rival_that_began_first_is_waited_for(
    registry: Registry, after_looks: int | None, wins: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(promotion, "_FIRST_COMES_SECONDS", 10.0 if after_looks else 0.3)
    when = "2026-01-01T00:00:00.000000+00:00"
    rival, mine = (Promotion("busy", number, None, "me", when, "why") for number in (3, 1))
    catalogue = _Rival(registry._book, after_looks, registry.name)
    for key, attempt in (("cddpm.promotion.a", rival), ("cddpm.promotion.b", mine)):
        promotion.begin(catalogue, registry.name, key, attempt)  # type: ignore[arg-type]
    outcome = promotion.move(catalogue, registry.name, "cddpm.promotion.b", mine, "")  # type: ignore[arg-type]
    assert (outcome.refused == "") == wins
    assert registry.find("busy").number == (1 if wins else 3)


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
