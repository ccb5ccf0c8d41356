"""The copy of a campaign's folder in a storage."""

import contextlib
import sqlite3
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cddpm.backup import Backup

NAMES = st.sampled_from(
    ["identity.json", "events.jsonl", "trials/0000/result.json", "trials/0001/config.json", "study.db"]
)


def contents(folder: Path) -> dict[str, bytes | list[object]]:
    found: dict[str, bytes | list[object]] = {}
    for path in folder.rglob("*"):
        if path.is_file() and path.name != "writer":
            name = path.relative_to(folder).as_posix()
            found[name] = rows(path) if path.suffix == ".db" else path.read_bytes()
    return found


def rows(path: Path) -> list[object]:
    with contextlib.closing(sqlite3.connect(path)) as database:
        return database.execute("select * from t").fetchall()


def write(path: Path, number: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix != ".db":
        path.write_text(str(number))
        return
    with contextlib.closing(sqlite3.connect(path)) as database, database:
        database.execute("create table if not exists t (x)")
        database.execute("insert into t values (?)", (number,))


@settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck))
@given(steps=st.lists(st.tuples(NAMES, st.booleans(), st.booleans()), max_size=12))
def test_the_copy_follows_whatever_is_written_and_removed(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, bool, bool]]
) -> None:
    top = tmp_path_factory.mktemp("backup")
    folder = top / "out" / "sweeps" / "mine"
    folder.mkdir(parents=True)
    backup = Backup(folder, str(top / "storage"), "sweeps/mine")
    backup.start()
    for number, (name, there, sent) in enumerate(steps):
        write(folder / name, number) if there else (folder / name).unlink(missing_ok=True)
        if sent:
            backup.send()
    backup.send()
    (folder / "ray").mkdir()
    (folder / "ray" / "large").write_text("left out")
    elsewhere = top / "elsewhere" / "sweeps" / "mine"
    assert Backup(elsewhere, str(top / "storage"), "sweeps/mine").restored()
    (folder / "ray" / "large").unlink()
    assert contents(elsewhere) == contents(folder)
    assert Backup(elsewhere, str(top / "storage"), "sweeps/mine").restored() is None


@pytest.mark.slow
def test_a_machine_that_was_left_behind_takes_what_another_went_on_with(tmp_path: Path) -> None:
    first, second = (tmp_path / name / "sweeps" / "mine" for name in ("first", "second"))
    storage = str(tmp_path / "storage")
    write(first / "identity.json", 1)
    with Backup(first, storage, "sweeps/mine").following() as backup:
        backup.start()
        write(first / "events.jsonl", 1)
    assert Backup(second, storage, "sweeps/mine").restored()
    with Backup(second, storage, "sweeps/mine").following() as backup:
        backup.start()
        write(second / "events.jsonl", 2)
        end = time.monotonic() + 20
        while (tmp_path / "storage/sweeps/mine/events.jsonl").read_text() != "2":
            assert time.monotonic() < end
            time.sleep(0.05)
    assert Backup(second, storage, "sweeps/mine").restored() is None
    assert Backup(first, storage, "sweeps/mine").restored()
    assert contents(first) == contents(second)
    assert [p.name for p in first.parent.iterdir() if p.name.startswith("mine.before-")]


def test_nothing_is_done_where_the_output_folder_is_the_storage(tmp_path: Path) -> None:
    folder = tmp_path / "sweeps" / "mine"
    write(folder / "identity.json", 1)
    with Backup(folder, str(tmp_path), "sweeps/mine").following() as backup:
        assert backup.restored() is None
        backup.start()
    assert sorted(p.name for p in tmp_path.rglob("*") if p.is_file()) == ["identity.json"]
