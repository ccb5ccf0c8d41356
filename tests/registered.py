"""A lab book with three registered versions of one sweep, made as a sweep makes them."""

import json
import shutil
from pathlib import Path

import torch

from cddpm.config import ExperimentConfig, ScoringConfig, TrackingConfig
from cddpm.tracking import names
from cddpm.tracking.package import Pipeline, write_package
from cddpm.tracking.registry import register
from cddpm.tracking.runs import LabBook

METRICS = [
    {"val/dice": 0.3, "val/Brats21/dice": 0.6, "test/dice": 0.9, "val/loss": 0.2, "objective": 0.3},
    {"val/dice": 0.5, "val/Brats21/dice": 0.4, "test/dice": 0.1, "val/loss": 0.3},
    {"val/dice": 0.4, "val/Brats21/dice": 0.5, "val/loss": 0.1, "val/hd95": float("inf")},
]
MADE_FROM = {"store": "s1", "encoder": "e1", "checkpoint": "c1", "reconstruction": "r1"}
GUIDANCE = (0.5, 1.0, 1.5)
"""Guidance scale of each trial."""
DICE = ((0.2, 0.4), (0.5, 0.5), (0.3, 0.5))
"""Dice of two validation subjects, by trial."""


def make_package(folder: Path, number: int, sweep: str = "demo") -> Path:
    """A package of weights that are all ``number``."""
    path = folder / "packages" / sweep / str(number)
    scoring = ScoringConfig(guidance_scale=GUIDANCE[number % 3])
    pipeline = Pipeline(scoring=scoring, thresholds={"all": 0.1}, fingerprints=MADE_FROM, sweep=sweep, trial=number)
    write_package(path, {"weight": torch.full((2, 2), float(number))}, ExperimentConfig(name="demo"), pipeline)
    return path


def fill(book: LabBook, folder: Path) -> list[int]:
    """Register the three; registering again changes nothing."""
    parent = book.parent("demo", {}, {names.COMMIT: "abc"}, params={"training.images": 500})
    numbers = []
    for number, metrics in enumerate(METRICS):
        trial = book.trial(parent, number, {"scoring.guidance_scale": GUIDANCE[number]}, {})
        rows = [
            {"dataset": "Brats21", "volume": f"v{i}", "subject": f"s{i}", "dice": dice, "auprc": None}
            for i, dice in enumerate(DICE[number])
        ]
        book.log_rows(trial, rows, names.VOLUMES["val"])
        tags = {names.VERSION: "0.1"}
        numbers.append(register(book, trial, make_package(folder, number), metrics, tags))
    assert book.flush(60) == 0
    return numbers


def filled(folder: Path, database: Path) -> Path:
    """The output folder ``folder`` with a copy of an empty database, filled."""
    shutil.copyfile(database, folder / "mlflow.db")
    with LabBook.open(TrackingConfig(), folder, folder / "spool") as book:
        assert fill(book, folder) == [1, 2, 3]
    return folder


def altered(package: Path) -> None:
    """Change the meaning of a package, not its form."""
    file = package / "pipeline.json"
    value = json.loads(file.read_text())
    value["thresholds"]["all"] = 0.2
    file.write_text(json.dumps(value))
