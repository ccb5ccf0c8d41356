"""Several short trainings of the quickstart's network at once on one device, each in a process of its own."""

import multiprocessing
import os
import queue
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from cddpm.config import ExperimentConfig, parse, to_dict
from cddpm.training.loop import Hooks
from gpu_check import nursery
from gpu_check.assignment import Assignment
from gpu_check.experiments import Enough, diffusion_bench

START_SECONDS = 120.0
"""How long one of several waits for the others to be ready."""
News = tuple[str, str, Any]
"""(name of the training, what happened, what of it)"""


@dataclass(frozen=True)
class Training:
    """One training: its folder takes states; ``killed_after`` images it kills its own process, without a word."""

    name: str
    config: ExperimentConfig
    store: Path
    folder: Path
    device: str
    threads: int = 1
    warm_steps: int = 0
    """Steps before it waits for the others; with 0 it does not wait."""
    killed_after: int | None = None


def together(
    trainings: Sequence[Training], assignment: Assignment, reserve_seconds: float = 0.0
) -> dict[str, list[tuple[str, Any]]]:
    """Run all of ``trainings`` at once until they end or only the reserve of the part's time is left; what each told, by name.

    Told are ``validation`` (its metrics), ``rate`` (slices per second after the warm steps), ``failed`` (why), ``ended`` (how
    its process did: 0, or minus the signal) and ``out of time``.
    """
    told: dict[str, list[tuple[str, Any]]] = nursery.ask(_together, trainings, assignment.left() - reserve_seconds)
    return told


def _together(trainings: Sequence[Training], seconds: float) -> dict[str, list[tuple[str, Any]]]:
    context, end = multiprocessing.get_context("fork"), time.monotonic() + seconds
    news: Any = context.Queue()
    barrier = context.Barrier(len(trainings))
    plain = [(t, to_dict(t.config), news, barrier) for t in trainings]
    processes = {t.name: context.Process(target=_work, args=given) for t, given in zip(trainings, plain, strict=True)}
    told: dict[str, list[tuple[str, Any]]] = {name: [] for name in processes}
    for process in processes.values():
        process.start()
    while any(process.is_alive() for process in processes.values()) and time.monotonic() < end:
        _listen(news, told, 0.2)
    for name, process in processes.items():
        if process.is_alive():
            process.kill()
            told[name].append(("out of time", None))
        process.join()
    _listen(news, told, 0.2)
    for name, process in processes.items():
        told[name].append(("ended", process.exitcode))
    return told


def _listen(news: Any, told: dict[str, list[tuple[str, Any]]], seconds: float) -> None:
    """Take what is told, and come back after so many seconds of silence."""
    try:
        while True:
            name, what, value = news.get(timeout=seconds)
            told[name].append((what, value))
    except queue.Empty:
        return


def _work(training: Training, config: dict[str, Any], news: Any, barrier: Any) -> None:
    torch.set_num_threads(training.threads)
    try:
        _train(training, parse(config, training.name), news, barrier)
    except Exception as error:  # noqa: BLE001 - whatever it is: told, and the other trainings go on
        news.put((training.name, "failed", f"{type(error).__name__}: {error}"))


def _train(training: Training, config: ExperimentConfig, news: Any, barrier: Any) -> None:
    bench = diffusion_bench(config, training.store, torch.device(training.device))
    trainer = bench.trainer(training.folder)
    steps, batch_size, began = trainer.recipe.steps, trainer.recipe.batch_size, time.perf_counter()

    def progress(stage: str, images: int, budget: int, loss: float) -> None:
        nonlocal began
        made = images // batch_size
        if images == training.killed_after:
            os.kill(os.getpid(), signal.SIGKILL)
        if training.warm_steps and made == training.warm_steps:
            barrier.wait(START_SECONDS)
            began = time.perf_counter()
        if training.warm_steps and made == steps:
            taken = time.perf_counter() - began
            news.put((training.name, "rate", (steps - training.warm_steps) * batch_size / taken))
            raise Enough  # its rate was asked for, not its model

    def report(row: dict[str, float]) -> None:
        news.put((training.name, "validation", row))

    try:
        trainer.run(Hooks(progress=progress, report=report))
    except Enough:
        return
