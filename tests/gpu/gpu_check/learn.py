"""Part 5: whether what is trained on the device learns, in bfloat16 as in float32; then the full model, while time is left."""

import time
from collections.abc import Iterable, Mapping, Sequence
from itertools import product
from statistics import fmean
from typing import Any

import torch

from cddpm.training.diffusion import LOSS
from gpu_check import experiments
from gpu_check.assignment import Assignment
from gpu_check.experiments import Precision
from gpu_check.record import Record
from gpu_check.trainings import Training, together

PRECISIONS: tuple[Precision, ...] = ("bfloat16", "float32")
SEEDS = 3
STEPS, TINY_STEPS = 2000, 4
APART = 0.05
"""How far the mean validation losses of both precisions, the last that all have, may lie apart, relative to float32's."""
RESERVE_SECONDS = 10.0
"""Left of the part's time when the full model's training is ended."""
ENTRY_SECONDS = 5.0
"""Between entries of its curve."""


def run(assignment: Assignment, record: Record, device: torch.device) -> None:
    """All small trainings at once, then the full model."""
    with record.step("quickstart"):
        quickstart(assignment, record)
    with record.step("full model"):
        full(assignment, record, device)


def quickstart(assignment: Assignment, record: Record) -> None:
    """Validation losses of the quickstart's network by precision and seed, all trained at once."""
    seeds, steps = (1, TINY_STEPS) if assignment.tiny else (SEEDS, STEPS)
    trainings = [
        _training(f"{precision}, seed {seed}", precision, seed, steps, assignment)
        for precision, seed in product(PRECISIONS, range(seeds))
    ]
    told = together(trainings, assignment, RESERVE_SECONDS)
    curves: dict[str, list[dict[float, float]]] = {precision: [] for precision in PRECISIONS}
    for name, news in told.items():
        losses = [(value["images"], value[LOSS]) for what, value in news if what == "validation"]
        record.curve(name, losses)
        enter_losses(name, losses, news, record)
        curves[name.partition(",")[0]].append(dict(losses))
    images = last_common(curve for some in curves.values() for curve in some)
    if images is not None:
        last = {precision: fmean(curve[images] for curve in some) for precision, some in curves.items()}
        apart = abs(last["bfloat16"] / last["float32"] - 1)
        record.compare("last losses, bfloat16 and float32", apart, None if assignment.tiny else APART)


def last_common(curves: Iterable[Mapping[float, float]]) -> float | None:
    """The largest number of images after which each of ``curves`` (loss by images) was validated; None if there is none."""
    return max(set.intersection(*(set(curve) for curve in curves)), default=None)


def _training(name: str, precision: Precision, seed: int, steps: int, assignment: Assignment) -> Training:
    config = experiments.quickstart(assignment.tiny, precision, steps, seed)
    store = experiments.store_of(config, assignment)
    return Training(name, config, store, assignment.scratch_folder / name.replace(", ", "-"), assignment.device)


def enter_losses(
    name: str, losses: Sequence[tuple[float, float]], news: Sequence[tuple[str, Any]], record: Record
) -> None:
    """First and last validation loss of a training, and as a fault that it failed or did not learn."""
    for what, value in news:
        if what in ("failed", "out of time") or (what == "ended" and value):
            record.fault(f"{name}: {what} {value if value is not None else ''}".rstrip())
    if not losses:
        return
    record.figure("first", losses[0][1], "loss", name, better="less")
    record.figure("last", losses[-1][1], "loss", name, better="less")
    if len(losses) > 1 and not losses[-1][1] < losses[0][1]:
        record.fault(f"{name}: the validation loss did not fall ({losses[0][1]:.4g}, then {losses[-1][1]:.4g})")


def full(assignment: Assignment, record: Record, device: torch.device) -> None:
    """The training loss of the full model until the time is nearly up: means over short times."""
    config = experiments.full(assignment.tiny, experiments.usual_precision(device))
    bench = experiments.diffusion_bench(config, experiments.store_of(config, assignment), device)
    batch_size = 4 if assignment.tiny else 64
    trainer = bench.trainer(
        assignment.scratch_folder / "full", batch_size=batch_size, images=experiments.WITHOUT_END, ema_decay=0.0
    )
    points: list[tuple[float, float]] = []
    losses: list[float] = []
    entered = time.monotonic()

    def after_step(made: int, loss: float) -> bool:
        nonlocal entered
        losses.append(loss)
        going_on = made < TINY_STEPS if assignment.tiny else assignment.left() > RESERVE_SECONDS
        if time.monotonic() - entered > ENTRY_SECONDS or not going_on:
            points.append((made * batch_size, fmean(losses)))
            losses.clear()
            record.curve("full model, training loss", points)
            entered = time.monotonic()
        return going_on

    experiments.run_steps(trainer, after_step)
    record.figure("full model, images", points[-1][0], "", better="neither")
    record.figure("full model, first loss", points[0][1], "", better="less")
    record.figure("full model, last loss", points[-1][1], "", better="less")
