"""A project that was moved or copied: whatever is read or written afterwards lies in it, and the old place is left alone."""

import shutil
import sqlite3
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import built_sweep
import pytest
import registered
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from cddpm import events
from cddpm.cli.registry import app
from cddpm.config import ExperimentConfig, parse, recorded, resolve_paths
from cddpm.predict import source
from cddpm.tracking import database
from cddpm.tracking.address import file_uri
from cddpm.tracking.lineage import registered as made_from
from cddpm.tracking.package_files import verify_package
from cddpm.tracking.registry import Registry
from cddpm.tracking.version_comparison import volumes

pytestmark = pytest.mark.slow

_WATCHED: list[str] = []
_TOUCHED: list[str] = []


def _watch(event: str, arguments: tuple[Any, ...]) -> None:
    if _WATCHED and (event in ("open", "sqlite3.connect") or event.startswith(("os.", "shutil."))):
        _TOUCHED.extend(f"{event} {a}" for a in arguments if isinstance(a, str | Path) and _WATCHED[0] in str(a))


sys.addaudithook(_watch)


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory, database: Path) -> tuple[Path, Path]:
    """Where the project was made, and a copy that shows what was in it: three versions, and a fourth that MLflow has not seen."""
    place = tmp_path_factory.mktemp("place") / "My Study #1 50% ü"
    outputs = place / "outputs"
    outputs.mkdir(parents=True)
    registered.filled(outputs, database)
    Registry.open(file_uri(outputs / "mlflow.db")).promote("1", "champion", "first")
    folder = built_sweep.begin(built_sweep.config(outputs, "late"))
    built_sweep.ended(folder, 0, {}, "finished")
    shutil.copytree(made := registered.make_package(outputs, 7), folder / "packages" / "0000")
    what = {"package": "packages/0000", "fingerprint": verify_package(made).fingerprint, "model": "cddpm"}
    events.append(folder, "register", number=0, **what, metrics={"val/dice": 0.7}, tags={})
    return place, Path(shutil.copytree(place, tmp_path_factory.mktemp("kept") / "project"))


@pytest.fixture(params=["mv", "cp", "cp, then the old one is deleted", "mv outputs alone"])
def project(
    request: pytest.FixtureRequest, original: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Path]:
    old, kept = original
    new = tmp_path / "new"
    shutil.rmtree(old, ignore_errors=True)
    shutil.copytree(kept, old)
    if request.param == "mv":
        old.rename(new)
    elif request.param == "mv outputs alone":
        new.mkdir()
        (old / "outputs").rename(new / "outputs")
    else:
        shutil.copytree(old, new)
        if request.param != "cp":
            shutil.rmtree(old)
    before = _state(old)
    monkeypatch.chdir(new)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    _TOUCHED.clear()
    _WATCHED.append(str(old))
    yield new
    _WATCHED.clear()
    assert _TOUCHED == []
    assert _state(old) == before


def _state(folder: Path) -> dict[str, tuple[int, int]]:
    return {str(p): (p.stat().st_mtime_ns, p.stat().st_size) for p in folder.rglob("*")}


def _run(*arguments: str) -> str:
    done = CliRunner().invoke(app, arguments, env={"COLUMNS": "200"}, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


def test_who_only_reads_finds_all_and_writes_nothing(project: Path) -> None:
    book = project / "outputs" / "mlflow.db"
    before = book.read_bytes()
    assert "champion" in _run("list")
    assert "first" in _run("show", "champion")
    assert "3" in _run("verify")
    assert str(project) in _run("lineage", "champion", "--json")
    assert _run("compare", "1", "2")
    _run("pull", "2", "pulled")
    assert (project / "pulled" / "model.safetensors").is_file()
    package = source._of_registry("champion", None, "cddpm").package
    assert float(package.weights["weight"][0, 0]) == 0.0
    registry = Registry.open(file_uri(book))
    assert volumes(registry, registry.find("2")) is not None
    assert len(made_from(file_uri(book))) == 3
    assert book.read_bytes() == before


def test_what_is_written_lies_in_the_project(project: Path) -> None:
    _run("promote", "2", "--alias", "champion", "--why", "moved")
    assert "late: 2 runs brought up to date" in _run("sync")
    outputs = project / "outputs"
    package = registered.make_package(outputs, 8)
    assert registered.register(outputs, package, "next/0000", metrics={"val/dice": 0.8}) == 5
    _run("verify")
    registry = Registry.open(file_uri(outputs / "mlflow.db"))
    assert {v.trial_name: v.number for v in registry.versions()}["late/0000"] == 4
    assert list((outputs / "mlartifacts").glob("*/artifacts/config.json"))
    for place in _places(outputs / "mlflow.db"):
        assert place.startswith((outputs / database.FOLDER).as_uri())


def test_nothing_that_is_kept_names_the_old_place(project: Path) -> None:
    for file in project.rglob("*"):
        if file.suffix in (".json", ".jsonl", ".yaml") and file.is_file():
            assert _WATCHED[0] not in file.read_text(), file
            assert "My Study" not in file.read_text(), file


def _places(file: Path) -> list[str]:
    with sqlite3.connect(file) as connection:
        found = [
            place
            for table, column in database._PLACES.items()
            for (place,) in connection.execute(f"SELECT {column} FROM {table} WHERE {column} IS NOT NULL")
        ]
    assert len(found) > 8
    return found


_NAMES = st.text(
    st.characters(codec="utf-8", exclude_characters="/\0", exclude_categories=["Cs", "Cc"]), min_size=1
).filter(lambda name: name not in (".", "..", database.FOLDER))
_FOLDERS = st.lists(_NAMES, min_size=1, max_size=4).map(lambda parts: Path("/", *parts))


@settings(max_examples=30)
@given(_FOLDERS, _FOLDERS, st.lists(_NAMES, max_size=3))
def test_a_place_of_the_book_goes_where_the_book_goes(old: Path, new: Path, rest: list[str]) -> None:
    file = new / "mlflow.db"
    wanted = new.joinpath(database.FOLDER, *rest).as_uri()
    there = old.joinpath(database.FOLDER, *rest)
    assert database.here(there.as_uri(), file) == wanted
    assert database.here(wanted, file) == wanted
    for place in (old.joinpath(*rest).as_uri(), "s3://bucket/mlartifacts/x", "mlflow-artifacts:/1/mlartifacts/x", ""):
        assert database.here(place, file) == place


@settings(max_examples=30)
@given(_FOLDERS, _FOLDERS, st.lists(_NAMES, min_size=1, max_size=3), _FOLDERS)
def test_settings_that_are_kept_move_with_the_project(old: Path, new: Path, rest: list[str], away: Path) -> None:
    def config(project: Path) -> ExperimentConfig:
        own = {"data_dir": str(project.joinpath(*rest)), "table": str(away / "outside" / "table.csv")}
        return parse({"name": "x", "output_dir": str(project / "outputs"), "data": own}, "x")

    inside = (away / "outside").is_relative_to(old) or (away / "outside").is_relative_to(new)
    if not inside:
        assert recorded(config(old)) == recorded(config(new))
        assert resolve_paths(parse(recorded(config(old)), "x"), new).data.data_dir == str(new.joinpath(*rest).resolve())
