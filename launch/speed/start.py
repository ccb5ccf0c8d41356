"""Rows about starting: from a training's proposal to its first step, in a new worker group and in one that stays."""

import os
import time
from collections.abc import Iterator
from pathlib import Path

from cddpm import cluster
from cddpm.config import load
from cddpm.models.precision import settled_for
from cddpm.training import worker, worker_group
from cddpm.training.stages import Place
from speed.cohort import DATASET, draw
from speed.row import Row

CONFIG = Path(__file__).resolve().parents[2] / "tune_configs" / "quickstart.yaml"
SHAPE = (25, 48, 48)
BAR_SECONDS = 8.0


class Watching(cluster.Board):
    """Notes when each training makes its first step."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.file = file

    def post(self, trial: int, stage: str, images: int, budget: int, loss: float, every_seconds: float = 0.5) -> None:
        """As a training tells where it is; the first that it tells counts."""
        with self.file.open("a") as stream:
            stream.write(f"{trial} {time.time()}\n")

    def first(self, trial: int) -> float:
        """Seconds since 1970."""
        rows = (line.split() for line in self.file.read_text().splitlines())
        return min(float(when) for number, when in rows if int(number) == trial)


def measure(folder: Path, trainings: int = 3) -> Iterator[Row]:
    """The quickstart's training on two workers, cut to two steps, again and again in one process as a trial's is."""
    drawn = draw(folder, 2, SHAPE)
    slices, height, width = SHAPE
    config = load(
        CONFIG,
        {
            "data.unhealthy": [DATASET],
            "data.volume_shape": [height, width, slices],
            "data.rescale_factor": 1,
            "pretraining.enabled": False,
            "training.images": 64,
            "training.evaluations": 1,
            "training.warmup_images": 0,
            "training.minimum_brain_fraction": 0.0,
        },
    )
    config = settled_for(config, "cpu")
    here = str(Path(__file__).resolve().parents[1])
    os.environ["PYTHONPATH"] = os.pathsep.join(
        filter(None, [here, os.environ.get("PYTHONPATH")])
    )  # workers import this
    cluster.connect("local")
    try:
        board, taken = Watching(folder / "steps"), list[float]()
        for number in range(trainings):
            place = Place(folder / f"artifacts-{number}", drawn.store)
            job = worker.Assignment(config, place, number, folder / "stop", board)
            start = time.time()
            worker_group.run(job, folder / f"ray-{number}", 0.0, lambda metrics: None)
            taken.append(board.first(number) - start)
        worker_group.dismiss()
    finally:
        cluster.kill()
    told = "a controller and its helpers, two workers, each with a torch of its own"
    yield Row("a training's first step, in a new worker group", "s", taken[0], detail=told)
    told = f"each of {trainings - 1}: {', '.join(f'{t:.1f}' for t in taken[1:])} s"
    yield Row("the same in a group that stays", "s", max(taken[1:]), BAR_SECONDS, "at most", told)
