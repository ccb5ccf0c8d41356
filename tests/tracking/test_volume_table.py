"""The rows of numbers that runs keep per volume."""

import json
import shutil
import sqlite3
from pathlib import Path

import pytest
import registered

from cddpm.errors import ArtifactError
from cddpm.tracking import names
from cddpm.tracking.address import file_uri
from cddpm.tracking.registry import Registry


@pytest.fixture
def registry(three_versions: Path) -> Registry:
    return Registry.open(file_uri(three_versions))


def _place(registry: Registry, run_id: str, folder: Path) -> None:
    with sqlite3.connect(registry.uri.removeprefix("sqlite:///")) as connection:
        connection.execute("UPDATE runs SET artifact_uri = ? WHERE run_uuid = ?", (str(folder), run_id))


def test_validation_rows_lie_with_the_trial(registry: Registry) -> None:
    rows = registry.volumes(registry.find("2"))
    assert rows is not None
    assert [(row["dataset"], row["subject"], row["dice"]) for row in rows] == [
        ("Brats21", f"s{i}", dice) for i, dice in enumerate(registered.DICE[1])
    ]


def test_test_rows_are_the_champions_alone(registry: Registry, tmp_path: Path) -> None:
    champion = registry.find("2")
    (trial,) = registry._catalogue.runs([champion.run_id]).values()
    sweep = trial.tags[names.PARENT]
    assert registry.volumes(champion, "test") is None
    table = {"columns": ["contender", "dice"], "data": [["champion", 0.5], ["intensity threshold", 0.1]]}
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / names.VOLUMES["test"]).write_text(json.dumps(table))
    _place(registry, sweep, tmp_path / "files")
    with sqlite3.connect(registry.uri.removeprefix("sqlite:///")) as connection:
        row = (names.CHAMPION, champion.trial_name, sweep)
        connection.execute("INSERT INTO tags (key, value, run_uuid) VALUES (?, ?, ?)", row)
    assert registry.volumes(champion, "test") == [{"contender": "champion", "dice": 0.5}]
    assert registry.volumes(registry.find("1"), "test") is None


@pytest.mark.parametrize("content", ["{", "[]", '{"columns": ["a"], "data": [[1, 2]]}'])
def test_a_damaged_table_is_named(registry: Registry, tmp_path: Path, content: str) -> None:
    version = registry.find("2")
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / names.VOLUMES["val"]).write_text(content)
    _place(registry, version.run_id, tmp_path / "files")
    with pytest.raises(ArtifactError, match=f"run {version.run_id}: its table of volumes is damaged"):
        registry.volumes(version)
    shutil.rmtree(tmp_path / "files")
    assert registry.volumes(version) is None
