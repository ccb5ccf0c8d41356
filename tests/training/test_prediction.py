"""The reconstruction stage: only what is missing is predicted, once, whoever asks and however many do."""

import itertools
import logging
import multiprocessing
import os
import shutil
import signal
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_training import make_store, tiny_config, train

from cddpm.data.store import SliceStore
from cddpm.errors import StorageError
from cddpm.reconstruct import predict
from cddpm.reconstruct.part import claim, parts_of
from cddpm.reconstruct.reconstruction import Reconstruction, read_view
from cddpm.training import prediction, stages
from cddpm.training.loop import Hooks, Interrupted
from cddpm.training.ranks import Ranks

pytestmark = pytest.mark.slow

QUICK: dict[str, Any] = {"pretraining__enabled": False, "training__images": 16, "training__evaluations": 1}
Rows = Counter[tuple[str, int, int, int]]
"""How often the network saw (volume, level, seed, slice)."""


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[stages.Place, Path]:
    """Artifacts with a checkpoint and nothing else, to be copied."""
    folder = tmp_path_factory.mktemp("trained")
    place = stages.Place(folder / "artifacts", make_store(folder / "data"))
    return place, train(tiny_config(**QUICK), place.store, place.artifacts).checkpoint


@pytest.fixture
def place(trained: tuple[stages.Place, Path], tmp_path: Path) -> stages.Place:
    shutil.copytree(trained[0].artifacts, tmp_path / "artifacts")
    return stages.Place(tmp_path / "artifacts", trained[0].store)


@pytest.fixture
def rows(monkeypatch: pytest.MonkeyPatch) -> Rows:
    return counted(monkeypatch.setattr)


def counted(setattribute: Any) -> Rows:
    """Counts what passes through the network from now on."""
    seen: Rows = Counter()
    real = predict._batch

    def count(part: Any, manner: Any) -> Any:
        seen.update((p.volume.request.key, p.level, p.noise_seed, p.slice) for p in part)
        return real(part, manner)

    setattribute(predict, "_batch", count)
    return seen


def ask(place: stages.Place, levels: list[int], seeds: Sequence[int] = (0,), hooks: Hooks | None = None) -> Path:
    config = tiny_config(**QUICK, reconstruction__noise_levels=levels, reconstruction__noise_seeds=list(seeds))
    (checkpoint,) = (place.artifacts / "checkpoint").glob("[0-9a-f]*")
    volumes = SliceStore.open(place.store).cohort("A", "val")
    return prediction.reconstruct(config, place, checkpoint, volumes, Ranks(), hooks or Hooks())


def everything(path: Path) -> dict[Any, np.ndarray]:
    cache = Reconstruction.open(path)
    keys = itertools.product(cache.volumes, cache.levels, cache.seeds)
    return {key: np.stack([cache.c(*key), cache.d(*key)]) for key in keys}


def same(one: dict[Any, np.ndarray], other: dict[Any, np.ndarray]) -> bool:
    return one.keys() == other.keys() and all(np.array_equal(one[key], other[key]) for key in one)


def steps(seen: Rows) -> set[tuple[int, int]]:
    return {(level, seed) for _, level, seed, _ in seen}


def test_only_missing_levels_and_seeds_are_predicted(place: stages.Place, rows: Rows) -> None:
    first = ask(place, [10, 25])
    assert steps(rows) == {(10, 0), (25, 0)}
    assert len(rows) == 3 * 2 * 4  # volumes, levels, slices
    rows.clear()
    more = ask(place, [40, 10, 25])
    assert steps(rows) == {(40, 0)}
    rows.clear()
    seeds = ask(place, [10, 40], [0, 5])
    assert steps(rows) == {(10, 5), (40, 5)}
    rows.clear()
    fewer = ask(place, [25])
    assert ask(place, [10, 25]) == first
    assert not rows
    assert len({first, more, seeds, fewer}) == 4
    whole = everything(more)
    assert same(everything(first), {key: whole[key] for key in whole if key[1] != 40})


def test_levels_asked_for_one_by_one_are_those_asked_for_together(place: stages.Place, tmp_path: Path) -> None:
    other = stages.Place(tmp_path / "other", place.store)
    shutil.copytree(place.artifacts / "checkpoint", other.artifacts / "checkpoint")
    for level in (25, 10, 40):
        last = ask(other, [level])
    assert Reconstruction.open(last).levels == (40,)
    assert same(everything(ask(other, [10, 25, 40])), everything(ask(place, [10, 25, 40])))


def test_no_model_is_loaded_when_all_is_there(place: stages.Place, monkeypatch: pytest.MonkeyPatch) -> None:
    path = ask(place, [10])
    monkeypatch.setattr(stages, "load_model", lambda *_: pytest.fail("loaded"))
    assert ask(place, [10]) == path


def test_damaged_parts_are_found_and_made_again(place: stages.Place, rows: Rows, caplog: Any) -> None:
    path = ask(place, [10, 25])
    before = everything(path)
    view, parts = read_view(path)
    truncated, altered, gone = (parts_of(parts, volume)[10, 0] for volume in view.volumes)
    truncated.write_bytes(truncated.read_bytes()[:500])
    data = bytearray(altered.read_bytes())
    data[len(data) // 2] ^= 1
    altered.write_bytes(data)
    gone.unlink()
    rows.clear()
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        assert ask(place, [10, 25]) == path
    assert sorted(str(file) in record.message for record in caplog.records for file in (truncated, altered)) == [
        False,
        False,
        True,
        True,
    ]
    assert len(rows) == 3 * 4
    assert steps(rows) == {(10, 0)}
    assert same(everything(path), before)


def test_a_volume_that_another_has_is_left_to_it(place: stages.Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is asked for again until it is there, or until this process is asked to stop."""
    monkeypatch.setattr(prediction, "WAIT_SECONDS", 0.01)
    parts = read_view(ask(place, [10]))[1]
    store = SliceStore.open(place.store)
    first, *others = (store.volumes[v].id for v in store.cohort("A", "val"))
    looks = itertools.count()
    with claim(parts, first), pytest.raises(Interrupted, match="stopped with 1 of 3 volumes to predict"):
        ask(place, [10, 40], hooks=Hooks(stop=lambda: next(looks) > 20))
    assert set(parts_of(parts, first)) == {(10, 0)}
    assert all(set(parts_of(parts, volume)) == {(10, 0), (40, 0)} for volume in others)
    assert Reconstruction.open(ask(place, [10, 40])).levels == (10, 40)


def test_a_stop_keeps_what_was_predicted(place: stages.Place, rows: Rows) -> None:
    done: list[int] = []
    hooks = Hooks(stop=lambda: bool(done), progress=lambda stage, number, *_: done.append(number))
    with pytest.raises(Interrupted, match="reconstruction: stopped with"):
        ask(place, [10], hooks=hooks)
    kept = len(rows)
    assert 0 < kept < 3 * 4
    ask(place, [10])
    assert max(rows.values()) == 1
    assert len(rows) == 3 * 4


def test_a_full_disk_leaves_the_cache_as_it_was(place: stages.Place, monkeypatch: pytest.MonkeyPatch) -> None:
    before = everything(ask(place, [10]))
    real, count = Path.replace, itertools.count()

    def full(self: Path, target: Path) -> Path:
        if self.name.startswith(".25-") and next(count) == 1:
            raise OSError(28, "No space left on device")
        return real(self, target)

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(StorageError, match=r"prediction/.*25-0\..*no space left"):
        ask(place, [10, 25])
    assert same(everything(ask(place, [10])), before)
    assert Reconstruction.open(ask(place, [10, 25])).levels == (10, 25)
    assert not list(place.artifacts.rglob(".25-*"))


# Real processes


def child(place: stages.Place, levels: list[int], answers: Any, begin: Any) -> None:
    torch.set_num_threads(1)
    seen = counted(setattr)
    real = predict._batch
    predict._batch = lambda *arguments: (time.sleep(0.05), real(*arguments))[1]  # so that both are at it at once
    prediction.WAIT_SECONDS = 0.05
    answers.put(("ready", levels, None))
    begin.wait()
    path = ask(place, levels)
    answers.put(("done", levels, (seen, path)))


def two_at_once(place: stages.Place, asked: list[list[int]]) -> list[tuple[Rows, Path]]:
    context = multiprocessing.get_context("forkserver")
    answers, begin = context.Queue(), context.Event()
    processes = [context.Process(target=child, args=(place, levels, answers, begin)) for levels in asked]
    for process in processes:
        process.start()
    for _ in processes:
        assert answers.get(timeout=90)[0] == "ready"
    begin.set()
    found = [answers.get(timeout=90)[2] for _ in processes]
    for process in processes:
        process.join(30)
    return found


@pytest.mark.slow
def test_two_processes_predict_each_row_once(place: stages.Place, trained: Any, tmp_path: Path) -> None:
    (mine, one), (yours, other) = two_at_once(place, [[10, 25, 40], [25, 40, 45]])
    together = mine + yours
    assert mine
    assert yours
    assert set(together.values()) == {1}
    assert len(together) == 3 * 4 * 4  # volumes, levels of both, slices
    alone = stages.Place(tmp_path / "alone", place.store)
    shutil.copytree(trained[0].artifacts / "checkpoint", alone.artifacts / "checkpoint")
    expected = everything(ask(alone, [10, 25, 40, 45]))
    assert everything(one).keys() | everything(other).keys() == expected.keys()
    for path in (one, other):
        found = everything(path)
        assert same(found, {key: expected[key] for key in found})


def claimed_for_ever(place: stages.Place, ready: Any) -> None:
    torch.set_num_threads(1)
    predict._batch = lambda *_: (ready.put("claimed"), time.sleep(600))
    ask(place, [10])


@pytest.mark.slow
def test_a_killed_claimer_blocks_nobody(place: stages.Place) -> None:
    context = multiprocessing.get_context("forkserver")
    ready = context.Queue()
    process = context.Process(target=claimed_for_ever, args=(place, ready))
    process.start()
    assert ready.get(timeout=90) == "claimed"
    os.kill(process.pid or 0, signal.SIGKILL)
    process.join()
    assert len(everything(ask(place, [10]))) == 3
