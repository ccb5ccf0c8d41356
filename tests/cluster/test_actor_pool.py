"""A pool of processes on a real Ray: order, one factory call per process, errors whole, a death survived once."""

import logging
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import ray

from cddpm import cluster
from cddpm.cluster import ActorPool
from cddpm.errors import ArtifactError, DataError, SearchError

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(300), pytest.mark.usefixtures("shared_ray")]


class Noted:
    """A factory that notes each call in a file; its function waits as told and says who it was."""

    def __init__(self, notes: Path) -> None:
        self.notes = notes

    def __call__(self) -> Callable[[float], tuple[float, int]]:
        with self.notes.open("a") as stream:
            stream.write(f"{os.getpid()}\n")
        return self.work

    def work(self, seconds: float) -> tuple[float, int]:
        time.sleep(seconds)
        return seconds, os.getpid()


def test_results_come_in_order_from_several_processes_each_made_once(tmp_path: Path) -> None:
    seconds = [0.6, 0.0, 0.3, 0.1, 0.0, 0.2]
    with ActorPool(Noted(tmp_path / "notes"), 2) as pool:
        first, again = pool.map(seconds), pool.map(seconds[:3])
        assert pool.map([]) == []
    assert [s for s, _ in first] == seconds
    assert [s for s, _ in again] == seconds[:3]
    made = (tmp_path / "notes").read_text().split()
    assert len(made) == len(set(made)) == 2
    assert {str(process) for _, process in first} == set(made) - {str(os.getpid())}


def refusing() -> Callable[[int], int]:
    def function(item: int) -> int:
        if item == 3:
            raise DataError("item 3 cannot be")
        return item

    return function


def broken() -> Callable[[int], int]:
    raise ArtifactError("the store is gone")


def test_an_error_of_the_function_or_the_factory_arrives_as_it_was() -> None:
    with ActorPool(refusing, 2) as pool:
        with pytest.raises(DataError, match=r"^item 3 cannot be$"):
            pool.map([1, 2, 3, 4])
        assert pool.map([1, 2]) == [1, 2]
    with ActorPool(broken, 1) as pool, pytest.raises(ArtifactError, match=r"^the store is gone$"):
        pool.map([1])


class Dying:
    """A factory whose function ends its process at item 2: the first time, or every time."""

    def __init__(self, mark: Path, always: bool) -> None:
        self.mark, self.always = mark, always

    def __call__(self) -> Callable[[int], int]:
        return self.work

    def work(self, item: int) -> int:
        if item == 2 and (self.always or not self.mark.exists()):
            self.mark.touch()
            os._exit(1)
        return item


def test_a_process_that_dies_once_is_started_again(tmp_path: Path) -> None:
    with ActorPool(Dying(tmp_path / "died", always=False), 2) as pool:
        assert pool.map([1, 2, 3, 4, 5]) == [1, 2, 3, 4, 5]
    assert (tmp_path / "died").exists()


def test_a_process_that_dies_twice_is_told(tmp_path: Path) -> None:
    with ActorPool(Dying(tmp_path / "died", always=True), 1) as pool, pytest.raises(SearchError, match="died twice"):
        pool.map([1, 2, 3])


def test_an_item_that_kills_every_process_is_told_and_the_others_go_on(tmp_path: Path) -> None:
    with ActorPool(Dying(tmp_path / "died", always=True), 1) as pool:
        found = dict(pool.each([2, 1, 2, 3]))
    assert {number: result for number, result in found.items() if isinstance(result, int)} == {1: 1, 3: 3}
    assert [number for number, result in sorted(found.items()) if isinstance(result, SearchError)] == [0, 2]


def test_the_block_leaves_no_process_and_no_cpu_taken() -> None:
    everything = cluster.capacity()["CPU"]
    with ActorPool(refusing, 2) as pool:
        pool.map([1, 2])
        assert ray.available_resources().get("CPU", 0.0) <= everything - 2
    end = time.monotonic() + 20
    while ray.available_resources().get("CPU", 0.0) < everything and time.monotonic() < end:
        time.sleep(0.2)
    assert ray.available_resources()["CPU"] == everything


def warn(board: cluster.Board, *words: str) -> None:
    with board.warnings("trial 0003"):
        for word in words:
            logging.getLogger("cddpm.somewhere").warning("%s is damaged", word)
        logging.getLogger("cddpm.somewhere").info("nothing to say")
    logging.getLogger("cddpm.somewhere").warning("after the end")


def test_warnings_of_a_worker_reach_the_driver_once() -> None:
    board = cluster.Board()
    task = ray.remote(num_cpus=0)(warn)
    ray.get([task.remote(board, "a", "b"), task.remote(board, "b")])
    end, told = time.monotonic() + 60, board.told(timeout_seconds=0.0)  # an answer too late loses nothing
    while len(told) < 2 and time.monotonic() < end:
        told += board.told()
    assert sorted(told) == ["trial 0003: a is damaged", "trial 0003: b is damaged"]
    assert board.told() == []


def ask_and_keep(board: cluster.Board, file: str, seconds: float) -> bool:
    """A worker's look at a file of the driver's disk, until it is there; then it leaves a line in another."""
    end = time.monotonic() + seconds
    asked = board.watch([Path(file)])
    while not asked():
        if time.monotonic() > end:
            return False
        time.sleep(0.01)
    board.keep(Path.write_text, Path(f"{file}.kept"), "said")
    Path(file).unlink()
    return asked() and not board.watch([Path(file)])()  # once asked to end it stays so; the next training is another


def test_a_worker_learns_and_leaves_through_the_board_what_the_drivers_folder_holds(tmp_path: Path) -> None:
    board = cluster.Board()
    task = ray.remote(num_cpus=0)(ask_and_keep)
    assert not ray.get(task.remote(board, str(tmp_path / "stop"), 1.0))
    waiting = task.remote(board, str(tmp_path / "stop"), 60.0)
    time.sleep(0.5)
    (tmp_path / "stop").touch()
    assert ray.get(waiting)
    assert (tmp_path / "stop.kept").read_text() == "said"
    with pytest.raises(FileNotFoundError):
        board.keep(Path.write_text, tmp_path / "absent" / "file", "x")
