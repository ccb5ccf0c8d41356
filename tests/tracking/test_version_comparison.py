"""Registered versions side by side, with numbers that were worked out by hand."""

import json
import shutil
import sqlite3
from pathlib import Path

import pytest
import registered

from cddpm.errors import ArtifactError
from cddpm.tracking import names
from cddpm.tracking.address import file_uri
from cddpm.tracking.package_files import INSIDE
from cddpm.tracking.registry import Registry
from cddpm.tracking.version_comparison import side_by_side, volumes

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def registry(database: Path, tmp_path_factory: pytest.TempPathFactory) -> Registry:
    folder = registered.filled(tmp_path_factory.mktemp("compared"), database)
    return Registry.open(file_uri(folder / "mlflow.db"))


def test_side_by_side(registry: Registry) -> None:
    found = side_by_side(registry, [registry.find(ref) for ref in ("1", "2", "3")])
    assert found.settings == {"scoring.guidance_scale": ("0.5", "1.0", "1.5")}
    assert found.metrics["val/dice"] == (0.3, 0.5, 0.4)
    assert found.metrics["objective"] == (0.3, None, None)
    assert "test/dice" not in found.metrics
    assert found.notes == ()
    (score,) = found.scores  # AUPRC is not known of any volume
    assert (score.dataset, score.measure) == ("Brats21", "dice")
    assert [interval.mean for interval in score.intervals] == pytest.approx([0.3, 0.5, 0.4])
    assert (score.intervals[1].low, score.intervals[1].high) == (0.5, 0.5)
    first, second, third = score.against_first
    assert first is None
    assert second is not None
    assert third is not None
    # differences 0.3 and 0.1: of four sign patterns one has as large a sum, so p = 2/4; Holm over two tests doubles it
    assert (second.difference, second.p, second.adjusted, second.exact) == (pytest.approx(0.2), 0.5, 1.0, True)
    assert (third.difference, third.p, third.subjects) == (pytest.approx(0.1), 0.5, 2)


def test_test_scores_are_the_champions_alone(registry: Registry) -> None:
    found = side_by_side(registry, [registry.find("1"), registry.find("2")], "test")
    assert found.scores == ()
    assert "version 1: its run has no table of test volumes" in found.notes[0]
    assert found.metrics == {"test/dice": (0.9, 0.1)}


def test_an_altered_package_is_not_compared(registry: Registry) -> None:
    version = registry.find("3")
    local = registry.local_package(version)
    assert local is not None
    assert local.parts[-2:] == INSIDE.parts
    original = (local / "pipeline.json").read_text()
    registered.altered(local)
    try:
        with pytest.raises(
            ArtifactError,
            match=r"version 3 of 'cddpm': .*pipeline\.json is missing or was altered\. Nothing was compared",
        ):
            side_by_side(registry, [registry.find("1"), version])
    finally:
        (local / "pipeline.json").write_text(original)


# The rows of numbers that runs keep per volume


@pytest.fixture
def own(three_versions: Path) -> Registry:
    """One that a test may harm."""
    return Registry.open(file_uri(three_versions))


def _place(own: Registry, run_id: str, folder: Path) -> None:
    with sqlite3.connect(own.uri.removeprefix("sqlite:///")) as connection:
        connection.execute("UPDATE runs SET artifact_uri = ? WHERE run_uuid = ?", (str(folder), run_id))


def test_validation_rows_lie_with_the_trial(own: Registry) -> None:
    rows = volumes(own, own.find("2"))
    assert rows is not None
    assert [(row["dataset"], row["subject"], row["dice"]) for row in rows] == [
        ("Brats21", f"s{i}", dice) for i, dice in enumerate(registered.DICE[1])
    ]


def test_test_rows_are_the_champions_alone(own: Registry, tmp_path: Path) -> None:
    champion = own.find("2")
    (trial,) = own._catalogue.runs([champion.run_id]).values()
    sweep = trial.tags[names.PARENT]
    assert volumes(own, champion, "test") is None
    table = {"columns": ["contender", "dice"], "data": [["champion", 0.5], ["intensity threshold", 0.1]]}
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / names.VOLUMES["test"]).write_text(json.dumps(table))
    _place(own, sweep, tmp_path / "files")
    with sqlite3.connect(own.uri.removeprefix("sqlite:///")) as connection:
        row = (names.CHAMPION, champion.trial_name, sweep)
        connection.execute("INSERT INTO tags (key, value, run_uuid) VALUES (?, ?, ?)", row)
    assert volumes(own, champion, "test") == [{"contender": "champion", "dice": 0.5}]
    assert volumes(own, own.find("1"), "test") is None


@pytest.mark.parametrize("content", ["{", "[]", '{"columns": ["a"], "data": [[1, 2]]}'])
def test_a_damaged_table_is_named(own: Registry, tmp_path: Path, content: str) -> None:
    version = own.find("2")
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / names.VOLUMES["val"]).write_text(content)
    _place(own, version.run_id, tmp_path / "files")
    with pytest.raises(ArtifactError, match=f"run {version.run_id}: its table of volumes is damaged"):
        volumes(own, version)
    shutil.rmtree(tmp_path / "files")
    assert volumes(own, version) is None
