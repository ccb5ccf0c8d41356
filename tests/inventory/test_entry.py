"""Every artifact is seen with its size, age and origin, and every damage is found."""

import time
from collections.abc import Callable
from pathlib import Path

import pytest
from shelf import Shelf

from cddpm import artifact
from cddpm.inventory.entry import Entry, damage, survey
from cddpm.reconstruct.part import parts_of


def by_name(shelf: Shelf) -> dict[str, Entry]:
    return {entry.fingerprint: entry for entry in survey(shelf.artifacts)}


def test_every_kind_is_seen_with_its_parents(shelf: Shelf) -> None:
    entries = by_name(shelf)
    assert {name: entry.kind for name, entry in entries.items()} == {
        "s1": "store",
        "e1": "encoder",
        "c1": "checkpoint",
        "c2": "checkpoint",
        "p1": "prediction",
        "p2": "prediction",
        "r1": "reconstruction",
        "r2": "reconstruction",
        "r3": "reconstruction",
        "k1": "score",
        "k3": "score",
    }
    parents = {name: set(entry.parents) for name, entry in entries.items()}
    assert parents["s1"] == set()
    assert parents["c1"] == {"s1", "e1"}
    assert parents["p1"] == {"c1"}
    assert parents["r1"] == {"p1", "c1"}
    assert parents["k1"] == {"r1"}
    assert len(entries["p1"].parts) == 4
    assert entries["r2"].needs == {("a", (250, 0)), ("a", (500, 0))}


def test_sizes_and_ages(shelf: Shelf) -> None:
    entries = by_name(shelf)
    for name, folder in {"c1": "checkpoint/c1", "p1": "prediction/p1", "k1": "score/k1"}.items():
        files = [file for file in (shelf.artifacts / folder).rglob("*") if file.is_file()]
        assert entries[name].bytes == sum(file.stat().st_size for file in files)
    assert (time.time() - entries["c1"].modified) / 86400 == pytest.approx(20, abs=0.1)
    assert sum(entries["p1"].parts.values()) < entries["p1"].bytes


def test_what_is_sound_has_no_damage(shelf: Shelf) -> None:
    assert [fault for entry in survey(shelf.artifacts) for fault in damage(entry)] == []


def spoil(file: Path) -> Path:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 4
    file.write_bytes(data)
    return file


DAMAGES: list[Callable[[Path], Path]] = [
    lambda a: spoil(a / "checkpoint/c1/content"),
    lambda a: spoil(parts_of(a / "prediction/p1", "a")[250, 0]),
    lambda a: spoil(a / "score/k1/0123.jsonl"),
    lambda a: spoil(a / "reconstruction/r1/view.json"),
    lambda a: spoil(a / "store/s1/manifest.json"),
]


@pytest.mark.parametrize("harm", DAMAGES)
def test_a_damaged_file_is_named(shelf: Shelf, harm: Callable[[Path], Path]) -> None:
    file = harm(shelf.artifacts)
    faults = [fault for entry in survey(shelf.artifacts) for fault in damage(entry)]
    assert any(str(file) in fault or str(file.parent) in fault for fault in faults), faults
    assert len({fault.split(":")[0] for fault in faults}) == 1


def test_lost_parts_are_told_of_every_reconstruction_that_needs_them(shelf: Shelf) -> None:
    parts_of(shelf.artifacts / "prediction/p1", "a")[250, 0].unlink()
    faults = {entry.fingerprint: damage(entry) for entry in survey(shelf.artifacts)}
    assert {name for name, found in faults.items() if found} == {"r1", "r2"}
    assert "parts of 1 volumes are gone" in faults["r1"][0]


def test_unfinished_work_and_leftovers_are_seen(shelf: Shelf) -> None:
    (shelf.artifacts / "checkpoint" / ".work" / "c9").mkdir(parents=True)
    (shelf.artifacts / "checkpoint" / ".c8.12ab.partial").mkdir()
    artifact.create(shelf.artifacts / "reconstruction" / "old", "reconstruction cache", "old", {}, lambda f: None)
    kinds = {entry.fingerprint: entry.kind for entry in survey(shelf.artifacts)}
    assert (kinds["c9"], kinds[".c8.12ab.partial"], kinds["old"]) == ("unfinished", "leftover", "leftover")


def test_nothing_is_there(tmp_path: Path) -> None:
    assert survey(tmp_path / "nowhere") == []
