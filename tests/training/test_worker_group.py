"""Worker groups on a real Ray: that they stay, what a training finds of the one before, and what ends them."""

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from tiny_training import tiny_config

from cddpm import artifact
from cddpm.cluster import Board
from cddpm.training import checkpoint, stages, worker, worker_group
from cddpm.training.loop import DivergedError

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(300)]
DIVERGING = {
    "pretraining__enabled": False,
    "training__learning_rate": 1e30,
    "training__warmup_images": 0,
    "training__gradient_clip": None,
}


class Noting(Board):
    """Notes the first step of each training, the process that made it and when; a process that is to die does so there."""

    def __init__(self, folder: Path, batch_size: int) -> None:
        super().__init__()
        self.notes, self.death, self.batch_size = folder / "notes", folder / "death", batch_size

    def post(self, trial: int, stage: str, images: int, budget: int, loss: float, every_seconds: float = 0.5) -> None:
        if stage == "train" and images == self.batch_size:
            with self.notes.open("a") as stream:
                stream.write(f"{os.getpid()} {time.time()}\n")
            if self.death.exists():
                self.death.unlink()
                os.kill(os.getpid(), signal.SIGKILL)

    def noted(self) -> list[tuple[int, float]]:
        rows = [line.split() for line in self.notes.read_text().splitlines()]
        return [(int(process), float(when)) for process, when in rows]


class Job:
    """Trainings of one sweep, each with artifacts of its own, so that none finds another's."""

    def __init__(self, folder: Path, store: Path, **settings: Any) -> None:
        own = {"pretraining__enabled": False, "compute__workers": 2, "compute__maximum_failures": 1, **settings}
        self.config = tiny_config(**own)
        self.folder, self.store, self.count = folder, store, 0
        self.board = Noting(folder, self.config.training.batch_size)

    def assignment(self, **changes: Any) -> worker.Assignment:
        self.count += 1
        place = stages.Place(self.folder / f"artifacts-{self.count}", self.store)
        stop = changes.pop("stop", self.folder / "stop")
        return worker.Assignment(self.config, place, self.count, stop, self.board)

    def run(self, **changes: Any) -> tuple[worker.Outcome | None, list[dict[str, float]]]:
        reports: list[dict[str, float]] = []
        job = self.assignment(**changes)
        return worker_group.run(job, self.folder / f"ray-{self.count}", 0.0, reports.append), reports


@pytest.fixture(autouse=True)
def nothing_kept() -> Iterator[None]:
    yield
    worker_group.dismiss()


def digest(outcome: worker.Outcome | None) -> str:
    assert outcome is not None
    return artifact.file_digest(outcome.made.checkpoint / checkpoint.WEIGHTS)


def free_cpus(within_seconds: float) -> bool:
    """Whether nothing is booked any more."""
    end = time.monotonic() + within_seconds
    while time.monotonic() < end:
        if ray.available_resources().get("CPU") == ray.cluster_resources()["CPU"]:
            return True
        time.sleep(0.2)
    return False


def test_a_group_stays_and_a_training_finds_nothing_of_the_one_before(
    shared_ray: str, store_path: Path, tmp_path: Path
) -> None:
    job = Job(tmp_path, store_path)
    first, reports = job.run()
    began = time.time()
    second, again = job.run()
    (one, _), (other, when) = job.board.noted()
    assert one == other, "a training had a process of its own"
    assert when - began < 5, "seconds from the proposal to the first step"
    assert digest(first) == digest(second)
    assert [row["val/loss"] for row in reports] == [row["val/loss"] for row in again] != []
    assert [row["final"] for row in reports] == [0.0] * len(reports)

    asked = tmp_path / "asked"
    asked.touch()
    assert job.run(stop=asked)[0] is None
    assert digest(job.run()[0]) == digest(first)  # that one was asked to stop does not stop the next
    worker_group.dismiss()
    assert free_cpus(20)


@pytest.mark.nightly
def test_a_group_that_nobody_keeps_ends_with_its_training(shared_ray: str, store_path: Path, tmp_path: Path) -> None:
    job = Job(tmp_path, store_path)
    first, _ = job.run()
    worker_group.dismiss()
    assert digest(worker_group.run(job.assignment(), tmp_path / "alone", 0.0)) == digest(first)
    (one, _), (other, _) = job.board.noted()
    assert one != other
    assert free_cpus(20), "a group that nobody keeps still holds CPUs"


@pytest.mark.nightly
def test_a_worker_may_die_in_each_training(shared_ray: str, store_path: Path, tmp_path: Path) -> None:
    job = Job(tmp_path, store_path)
    undisturbed = digest(job.run()[0])
    (tmp_path / "death").touch()
    assert digest(job.run()[0]) == undisturbed
    assert digest(job.run()[0]) == undisturbed  # in a new group: each training may fail as often
    (tmp_path / "death").touch()
    assert digest(job.run()[0]) == undisturbed
    kept, died, successor, new, died_too, last = [process for process, _ in job.board.noted()]
    assert kept == died != successor != new == died_too != last


@pytest.mark.nightly
@pytest.mark.parametrize("workers", [1, 2])
def test_a_diverging_training_is_not_started_again(
    shared_ray: str, store_path: Path, tmp_path: Path, workers: int
) -> None:
    job = Job(tmp_path, store_path, **DIVERGING, compute__workers=workers, compute__maximum_failures=2)
    with pytest.raises(DivergedError, match="the loss became"):
        job.run()
    assert len(job.board.noted()) == 1
    job.config = tiny_config(pretraining__enabled=False, compute__workers=workers)
    assert job.run()[0] is not None
