"""What the lab book costs a training: blocks of steps with it and without it, by turns, in one process.

In a sweep most of this cost is not the training's at all: MLflow is told by the driver. Here its lab book, the database and the
watch over the machine all sit in the training's own process, so that what is measured is a bound.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import torch
from torch import nn

from cddpm import events
from cddpm.config import TrackingConfig, parse
from cddpm.models.cddpm import ConditionedDiffusion
from cddpm.tracking import names
from cddpm.tracking.lab import Lab
from cddpm.tracking.mirror import MirroredRun, curve
from cddpm.tracking.publish import Mirror
from cddpm.training import checkpoint
from cddpm.training.watch import Watch
from speed.row import Row
from speed.timing import seconds

_NOBODY = "http://127.0.0.1:9"
_IMAGE = (48, 48)
_SETTINGS = {
    "name": "bench",
    "data": {"volume_shape": [96, 96, 50], "rescale_factor": 2},
    "encoder": {"architecture": "resnet18", "width": 16, "max_pool": False},
    "model": {"base_width": 32, "width_multipliers": [1, 1, 2], "residual_blocks": 1, "condition_width": 64},
    "training": {"batch_size": 32},
}
"""The networks of the quickstart: the smaller a step, the more a line in the lab book weighs."""


@dataclass(frozen=True)
class Sizes:
    """How much is measured. A block is what lies between two validations: 40 steps in the quickstart; fewer are stricter."""

    steps: int = 10
    repeats: int = 3


QUICK = Sizes(steps=2, repeats=2)


def measure(folder: Path, sizes: Sizes) -> list[Row]:
    """Rows of the table: what the lab book computes, with MLflow there and away, and what a training waits for.

    In percent of the training's own time. Computing is counted in processor time of the whole process, which other
    programs on the machine do not change.
    """
    step, *_ = training_step()
    there = _ways(folder / "there", TrackingConfig(), sizes, step)
    away = _ways(folder / "away", TrackingConfig(uri=_NOBODY), sizes, step)
    told = (
        f"a line of a validation is on the disk after {1000 * there.line:.1f} ms; one line a block of "
        f"{sizes.steps} steps of {1000 * there.wall / sizes.steps:.0f} ms"
    )
    return [
        Row("processor time of the lab book, of that of the training", "%", there.percent, 2.0, "at most", there.told),
        Row("the same while MLflow does not answer", "%", away.percent, 5.0, "at most", away.told),
        Row(
            "a training waits for the lab book, of its wall-clock",
            "%",
            100 * there.line / there.wall,
            2.0,
            "at most",
            told,
        ),
    ]


@dataclass(frozen=True)
class _Ways:
    """Seconds of a block: of the processor with and without the lab book, wall-clock without, wall-clock of one line."""

    logged: float
    plain: float
    wall: float
    line: float
    sizes: Sizes

    @property
    def percent(self) -> float:
        return 100 * (self.logged / self.plain - 1)

    @property
    def told(self) -> str:
        seconds = f"{self.logged:.2f} and {self.plain:.2f} s of processor time"
        return f"{self.sizes.repeats} blocks of {self.sizes.steps} steps each way, by turns: {seconds}"


def _ways(folder: Path, tracking: TrackingConfig, sizes: Sizes, step: Callable[[], None]) -> _Ways:
    work = _Block(folder, sizes.steps, step)
    lab = Lab(folder, Mirror.of(tracking, folder), work.runs)
    lab.start(must_answer=False)
    work.lab = lab
    work.logged()  # does not count: compilation, files not yet read
    turns = [(_processor_seconds(work.logged), _processor_seconds(work.plain)) for _ in range(sizes.repeats)]
    line = median(seconds(work.line) for _ in range(20))
    wall = seconds(work.plain)
    lab.end(60 if lab.away is None else 0.1)
    logged, plain = (median(side) for side in zip(*turns, strict=True))
    return _Ways(logged, plain, wall, line, sizes)


def _processor_seconds(work: Callable[[], None]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def training_step() -> tuple[Callable[[], None], nn.Module, torch.optim.Optimizer]:
    """A step of the quickstart's networks on random numbers, and what it trains."""
    config = parse(_SETTINGS, "bench")
    torch.manual_seed(0)
    model = ConditionedDiffusion(config.model, config.encoder, config.diffusion)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4)
    count = config.training.batch_size
    slices, noise = torch.rand(count, 1, *_IMAGE), torch.randn(count, 1, *_IMAGE)
    levels = torch.randint(0, config.diffusion.timesteps, (count,))

    def step() -> None:
        optimizer.zero_grad()
        model(slices, levels, noise).backward()
        optimizer.step()

    return step, model, optimizer


class _Block:
    """Steps between two validations, with and without what the lab book does meanwhile."""

    lab: Lab

    def __init__(self, folder: Path, steps: int, step: Callable[[], None]) -> None:
        self._folder, self._steps, self._step, self._images = folder, steps, step, 0
        folder.mkdir(parents=True, exist_ok=True)
        events.start(folder)

    def runs(self) -> list[MirroredRun]:
        """The one run, as its folder has it."""
        life = events.life(self._folder, running=True)
        assert life is not None
        points, _ = curve(checkpoint.timed_history(self._folder / checkpoint.HISTORY), life.whole.began)
        return [
            MirroredRun("bench", names.KIND_SWEEP, "bench", life.identity, "RUNNING", life.whole.began, points=points)
        ]

    def line(self) -> None:
        """What a validation tells."""
        self._images += 32
        row = {names.IMAGES: self._images, names.TRAIN_LOSS: 0.1, names.VAL_LOSS: 0.1, names.MONITOR_OBJECTIVE: 0.5}
        checkpoint.append_history(self._folder / checkpoint.HISTORY, row)
        self.lab.wake()

    def plain(self) -> None:
        """Steps alone."""
        for _ in range(self._steps):
            self._step()

    def logged(self) -> None:
        """A line first, so that it is sent while the steps go on; and the watch of a stage."""
        with Watch(torch.device("cpu")):
            self.line()
            self.plain()
        if self.lab.away is None:
            self.lab.flush(60)
