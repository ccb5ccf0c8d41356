"""Two ways to one database: what is read from the file is what MLflow says, and what is written MLflow understands."""

import sqlite3
from pathlib import Path

import pytest
import registered

from cddpm.errors import AwayError, TrackingError
from cddpm.tracking import connection, database
from cddpm.tracking.address import file_uri
from cddpm.tracking.catalogue_client import CatalogueClient
from cddpm.tracking.catalogue_file import CatalogueFile
from cddpm.tracking.registry import Registry


@pytest.fixture
def both(three_versions: Path) -> tuple[CatalogueFile, CatalogueClient]:
    uri = file_uri(three_versions)
    return CatalogueFile(three_versions), CatalogueClient(connection.connect(uri, create=False), uri)


def test_both_say_the_same(both: tuple[CatalogueFile, CatalogueClient]) -> None:
    file, client = both
    file.tag_model("cddpm", "note", "a 'quoted' text")
    file.tag_version("cddpm", 2, "note", "x")
    file.set_alias("cddpm", "champion", 3)
    assert file.model("cddpm") == client.model("cddpm")
    assert file.model("other") is None is client.model("other")
    versions = [sorted(c.versions("cddpm"), key=lambda v: v.number) for c in both]
    assert versions[0] == versions[1]
    assert [version.number for version in versions[0]] == [1, 2, 3]
    for version in versions[0]:
        model_id = version.source.removeprefix("models:/")
        assert file.location(model_id) == client.location(model_id)
    assert file.location("m-" + "0" * 32) is None is client.location("m-" + "0" * 32)


@pytest.mark.parametrize("count", [1, 3])
def test_both_know_the_same_runs(
    both: tuple[CatalogueFile, CatalogueClient], count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cddpm.tracking.catalogue_client._ONE_BY_ONE", 1)  # three are searched for
    file, client = both
    wanted = [*[version.run_id for version in file.versions("cddpm")][:count], "0" * 32]
    assert file.runs(wanted) == client.runs(wanted)
    assert len(file.runs(wanted)) == count


def test_what_is_written_mlflow_reads(both: tuple[CatalogueFile, CatalogueClient]) -> None:
    file, client = both
    with file.exclusive():
        file.set_alias("cddpm", "champion", 1)
        file.set_alias("cddpm", "champion", 2)
        file.tag_version("cddpm", 2, "gone", "x")
        file.tag_version("cddpm", 2, "gone", None)
    found = client.model("cddpm")
    assert found is not None
    assert found.aliases == {"champion": 2}
    client.set_alias("cddpm", "champion", 3)
    client.tag_version("cddpm", 3, "a", "b")
    again = file.model("cddpm")
    assert again is not None
    assert again.aliases == {"champion": 3}
    assert {v.number: v.tags.get("a") for v in file.versions("cddpm")} == {1: None, 2: None, 3: "b"}
    client.tag_version("cddpm", 3, "a", None)
    assert file.versions("cddpm") == CatalogueFile(file._file).versions("cddpm")


def test_what_is_interrupted_leaves_no_trace(both: tuple[CatalogueFile, CatalogueClient]) -> None:
    file, _ = both
    before = file.model("cddpm")

    def cut_off() -> None:
        with file.exclusive():
            file.set_alias("cddpm", "champion", 1)
            file.tag_model("cddpm", "a", str(1 / 0))

    with pytest.raises(ZeroDivisionError):
        cut_off()
    assert file.model("cddpm") == before


def test_a_busy_database_may_be_tried_again(three_versions: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database, "_BUSY_SECONDS", 0.1)
    file = CatalogueFile(three_versions)
    writer = sqlite3.connect(three_versions, isolation_level=None)
    writer.execute("BEGIN IMMEDIATE")
    try:
        assert file.model("cddpm") is not None  # reading goes on
        with pytest.raises(AwayError, match="another process has been writing"):
            file.set_alias("cddpm", "champion", 1)
    finally:
        writer.execute("ROLLBACK")
        writer.close()


def test_a_file_of_another_schema_is_left_to_mlflow(three_versions: Path) -> None:
    with sqlite3.connect(three_versions) as connection_:
        connection_.execute("ALTER TABLE latest_metrics RENAME COLUMN is_nan TO nan")
    assert not CatalogueFile(three_versions).readable
    registry = Registry.open(file_uri(three_versions))
    assert isinstance(registry._catalogue, CatalogueClient)
    assert [version.number for version in registry.versions()] == [3, 2, 1]


def test_a_damaged_file_is_told(three_versions: Path) -> None:
    data = bytearray(three_versions.read_bytes())
    data[100:] = b"\xff" * (len(data) - 100)
    three_versions.write_bytes(bytes(data))
    with pytest.raises(TrackingError, match=r"mlflow\.db: the database"):
        Registry.open(file_uri(three_versions))


@pytest.mark.parametrize("condition", [False, True])
def test_a_big_lab_book_is_read_in_as_few_statements_as_a_small_one(
    tmp_path: Path, database: Path, monkeypatch: pytest.MonkeyPatch, condition: bool
) -> None:
    from cddpm.tracking.version_condition import parse

    comparisons = parse("params.guidance_scale > 0.1", "--where") if condition else []
    statements: list[str] = []
    rows = CatalogueFile._rows

    def counted(self: CatalogueFile, statement: str, *values: object) -> list[object]:
        statements.append(statement)
        return rows(self, statement, *values)

    monkeypatch.setattr(CatalogueFile, "_rows", counted)
    counts = []
    for versions in (10, 200):
        folder = tmp_path / str(versions)
        folder.mkdir()
        (folder / "mlflow.db").write_bytes(database.read_bytes())
        registered.many(folder / "mlflow.db", 10, 20, versions)
        statements.clear()
        registry = Registry.open(file_uri(folder / "mlflow.db"))
        found = registry.best("dice", "D3", top=3, comparisons=comparisons)
        assert [version.number for version in found] == [versions, versions - 1, versions - 2]
        counts.append(len(statements))
    assert counts[0] == counts[1] <= 20
