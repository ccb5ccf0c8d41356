"""Worker groups of Ray Train, each of which stays for one training of its process after the other.

A group costs 7 to 20 s to start: a controller and its helpers, then a process per GPU or CPU share, each with its own torch.
So its processes wait for the next training where they are; trainings go to them, and validations and results come back,
through the board.
"""

import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from cddpm.cluster import Board, torch_config
from cddpm.config import ComputeConfig
from cddpm.errors import CddpmError, SearchError
from cddpm.training import worker
from cddpm.training.worker import Assignment, Outcome

LOOK_SECONDS = 0.1
END_SECONDS = 60.0
"""So long a group that is let go may take; one that has lost a host, and waits for its successor, ends when that has joined."""

_kept: "list[WorkerGroup]" = []
"""The group of this process, if it keeps one."""


def run(
    assignment: Assignment, folder: Path, gpus: float, report: Callable[[dict[str, float]], None] | None = None
) -> Outcome | None:
    """Run the stages on a worker group; Ray keeps its files below ``folder``. None if it was asked to stop before the end.

    With ``report`` validations are given to it, and the group stays for the next call of this process, with what it books,
    until ``dismiss``. Raises ``CddpmError`` as the worker raised it, at once, since the next start would meet it again;
    ``SearchError`` for lost workers beyond ``compute.maximum_failures``.
    """
    if _kept and _kept[0].over(assignment.config.compute):
        dismiss()
    if not _kept:
        _kept.append(WorkerGroup(assignment.config.compute, folder, gpus, assignment.board or Board()))
    try:
        return _kept[0].run(assignment, report or (lambda metrics: None))
    finally:
        if report is None:
            dismiss()


def dismiss() -> None:
    """End the worker group of this process, if it keeps one: what it booked is free."""
    while _kept:
        _kept.pop().end()


class WorkerGroup:
    """One process per GPU (NCCL) or CPU share (gloo), held by a thread of this process as long as they are wanted.

    Each failure of a worker starts all of them again, ``compute.maximum_failures`` times at most; after such a training they
    end, so that each training may fail as often.
    """

    def __init__(self, compute: ComputeConfig, folder: Path, gpus: float, board: Board) -> None:
        self._compute, self._folder, self._gpus, self._board = compute, folder, gpus, board
        self._name = uuid.uuid4().hex
        self._fault: Exception | None = None
        self._heard = 0
        self._stays = True
        self._thread = threading.Thread(target=self._fit, name="worker-group", daemon=True)
        self._thread.start()

    def over(self, compute: ComputeConfig) -> bool:
        """Whether the group has ended, or is another than ``compute`` asks for."""
        return not self._stays or not self._thread.is_alive() or compute != self._compute

    def run(self, assignment: Assignment, report: Callable[[dict[str, float]], None]) -> Outcome | None:
        """See the function of this name."""
        self._board.leave(_jobs(self._name), replace(assignment, board=None))
        while True:
            alive = self._thread.is_alive()  # asked first: what a group leaves before it ends is heard
            for kind, value in self._news():
                if kind == "report":
                    report(value)
                elif kind == "ended":
                    outcome, self._stays = value
                    return None if outcome is None else outcome.at(assignment.place)
            if not alive:
                raise self._fault or SearchError("training failed: its worker group ended")
            time.sleep(LOOK_SECONDS)

    def end(self) -> None:
        """Let the workers go, and wait until they are gone."""
        self._board.leave(_jobs(self._name), None)
        self._thread.join(END_SECONDS)

    def _news(self) -> Iterator[tuple[str, Any]]:
        for kind, value in self._board.left(_answers(self._name), self._heard):
            self._heard += 1
            yield kind, value

    def _fit(self) -> None:
        from ray.train import FailureConfig, RunConfig, ScalingConfig, TrainingFailedError
        from ray.train.torch import TorchTrainer

        try:
            TorchTrainer(
                serve,
                train_loop_config={"board": self._board, "group": self._name},
                torch_config=torch_config(),
                scaling_config=ScalingConfig(
                    num_workers=self._compute.workers,
                    use_gpu=worker.on_gpu(self._compute, self._gpus),
                    resources_per_worker=worker.resources_per_worker(self._compute, self._gpus),
                ),
                run_config=RunConfig(
                    name=worker.fresh_name(self._folder, "attempt"),
                    storage_path=str(self._folder),
                    failure_config=FailureConfig(max_failures=self._compute.maximum_failures),
                    callbacks=[_end_at_once()],
                ),
            ).fit()
        except TrainingFailedError as error:
            self._fault = _cause(error)
        except Exception as error:  # noqa: BLE001 - raised in the thread that waits for it
            self._fault = error


def serve(given: dict[str, Any]) -> None:
    """What each process of a worker group does: the trainings that are left for it on the board, until it is let go."""
    ranks = worker.ranks_of_group()
    board, jobs, answers = given["board"], _jobs(given["group"]), _answers(given["group"])

    def leave(kind: str, value: Any = None) -> None:
        if ranks.first:
            board.leave(answers, (kind, value))

    earlier = ranks.share([kind for kind, _ in board.left(answers, 0)] if ranks.first else None)
    leave("started")
    stays, done = "started" not in earlier, earlier.count("ended")
    while True:
        waiting = ranks.share(board.left(jobs, done)[:1] if ranks.first else None)
        if not waiting:
            time.sleep(LOOK_SECONDS)
            continue
        if waiting[0] is None:
            return
        outcome = worker.work(replace(waiting[0], board=board), ranks, lambda metrics: leave("report", metrics))
        done += 1
        leave("ended", (outcome, stays))
        if not stays:
            return


def _jobs(group: str) -> str:
    return f"{group}/jobs"


def _answers(group: str) -> str:
    return f"{group}/answers"


def _end_at_once() -> Any:
    """A callback that keeps Ray from starting a worker group again after an error that the same start would meet again.

    Ray counts every exception of a worker as a lost worker; one that a callback raises ends the run instead
    (``ControllerError``). It comes from one rank or from all: Ray ends the ranks that wait for it.
    """
    from ray.train import UserCallback

    class EndAtOnce(UserCallback):
        def after_exception(self, run_context: Any, worker_exceptions: Mapping[int, Exception]) -> None:
            for failure in worker_exceptions.values():
                if isinstance(failure, CddpmError):
                    raise failure

    return EndAtOnce()


def _cause(error: Exception) -> CddpmError:
    """What to raise for Ray's ``TrainingFailedError``: the worker's own error if it is ours."""
    failures = getattr(error, "worker_failures", {})
    for failure in (getattr(error, "controller_failure", None), *failures.values()):
        if isinstance(failure, CddpmError):
            return failure
    first = next(iter(failures.values()), error)
    lines = str(first).strip().splitlines()
    return SearchError(": ".join(["training failed", type(first).__name__, *lines[-1:]]))
