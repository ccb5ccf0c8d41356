"""Parts: written whole, checked before anything reads them, claimed by one process at a time."""

import multiprocessing
import os
import random
import resource
import signal
import time
from pathlib import Path

import numpy as np
import pytest

from cddpm import artifact
from cddpm.errors import ArtifactError, CddpmError, StorageError
from cddpm.reconstruct import part
from cddpm.reconstruct.part import check_part, claim, drop_damaged, parts_of, read_part, volumes_of, write_part

SHAPE = (3, 5, 4)


def predictions(seed: int, levels=(250, 500), guided: bool = True) -> dict:
    draw = np.random.default_rng(seed)
    branches = ("c", "u") if guided else ("c",)
    return {(b, level, 0): draw.uniform(0, 1, SHAPE).astype(np.float32) for level in levels for b in branches}


def test_a_part_comes_back_as_c_and_the_difference(tmp_path):
    arrays = predictions(0)
    write_part(tmp_path, "A/1", arrays)
    files = parts_of(tmp_path, "A/1")
    assert set(files) == {(250, 0), (500, 0)}
    for (level, seed), file in files.items():
        found, c, u = read_part(file), arrays["c", level, seed], arrays["u", level, seed]
        assert set(found) == {"c", "d"}
        assert np.array_equal(found["c"], c.astype(np.float16))
        assert np.array_equal(found["d"], (c - u).astype(np.float16))
        assert not found["c"].flags.writeable
        assert not found["c"].flags.owndata


def test_a_part_that_is_there_is_left_alone(tmp_path):
    write_part(tmp_path, "a", predictions(0, levels=(250,)))
    (file,) = parts_of(tmp_path, "a").values()
    before = file.stat().st_ino
    write_part(tmp_path, "a", predictions(1))
    assert parts_of(tmp_path, "a")[250, 0] == file
    assert file.stat().st_ino == before
    assert set(parts_of(tmp_path, "a")) == {(250, 0), (500, 0)}


def test_names_of_volumes_and_negative_seeds_survive(tmp_path):
    for name in ("c d/é", "a.b-1/x", "%2F"):
        write_part(tmp_path, name, {("c", 7, -3): np.zeros(SHAPE, np.float32)})
        assert set(parts_of(tmp_path, name)) == {(7, -3)}
    assert volumes_of(tmp_path) == sorted(["c d/é", "a.b-1/x", "%2F"])


def test_what_is_no_part_is_not_seen(tmp_path):
    write_part(tmp_path, "a", predictions(0, levels=(250,)))
    for name in (".250-1.0123456789abcdef.arrow.12ab", "250-2.arrow", "notes.txt"):
        (tmp_path / "a" / name).write_bytes(b"left by a killed process")
    assert set(parts_of(tmp_path, "a")) == {(250, 0)}
    assert parts_of(tmp_path, "nobody") == {}


def test_every_damage_is_found(tmp_path, caplog):
    write_part(tmp_path, "a", predictions(0, levels=(250,)))
    (file,) = parts_of(tmp_path, "a").values()
    whole, moments = file.read_bytes(), random.Random(0)
    places = [*range(0, len(whole), 37), *(moments.randrange(len(whole)) for _ in range(30))]
    damaged = [whole[:i] + bytes([whole[i] ^ 0x10]) + whole[i + 1 :] for i in places]
    damaged += [whole[:size] for size in (0, 1, 100, len(whole) - 1)] + [whole + b"x"]
    for data in damaged:
        file.write_bytes(data)
        with pytest.raises(ArtifactError, match=r"250-0\.[0-9a-f]{16}\.arrow: "):
            check_part(file)
    assert drop_damaged(file)
    assert "predicted again" in caplog.text
    assert file.name in caplog.text
    assert not file.exists()
    write_part(tmp_path, "a", predictions(0, levels=(250,)))
    assert not drop_damaged(file)


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e6])
def test_a_diverged_model_is_told(tmp_path, bad):
    arrays = predictions(5)
    arrays["c", 500, 0][0, 0, 0] = bad
    with pytest.raises(CddpmError, match=r"volume 'a'.*noise level 500.*diverged"):
        write_part(tmp_path, "a", arrays)
    assert not list(tmp_path.iterdir())


def test_incomplete_branches_are_refused(tmp_path):
    arrays = predictions(6)
    del arrays["u", 500, 0]
    with pytest.raises(ValueError, match="'u' for all or none"):
        write_part(tmp_path, "a", arrays)


# A disk that is full


def fill_the_disk(folder: Path, answers) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
    try:
        write_part(folder, "a", {("c", 500, 0): np.ones((3, 50, 50), np.float32)})
        answers.put("written")
    except StorageError as error:
        answers.put(str(error))


def test_a_full_disk_is_named_and_leaves_what_was_there(tmp_path):
    """A limit on the size of files stands for the full disk; the child cannot write, the parent can."""
    write_part(tmp_path, "a", predictions(0, levels=(250,)))
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    context = multiprocessing.get_context("fork")
    answers = context.Queue()
    child = context.Process(target=fill_the_disk, args=(tmp_path, answers))
    child.start()
    answer = answers.get(timeout=30)
    child.join()
    assert str(tmp_path / "a" / "500-0") in answer
    assert "no space left" in answer
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


# Claims


def hold(folder: Path, ready) -> None:
    with claim(folder, "a") as mine:
        ready.put(mine)
        time.sleep(60)


def test_a_claim_ends_with_its_process(tmp_path):
    context = multiprocessing.get_context("fork")
    ready = context.Queue()
    child = context.Process(target=hold, args=(tmp_path, ready))
    child.start()
    assert ready.get(timeout=30)
    with claim(tmp_path, "a") as mine, claim(tmp_path, "b") as other:
        assert (mine, other) == (False, True)
    os.kill(child.pid, signal.SIGKILL)
    child.join()
    with claim(tmp_path, "a") as mine:
        assert mine


def test_without_locks_everybody_may(tmp_path, monkeypatch, caplog):
    def refuse(path: Path, wait: bool) -> None:
        raise OSError(part._NO_LOCKS[0], "No locks available")

    monkeypatch.setattr(artifact, "lock", refuse)
    with claim(tmp_path, "a") as mine:
        assert mine
    assert "may be predicted twice" in caplog.text
