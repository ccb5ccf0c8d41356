"""Two ways to one lab book: what is read from a file is what MLflow's client says, of the file and of a server before it."""

import json
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest
import registered
from mlflow.store.db.utils import _get_latest_schema_revision
from mlflow_process import running

from cddpm.errors import AwayError, TrackingError
from cddpm.tracking import catalogue_file, connection, names
from cddpm.tracking.address import file_uri
from cddpm.tracking.catalogue import Version
from cddpm.tracking.catalogue_client import CatalogueClient
from cddpm.tracking.catalogue_file import CatalogueFile
from cddpm.tracking.registry import Registry

Both = tuple[CatalogueFile, CatalogueClient]


@pytest.fixture
def both(three_versions: Path) -> Both:
    return CatalogueFile(three_versions), _client(file_uri(three_versions))


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, database: Path) -> Iterator[Both]:
    """A server over a database of 300 versions and 600 runs."""
    folder = tmp_path_factory.mktemp("server")
    file = folder / "mlflow.db"
    file.write_bytes(database.read_bytes())
    registered.many(file, 10, 60, 300)
    with running(folder, "--backend", file_uri(file)) as server:
        yield CatalogueFile(file), _client(server.uri)


def _client(uri: str) -> CatalogueClient:
    return CatalogueClient(connection.connect(uri, create=False), uri)


def _agree(both: Both, count: int) -> None:
    file, client = both
    assert file.models() == client.models() == ["cddpm"]
    assert file.model("cddpm") == client.model("cddpm")
    assert file.model("other") is None is client.model("other")
    versions, others = (sorted(c.versions("cddpm"), key=lambda v: v.number) for c in both)
    assert versions == others
    assert [version.number for version in versions] == list(range(1, count + 1))
    for some in (1, 3, count):
        wanted = [*[version.run_id for version in versions[:some]], "f" * 32]
        assert file.runs(wanted) == client.runs(wanted)
        assert len(file.runs(wanted)) == some
    for model_id in (versions[0].model_id, "m-" + "0" * 32):
        assert file.location(model_id) == client.location(model_id)
    assert file.location("m-" + "0" * 32) is None


@pytest.mark.slow
def test_both_say_the_same(both: Both, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cddpm.tracking.catalogue_client._ONE_BY_ONE", 1)  # three are searched for
    _agree(both, 3)
    assert both[0].location(both[0].versions("cddpm")[0].model_id)


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("page", [200, 1000])
def test_a_server_says_what_its_database_holds(served: Both, page: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cddpm.tracking.catalogue_client._PAGE", page)
    _agree(served, 300)


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("where", ["both", "served"])
def test_what_is_written_is_read_both_ways(where: str, request: pytest.FixtureRequest) -> None:
    file, client = request.getfixturevalue(where)
    client.tag_model("cddpm", "note", "a 'quoted' text & more")
    client.tag_version("cddpm", 2, "note", "x")
    client.tag_version("cddpm", 3, "gone", "x")
    client.tag_version("cddpm", 3, "gone", None)
    client.set_alias("cddpm", "champion", 1)
    client.set_alias("cddpm", "champion", 2)
    found = file.model("cddpm")
    assert found is not None
    assert (found.tags["note"], found.aliases) == ("a 'quoted' text & more", {"champion": 2})
    assert {v.number: v.tags.get("note") for v in file.versions("cddpm") if v.number < 4} == {1: None, 2: "x", 3: None}
    assert all("gone" not in version.tags for version in file.versions("cddpm"))
    _agree((file, client), 300 if where == "served" else 3)
    with pytest.raises(TrackingError, match=r"MLflow refuses: .*not found"):
        client.set_alias("cddpm", "champion", 999)
    with pytest.raises(TrackingError, match="MLflow refuses: "):
        client.set_alias("cddpm", "not an alias!", 1)


@pytest.mark.slow
@pytest.mark.parametrize("written", [False, pytest.param(True, marks=pytest.mark.nightly)])  # MLflow waits for 20 s
def test_a_busy_database_is_read_and_may_be_tried_again(both: Both, written: bool) -> None:
    file, client = both
    writer = sqlite3.connect(file._file, isolation_level=None)
    writer.execute("BEGIN IMMEDIATE")
    try:
        assert file.model("cddpm") == client.model("cddpm") is not None  # reading goes on
        if written:
            with pytest.raises(AwayError, match="database is locked"):
                client.set_alias("cddpm", "champion", 1)
    finally:
        writer.execute("ROLLBACK")
        writer.close()


def test_the_reader_was_tested_with_the_mlflow_that_is_installed() -> None:
    assert _get_latest_schema_revision() in catalogue_file.SCHEMAS


def test_a_file_of_an_untried_schema_is_left_to_mlflow(three_versions: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cddpm.tracking.registry.SCHEMAS", frozenset())
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
    from cddpm.tracking.query import parse

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


# A version, as its entry describes it

TAGS = {
    names.FINGERPRINT_PACKAGE: "f1",
    names.METRICS: '{"val/dice": 0.5}',
    names.SWEEP: "demo",
    names.TRIAL: "7",
    "a": "b",
}
ALIASES = {"z": 2, "champion": 2, "other": 1}


def test_an_entry_becomes_a_version() -> None:
    version = Version.of(2, "run", "models:/m-1", 1_700_000_000_000, TAGS, ALIASES)
    assert (version.aliases, version.trial_name, version.model_id) == (("champion", "z"), "demo/0007", "m-1")
    assert (version.created, version.metrics) == ("2023-11-14T22:13:20+00:00", {"val/dice": 0.5})
    assert names.METRICS not in version.tags
    assert not version.archived
    plain = version.plain()
    assert json.loads(json.dumps(plain)) == plain
    assert plain["trial_name"] == "demo/0007"


def test_what_is_for_machines_lies_in_one_tag_or_each_in_its_own() -> None:
    packed = {names.FINGERPRINT_PACKAGE: "f1", "a": "b"}
    shown = {key: value for key, value in TAGS.items() if key not in packed}
    versions = [
        Version.of(2, "run", "models:/m-1", 0, tags, ALIASES)
        for tags in (TAGS, {**shown, names.RECORD: json.dumps(packed)})
    ]
    assert versions[0] == versions[1]


def test_an_archived_one_and_one_without_a_trial() -> None:
    tags = {key: value for key, value in TAGS.items() if key != names.TRIAL} | {names.ARCHIVED: "{}"}
    version = Version.of(3, "run", "models:/m-1", 0, tags, ALIASES)
    assert version.archived
    assert (version.trial_name, version.aliases) == ("demo", ())


def test_what_others_registered_is_not_ours(three_versions: Path) -> None:
    with sqlite3.connect(three_versions) as connection:
        connection.execute("DELETE FROM model_version_tags WHERE version = 2")
    assert [version.number for version in Registry.open(file_uri(three_versions)).versions()] == [3, 1]
