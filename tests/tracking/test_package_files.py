"""Files that MLflow keeps: what climbs, links or was exchanged is refused by name, and nothing of it is loaded."""

import json
import shutil
import sqlite3
from pathlib import Path

import pytest
import registered

from cddpm import artifact
from cddpm.errors import ArtifactError
from cddpm.tracking import package_files
from cddpm.tracking.address import file_uri
from cddpm.tracking.registry import Registry


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, database: Path) -> Path:
    return registered.filled(tmp_path_factory.mktemp("home"), database)


@pytest.fixture
def registry(home: Path, tmp_path: Path) -> Registry:
    """A registry whose version 2 lies in a folder that a test may harm."""
    registry = Registry.open(file_uri(shutil.copyfile(home / "mlflow.db", tmp_path / "mlflow.db")))
    (tmp_path / "mlartifacts").symlink_to(home / "mlartifacts")
    package = registry.local_package(registry.find("2"))
    assert package is not None
    _set_location(registry, str(shutil.copytree(package.parents[1], tmp_path / "model")))
    return registry


def _file(registry: Registry) -> Path:
    return Path(registry.uri.removeprefix("sqlite:///"))


def _set_location(registry: Registry, place: str) -> None:
    with sqlite3.connect(_file(registry)) as connection:
        statement = "UPDATE logged_models SET artifact_location = ? WHERE model_id = ?"
        connection.execute(statement, (place, registry.find("2").model_id))


def _refused(registry: Registry, tmp_path: Path, told: str) -> None:
    for attempt in (
        lambda: registry.pull("2", tmp_path / "pulled"),
        lambda: registry.verify(registry.find("2")),
        lambda: registry.promote("2", "bad", "why"),
    ):
        with pytest.raises(ArtifactError, match=r"version 2 of 'cddpm': .*Nothing was loaded") as caught:
            attempt()
        assert told in str(caught.value)
    assert not (tmp_path / "pulled").exists()
    assert registry.find("2").aliases == ()
    assert not list(tmp_path.glob(".*partial"))


@pytest.mark.slow
def test_the_others_are_whole(registry: Registry, tmp_path: Path) -> None:
    for number in ("1", "2", "3"):
        registry.verify(registry.find(number))
    assert registry.pull("2", tmp_path / "pulled").is_dir()


@pytest.mark.slow
@pytest.mark.parametrize(
    "place",
    ["{}/model/../../elsewhere", "file://{}/model/../model", "file://{}/model/%2e%2e/model", "model", "../model"],
)
def test_a_place_that_climbs_is_refused(registry: Registry, tmp_path: Path, place: str) -> None:
    _set_location(registry, place.format(tmp_path))
    _refused(registry, tmp_path, "climbs out of its folder")


@pytest.mark.parametrize("source", ["models:/../../etc", "/etc", "models:/m-1", "s3://bucket/x"])
def test_an_entry_that_is_no_model_id_is_refused(registry: Registry, tmp_path: Path, source: str) -> None:
    with sqlite3.connect(_file(registry)) as connection:
        connection.execute("UPDATE model_versions SET source = ? WHERE version = 2", (source,))
    _refused(registry, tmp_path, "is no model id of MLflow")


@pytest.mark.parametrize("name", ["../outside.json", "/etc/hostname", "data/../../outside.json"])
def test_a_manifest_that_climbs_is_refused(registry: Registry, tmp_path: Path, name: str) -> None:
    (tmp_path / "outside.json").write_text("{}")
    file = tmp_path / "model" / artifact.MANIFEST
    manifest = json.loads(file.read_text())
    manifest["files"][name] = artifact.file_digest(tmp_path / "outside.json")
    file.write_text(json.dumps(manifest))
    _refused(registry, tmp_path, f"the manifest names a file outside of the artifact: {name}")


def test_a_package_manifest_that_climbs_is_refused(registry: Registry, tmp_path: Path) -> None:
    package = tmp_path / "model" / package_files.INSIDE
    manifest = json.loads((package / artifact.MANIFEST).read_text())
    manifest["files"]["../../../outside.json"] = "0" * 64
    (package / artifact.MANIFEST).write_text(json.dumps(manifest))
    (tmp_path / "model" / artifact.MANIFEST).unlink()
    artifact.seal(tmp_path / "model", package_files.LOGGED_MODEL, registry.find("2").fingerprint, {})
    _refused(registry, tmp_path, "a model package has exactly")


def test_a_link_is_refused(registry: Registry, tmp_path: Path) -> None:
    (tmp_path / "model" / "more").symlink_to("/etc")
    with pytest.raises(ArtifactError, match="'more' is a link"):
        registry.pull("2", tmp_path / "pulled")
    assert not (tmp_path / "pulled").exists()


@pytest.mark.parametrize("harm", ["altered", "deleted"])
def test_what_was_altered_or_deleted_is_named(registry: Registry, tmp_path: Path, harm: str) -> None:
    if harm == "altered":
        registered.altered(tmp_path / "model" / package_files.INSIDE)
        _refused(registry, tmp_path, "pipeline.json: altered or damaged")
    else:
        shutil.rmtree(tmp_path / "model")
        _refused(registry, tmp_path, "does not exist")


def test_a_deleted_entry_is_told(registry: Registry, tmp_path: Path) -> None:
    with sqlite3.connect(_file(registry)) as connection:
        connection.execute("DELETE FROM logged_models WHERE model_id = ?", (registry.find("2").model_id,))
    _refused(registry, tmp_path, "its files were deleted from MLflow")


def test_places_that_are_not_here(tmp_path: Path) -> None:
    for uri in ("s3://bucket/a", "mlflow-artifacts:/1/a", "http://host/a", "file://otherhost/a"):
        assert package_files.local_path(uri) is None
    assert package_files.local_path("file:///a%20b/c") == Path("/a b/c")
    assert package_files.read_file(str(tmp_path), "nothing.json", "") is None
