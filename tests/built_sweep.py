"""Sweep folders without Ray: a whole small sweep, trained in this process, and one of many trials with drawn results.

``python tests/built_sweep.py FOLDER [drawn]`` makes one to look at.
"""

import dataclasses
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_training

from cddpm import artifact, events
from cddpm.campaign import IDENTITY
from cddpm.config import ExperimentConfig, to_dict
from cddpm.search import champion, leaderboard, record, scoring_search, trial
from cddpm.search.mirror import SweepMirror
from cddpm.search.point import Point
from cddpm.search.registering import register
from cddpm.tracking.lab import Lab
from cddpm.tracking.provenance import surroundings
from cddpm.training import prediction, stages, worker, worker_group
from cddpm.training.loop import Hooks
from cddpm.training.ranks import Ranks
from cddpm.training.watch import keep_record

COHORTS = [
    ("IXI", "train", 5),
    ("IXI", "val", 2),
    ("IXI", "test", 2),
    ("A", "val", 3),
    ("A", "test", 3),
    ("B", "val", 2),
    ("B", "test", 2),
]
TRAINING = {
    "training.learning_rate": {"float": [1e-4, 1e-2], "log": True},
    "training.batch_size": {"choice": [2, 4, 8]},
    "diffusion.loss": {"choice": ["l1", "l2"]},
}
SCORING = {
    "scoring.noise_levels": {"choice": [None, [10], [25]]},
    "scoring.guidance_scale": {"float": [0.0, 2.0]},
    "scoring.residual": {"choice": ["l1", "l2", "positive"]},
    "scoring.minimum_component_voxels": {"int": [0, 10]},
    "scoring.median_kernel": {"choice": [1, 3, 5]},
}


def config(output_dir: Path, name: str = "tiny", trials: int = 3, points: int = 12) -> ExperimentConfig:
    """A sweep over two data sets."""
    return tiny_training.tiny_config(
        name=name,
        output_dir=str(output_dir),
        search__datasets=["A", "B"],
        search__training__trials=trials,
        search__training__space=TRAINING,
        search__scoring__trials=points,
        search__scoring__space=SCORING,
        pretraining__enabled=False,
        training__images=16,
        training__evaluations=2,
        training__validation_volumes=1,
        training__validation_slices=2,
    )


def begin(settings: ExperimentConfig, store: str = "tiny") -> Path:
    """The folder of a sweep that has begun and has no trial yet."""
    folder = settings.output_dir / "sweeps" / settings.name
    artifact.write_json(folder / IDENTITY, {"name": settings.name})
    events.start(folder, surroundings=surroundings())
    record.enter(folder, settings, store)
    return folder


def ended(folder: Path, number: int, params: dict[str, Any], how: str) -> None:
    """What a driver writes down of a trial."""
    events.append(folder, "trial started", number=number, params=params)
    events.append(folder, "trial ended", number=number, how=how)


def _in_process(patch: pytest.MonkeyPatch) -> None:
    """The worker group is this process."""

    def run(assignment: Any, folder: Path, gpus: float, report: Any) -> Any:
        (folder / "attempt-00").mkdir(parents=True)
        hooks = Hooks(made=lambda record: keep_record(assignment.campaign, record, assignment.trial))
        return worker.run_stages(assignment.config, assignment.place, Ranks(), hooks)

    def predict(assignment: Any, checkpoint: Path, volumes: list[int], gpus: float) -> Path:
        settings = assignment.config
        return prediction.reconstruct(settings, assignment.place, checkpoint, volumes, Ranks(), Hooks())

    patch.setattr(worker_group, "run", run)
    patch.setattr(worker, "predict_cohort", predict)
    patch.setattr(tiny_training, "COHORTS", COHORTS)


def trained(output_dir: Path, trials: int = 2, finish: bool = True, book: bool = False) -> Path:
    """A sweep whose trials are really trained, searched and scored; with ``finish`` to its end, with ``book`` in MLflow."""
    settings = config(output_dir, trials=trials, points=8)
    with pytest.MonkeyPatch.context() as patch:
        _in_process(patch)
        place = stages.Place(output_dir / "artifacts", tiny_training.make_store(output_dir / "artifacts"))
        folder = begin(settings)
        for number in range(trials):
            params = {"training.learning_rate": 1e-3 / (number + 1), "training.batch_size": 4, "diffusion.loss": "l1"}
            asked = trial.with_values(settings, params)
            job = worker.Assignment(asked, place, number, folder / "stop", None, scoring_search.preview)
            assert trial.made(job, params, trial.folder_of(folder, number), 0.0, lambda metrics: None) is not None
            ended(folder, number, params, "finished")
        if finish:
            contenders = champion.measure(settings, folder, place, record.results(folder), 0.0)
            if book:
                _enter(settings, folder, place, contenders)
    return folder


def _enter(settings: ExperimentConfig, folder: Path, place: stages.Place, contenders: list[champion.Contender]) -> None:
    """The whole sweep into the lab book and the registry, as its driver does at the end."""
    results = record.results(folder)
    leaderboard.write_csv(
        folder / "leaderboard.csv", leaderboard.with_test(settings, leaderboard.rows(folder), contenders)
    )
    with Lab.open(settings, folder, SweepMirror(folder).runs) as lab:
        registered = register(settings, place, lab, results, contenders[0])
        assert (registered.version, registered.undelivered) == (1, 0)


def drawn(output_dir: Path, trials: int = 100, points: int = 400, name: str = "drawn") -> Path:
    """A sweep of many trials whose results are drawn from a known rule: the learning rate and the guidance matter."""
    settings = config(output_dir, name, trials, points)
    folder, random = begin(settings), np.random.default_rng(0)
    for number in range(trials):
        place = folder / "trials" / f"{number:04d}"
        params = {
            "training.learning_rate": float(10 ** random.uniform(-4, -2)),
            "training.batch_size": int(random.choice([2, 4, 8])),
            "diffusion.loss": str(random.choice(["l1", "l2"])),
        }
        base = 0.5 - 0.1 * (np.log10(params["training.learning_rate"]) + 3) ** 2 + 0.01 * random.normal()
        artifact.write_json(place / trial.CONFIG, to_dict(settings))
        if number % 10 == 3:
            row = {"number": number, "params": params, "objective": base - 0.2, "images": 16.0}
            artifact.write_json(place / trial.STOPPED, row)
        elif number % 25 == 7:
            artifact.write_json(
                place / trial.FAILED, {"number": number, "error": "train: the loss became nan <at once>"}
            )
        else:
            _drawn_result(place, number, params, [_point(random, n, base) for n in range(points)])
        ended(folder, number, params, trial.ending(place))
    return folder


def _drawn_result(place: Path, number: int, params: dict[str, Any], points: list[Point]) -> None:
    best = max(points, key=lambda p: p.objective)
    name = f"{number:016x}"
    result = trial.TrialResult(number, params, points[0], best, name, None, name, ("checkpoint",), 30.0 + number)
    artifact.write_json(place / trial.POINTS, [p.row() for p in points])
    artifact.write_json(place / trial.RESULT, dataclasses.asdict(result))


def _point(random: np.random.Generator, number: int, base: float) -> Point:
    scale = float(random.uniform(0, 2))
    levels = [None, [10], [25]][int(random.integers(3))]
    params = {
        "scoring.noise_levels": levels,
        "scoring.guidance_scale": scale,
        "scoring.residual": str(random.choice(["l1", "l2", "positive"])),
        "scoring.minimum_component_voxels": int(random.integers(0, 11)),
        "scoring.median_kernel": int(random.choice([1, 3, 5])),
    }
    value = base - 0.1 * (scale - 1.3) ** 2 + 0.03 * (levels == [25]) + 0.005 * random.normal()
    datasets = {
        "A": {"dice": value + 0.05, "auprc": value},
        "B": {"dice": value - 0.05, "auprc": value},
        "healthy": {"false_positive_rate": float(0.01 + 0.02 * random.random() + 0.03 * max(0.0, value))},
    }
    return Point(number, params if number else {}, value, {"A": 0.1, "B": 0.2, "all": 0.15}, datasets, 0.3)


if __name__ == "__main__":
    target = Path(sys.argv[1]).resolve()
    print(drawn(target) if sys.argv[2:] == ["drawn"] else trained(target, 4))
