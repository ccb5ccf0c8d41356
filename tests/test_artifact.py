"""Artifacts: whole or absent, never silently changed, made once by many."""

import errno
import fcntl
import json
import multiprocessing
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tmpfs

from cddpm import artifact
from cddpm.errors import ArtifactError, StorageError

PROCESSES = multiprocessing.get_context("forkserver")


def fill(directory: Path) -> None:
    (directory / "deep").mkdir()
    (directory / "a.txt").write_text("one")
    (directory / "deep" / "b.bin").write_bytes(bytes(range(256)))


@pytest.fixture
def made(tmp_path: Path) -> Path:
    return artifact.create(tmp_path / "store", "slice store", "f00d", {"seed": 1}, fill)


# fingerprints


def test_a_fingerprint_depends_on_values_not_on_the_order_of_keys() -> None:
    assert artifact.fingerprint({"a": 1, "b": [1, 2]}) == artifact.fingerprint({"b": [1, 2], "a": 1})
    assert artifact.fingerprint({"a": 1}) != artifact.fingerprint({"a": 2})
    assert artifact.fingerprint([1, 2]) != artifact.fingerprint([2, 1])
    assert artifact.fingerprint("a", "b") != artifact.fingerprint("ab")
    assert artifact.fingerprint(1) != artifact.fingerprint("1")


def test_a_fingerprint_is_the_same_on_every_machine() -> None:
    r"""Reckoned with sha256sum from the text ``[{"a":[1,0.5,null,"\u00e4"]}]``."""
    assert artifact.fingerprint({"a": [1, 0.5, None, "ä"]}) == "c05186ef158e37c7"


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_fingerprint_of_no_number_is_refused(value: float) -> None:
    with pytest.raises(ValueError, match="JSON"):
        artifact.fingerprint(value)


def test_a_files_digest_is_its_sha256(tmp_path: Path) -> None:
    (tmp_path / "abc").write_bytes(b"abc")
    assert artifact.file_digest(tmp_path / "abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


# whole or not at all


def test_a_made_artifact_says_what_made_it(made: Path) -> None:
    manifest = artifact.verify(made, "slice store")
    assert (manifest.kind, manifest.fingerprint, manifest.made_from) == ("slice store", "f00d", {"seed": 1})
    assert set(manifest.files) == {"a.txt", "deep/b.bin"}
    assert artifact.is_complete(made)


def test_a_fill_that_fails_leaves_nothing(tmp_path: Path) -> None:
    def broken(directory: Path) -> None:
        fill(directory)
        raise RuntimeError("half way")

    with pytest.raises(RuntimeError, match="half way"):
        artifact.create(tmp_path / "store", "slice store", "f00d", {}, broken)
    assert list(tmp_path.iterdir()) == []


def test_while_it_is_filled_nothing_is_there(tmp_path: Path) -> None:
    seen = []
    path = tmp_path / "store"
    artifact.create(path, "slice store", "f00d", {}, lambda directory: (fill(directory), seen.append(path.exists()))[0])
    assert seen == [False]
    assert artifact.is_complete(path)


def test_unfinished_work_of_a_dead_process_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "stale").write_text("old")
    artifact.create(tmp_path / "store", "slice store", "f00d", {}, fill)
    assert not (tmp_path / "store" / "stale").exists()
    artifact.verify(tmp_path / "store", "slice store")


def test_an_artifact_that_another_finished_meanwhile_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "store"

    def slow(directory: Path) -> None:
        artifact.create(path, "slice store", "first", {}, fill)
        (directory / "a.txt").write_text("two")

    artifact.create(path, "slice store", "second", {}, slow)
    assert artifact.verify(path, "slice store").fingerprint == "first"
    assert [entry.name for entry in tmp_path.iterdir()] == ["store"]


def _killed_while_filling(path: Path) -> None:
    def suicide(directory: Path) -> None:
        fill(directory)
        os.kill(os.getpid(), signal.SIGKILL)

    artifact.ensure(path, "slice store", "f00d", {}, suicide)


@pytest.mark.slow
def test_a_maker_killed_half_way_neither_blocks_nor_leaves_a_part(tmp_path: Path) -> None:
    path = tmp_path / "store"
    process = PROCESSES.Process(target=_killed_while_filling, args=(path,))
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    assert not path.exists()
    assert artifact.ensure(path, "slice store", "f00d", {}, fill) == (path, True)
    artifact.verify(path, "slice store")


@pytest.mark.parametrize("write", ["text", "json"])
def test_replacing_a_file_leaves_no_other(tmp_path: Path, write: str) -> None:
    path = tmp_path / "new folder" / "file"
    for value in ("old", "new"):
        artifact.write_text(path, value) if write == "text" else artifact.write_json(path, value)
    assert path.read_text() == ("new" if write == "text" else '"new"\n')
    assert list(path.parent.iterdir()) == [path]


def test_a_write_that_fails_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    artifact.write_text(tmp_path / "file", "old")

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match=r"file: no space left"):
        artifact.write_text(tmp_path / "file", "new")
    assert [entry.read_text() for entry in tmp_path.iterdir()] == ["old"]


def _rewrite(path: Path, letter: str) -> None:
    for _ in range(40):
        artifact.write_text(path, letter * 5000)


@pytest.mark.slow
def test_a_reader_sees_the_old_or_the_new_text_never_a_part(tmp_path: Path) -> None:
    path = tmp_path / "file"
    artifact.write_text(path, "a" * 5000)
    writers = [PROCESSES.Process(target=_rewrite, args=(path, letter)) for letter in "bc"]
    for writer in writers:
        writer.start()
    while any(writer.is_alive() for writer in writers):
        text = path.read_text()
        assert len(text) == 5000
        assert len(set(text)) == 1
    assert [writer.exitcode for writer in writers] == [0, 0]


# later changes


def test_an_altered_byte_is_found_by_name(made: Path) -> None:
    data = bytearray((made / "deep" / "b.bin").read_bytes())
    data[100] ^= 1
    (made / "deep" / "b.bin").write_bytes(data)
    with pytest.raises(ArtifactError, match=r"deep/b\.bin: altered or damaged"):
        artifact.verify(made, "slice store")


def test_a_cut_file_is_found_by_name(made: Path) -> None:
    os.truncate(made / "deep" / "b.bin", 255)
    with pytest.raises(ArtifactError, match=r"deep/b\.bin: altered or damaged"):
        artifact.verify(made, "slice store")


def test_a_missing_file_is_found_by_name(made: Path) -> None:
    (made / "a.txt").unlink()
    with pytest.raises(ArtifactError, match=r"a\.txt: missing from this slice store"):
        artifact.verify(made, "slice store")


@pytest.mark.parametrize("name", ["../outside", "deep/../../outside", "/etc/hostname"])
def test_a_path_that_climbs_out_is_refused(made: Path, name: str) -> None:
    (made.parent / "outside").write_text("x")
    manifest = json.loads((made / artifact.MANIFEST).read_text())
    target = made / name
    manifest["files"][name] = artifact.file_digest(target) if target.is_file() else "0" * 64
    (made / artifact.MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(ArtifactError, match="outside of the artifact"):
        artifact.verify(made, "slice store")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not a manifest"),
        ('{"kind": "slice store", "fing', "not a manifest"),
        ("[]", "not a manifest"),
        ('{"kind": "slice store"}', "not a manifest"),
        ("\udcff", "not a manifest"),
    ],
)
def test_a_damaged_manifest_is_refused_by_name(made: Path, text: str, message: str) -> None:
    (made / artifact.MANIFEST).write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(ArtifactError, match=message) as caught:
        artifact.read_manifest(made, "slice store")
    assert str(made / artifact.MANIFEST) in str(caught.value)


def test_absent_unfinished_and_foreign_artifacts_are_told_apart(made: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for path, kind, message in (
        (tmp_path / "nowhere", "slice store", "does not exist"),
        (tmp_path / "empty", "slice store", "unfinished"),
        (made, "checkpoint", "holds a slice store, but a checkpoint is needed"),
    ):
        with pytest.raises(ArtifactError, match=message):
            artifact.read_manifest(path, kind)


# many makers


def _hold(path: Path, ready: Any) -> None:
    with artifact.lock(path):
        ready.set()
        time.sleep(60)


@pytest.mark.slow
def test_a_lock_is_freed_when_its_holder_is_killed(tmp_path: Path) -> None:
    ready = PROCESSES.Event()
    holder = PROCESSES.Process(target=_hold, args=(tmp_path / "lock", ready))
    holder.start()
    assert ready.wait(60)
    with pytest.raises(BlockingIOError), artifact.lock(tmp_path / "lock", wait=False):
        pass
    holder.kill()
    holder.join(60)
    with artifact.lock(tmp_path / "lock", wait=False):
        pass


@pytest.mark.slow
def test_a_look_tells_truly_also_after_its_holder_was_killed(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    assert not artifact.is_locked(path)
    assert not path.exists()  # a look makes no file
    ready = PROCESSES.Event()
    holder = PROCESSES.Process(target=_hold, args=(path, ready))
    holder.start()
    assert ready.wait(60)
    assert artifact.is_locked(path)
    holder.kill()
    holder.join(60)
    assert holder.exitcode == -signal.SIGKILL
    assert not artifact.is_locked(path)


def test_a_look_by_the_holder_itself_tells_truly_and_frees_nothing(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with artifact.lock(path):
        for _ in range(3):
            assert artifact.is_locked(path)
        path.read_bytes()  # opening and closing the file frees no lock of this kind
        with pytest.raises(BlockingIOError), artifact.lock(path, wait=False):
            pass
    assert not artifact.is_locked(path)


def test_a_look_needs_no_right_to_write(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with artifact.lock(path):
        path.chmod(0o444)
        with path.open("rb") as stream:
            assert artifact._record_lock(stream, "F_OFD_GETLK") == fcntl.F_WRLCK
        assert artifact.is_locked(path)


def test_where_the_system_knows_no_such_question_a_look_still_tells(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("F_OFD_GETLK", "F_OFD_SETLK", "F_OFD_SETLKW"):
        monkeypatch.delattr(fcntl, name)
    path = tmp_path / "lock"
    with artifact.lock(path):
        assert artifact.is_locked(path)
        with pytest.raises(BlockingIOError), artifact.lock(path, wait=False):
            pass
    assert not artifact.is_locked(path)


def _look(paths: list[Path], ready: Any, stop: Any, looks: Any) -> None:
    ready.set()
    while not stop.is_set():
        for path in paths:
            artifact.is_locked(path)
        with looks.get_lock():
            looks.value += 1


@pytest.mark.slow
def test_a_thousand_looks_keep_nobody_from_starting(tmp_path: Path) -> None:
    """With a lock taken for each look a start fails within the first dozen here."""
    path, stop, looks = tmp_path / "lock", PROCESSES.Event(), PROCESSES.Value("i", 0)
    gates = [PROCESSES.Event() for _ in range(3)]
    lookers = [PROCESSES.Process(target=_look, args=([path] * 50, gate, stop, looks)) for gate in gates]
    for looker in lookers:
        looker.start()
    try:
        assert all(gate.wait(60) for gate in gates)
        starts, end = 0, time.monotonic() + 60
        while (starts < 500 or looks.value < 20) and time.monotonic() < end:
            with artifact.lock(path, wait=False):
                starts += 1
                assert artifact.is_locked(path)
    finally:
        stop.set()
        for looker in lookers:
            looker.join(60)
    assert starts >= 500
    assert looks.value >= 20
    assert [looker.exitcode for looker in lookers] == [0, 0, 0]


def _ensure(path: Path, notes: Path, start: Any) -> None:
    def noted(directory: Path) -> None:
        with notes.open("a") as stream:
            stream.write("made\n")
        time.sleep(0.2)
        fill(directory)

    start.wait(60)
    _, made = artifact.ensure(path, "slice store", "f00d", {}, noted)
    artifact.verify(path, "slice store")
    with notes.open("a") as stream:
        stream.write(f"{made}\n")


@pytest.mark.slow
def test_of_four_processes_one_makes_it_and_all_get_it(tmp_path: Path) -> None:
    start = PROCESSES.Event()
    arguments = (tmp_path / "store", tmp_path / "notes", start)
    processes = [PROCESSES.Process(target=_ensure, args=arguments) for _ in range(4)]
    for process in processes:
        process.start()
    start.set()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0, 0, 0]
    assert sorted((tmp_path / "notes").read_text().split()) == ["False", "False", "False", "True", "made"]


def test_what_is_there_is_not_made_again(made: Path) -> None:
    def never(_: Path) -> None:
        raise AssertionError("made twice")

    assert artifact.ensure(made, "slice store", "f00d", {}, never) == (made, False)


@pytest.mark.parametrize("name", ["deep/b.bin", artifact.MANIFEST])
def test_what_is_damaged_is_made_again_and_said_once(made: Path, caplog: pytest.LogCaptureFixture, name: str) -> None:
    (made / name).write_bytes((made / name).read_bytes()[:100])
    assert not artifact.is_sound(made, "slice store")
    assert artifact.ensure(made, "slice store", "f00d", {}, fill) == (made, True)
    artifact.verify(made, "slice store")
    assert artifact.ensure(made, "slice store", "f00d", {}, fill) == (made, False)
    assert [record.message.count(str(made / name)) for record in caplog.records] == [1]
    (aside,) = made.parent.glob(".store.damaged-*.partial")  # which the inventory shows as a leftover
    assert (aside / name).exists()


# full and read-only disks


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 KiB."""
    with tmpfs.small_disk(tmp_path / "disk", "64k") as disk:
        yield disk


def large(directory: Path) -> None:
    (directory / "large").write_bytes(bytes(2**20))


def test_a_full_disk_is_named_and_the_old_state_kept(small_disk: Path) -> None:
    artifact.create(small_disk / "old", "slice store", "f00d", {}, fill)
    with pytest.raises(StorageError, match=rf"{small_disk}/new: no space left while writing; free space"):
        artifact.create(small_disk / "new", "slice store", "f00d", {}, large)
    with pytest.raises(StorageError, match=rf"{small_disk}/file: no space left"):
        artifact.write_bytes(small_disk / "file", bytes(2**20))
    assert [entry.name for entry in small_disk.iterdir()] == ["old"]
    artifact.verify(small_disk / "old", "slice store")
    artifact.write_text(small_disk / "small", "there is room again")


def test_a_read_only_disk_is_named(small_disk: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    for attempt in (
        lambda: artifact.create(small_disk / "new", "slice store", "f00d", {}, fill),
        lambda: artifact.ensure(small_disk / "new", "slice store", "f00d", {}, fill),
        lambda: artifact.write_text(small_disk / "new", "text"),
    ):
        with pytest.raises(StorageError, match=rf"{small_disk}/.*new.*: cannot be written \(Read-only file system\)"):
            attempt()


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM])
def test_what_the_disk_refuses_names_the_path(number: int) -> None:
    with pytest.raises(StorageError, match="/shared/sweep: "), artifact.storage_errors(Path("/shared/sweep")):
        raise OSError(number, os.strerror(number))


def test_other_faults_of_the_system_pass_as_they_are() -> None:
    with pytest.raises(FileNotFoundError), artifact.storage_errors(Path("/shared/sweep")):
        raise OSError(errno.ENOENT, "No such file")
