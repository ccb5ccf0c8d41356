"""A sweep whose whole process tree is killed at ten random moments ends as one that was left in peace."""

import contextlib
import json
import subprocess
import time
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import optuna
import pytest
from small_sweep import ONE_PROCESS, Sweep

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.nightly, pytest.mark.timeout(1800)]

KILLS = 10
NUMBERS = ("train/", "pretrain/", "monitor/", "val/", "test/", "objective")
"""Beginnings of the metrics that must be equal; others tell times, memory and cost."""


def outcome(folder: Path) -> dict[str, Any]:
    """All that a finished sweep leaves, without what names a place, a process or a time."""
    sweep = folder / "out/sweeps/small"
    return {
        "trials": {path.parent.name: _result(path) for path in sorted(sweep.glob("trials/*/result.json"))},
        "test": json.loads((sweep / "test.json").read_text()),
        "weights": {
            path.parent.name: json.loads(path.read_text())["files"]["model.safetensors"]
            for path in sorted(sweep.glob("packages/*/manifest.json"))
        },
        "study": _study(sweep / "study.db"),
        "runs": _runs(folder / "out/mlflow.db"),
    }


def _result(path: Path) -> dict[str, Any]:
    result = json.loads(path.read_text())
    assert result.pop("seconds") > 0
    result.pop("made")  # what an earlier start had made already
    for point in ("default", "best"):
        result[point].pop("seconds")
    return dict(result)


def _study(path: Path) -> list[tuple[int, str, float, dict[str, Any]]]:
    trials = optuna.load_study(study_name="training", storage=f"sqlite:///{path}").trials
    return [(t.number, t.state.name, t.value, t.params) for t in trials]


def _runs(path: Path) -> dict[str, dict[str, list[tuple[int, float]]]]:
    """Curves and scores of each run, every point once; two runs of one identity would be two entries."""
    client = mlflow.MlflowClient(f"sqlite:///{path}")
    (experiment,) = [e for e in client.search_experiments() if e.name == "cddpm"]
    found = client.search_runs([experiment.experiment_id], max_results=1000)
    identities = [run.data.tags["cddpm.run"] for run in found]
    assert len(set(identities)) == len(identities), identities
    curves = {}
    for run in (run for run in found if run.data.tags["cddpm.kind"] != "stage"):  # whose numbers are times
        assert run.info.status == "FINISHED", run.data.tags["cddpm.run"]
        names = [n for n in run.data.metrics if n.startswith(NUMBERS) and not n.endswith("_per_second")]
        histories = {name: client.get_metric_history(run.info.run_id, name) for name in names}
        curves[run.data.tags["cddpm.run"]] = {n: [(p.step, p.value) for p in points] for n, points in histories.items()}
    for name, points in ((n, p) for run in curves.values() for n, p in run.items()):
        assert [step for step, _ in points] == sorted({step for step, _ in points}), name
    return curves


def test_ten_random_kills_change_nothing(own_ray: None, tmp_path: Path) -> None:
    calm = tmp_path / "calm"
    calm.mkdir()
    start = time.monotonic()
    undisturbed = Sweep(calm, config=ONE_PROCESS)
    assert undisturbed.finish(300) == 0, undisturbed.output
    duration, expected = time.monotonic() - start, outcome(calm)

    random, kills, sweeps = np.random.default_rng(), 0, 0  # other moments in each run of this test
    while kills < KILLS:
        folder = tmp_path / f"killed-{sweeps}"
        folder.mkdir()
        kills += _killed_to_its_end(folder, random, duration, KILLS - kills)
        sweeps += 1
        assert outcome(folder) == expected


def _killed_to_its_end(folder: Path, random: np.random.Generator, duration: float, at_most: int) -> int:
    """Start, kill and resume a sweep until it ends; returns how often it was killed."""
    moments: list[float] = []
    while True:
        run = Sweep(folder, *(["--resume"] if (folder / "out/sweeps/small").exists() else []), config=ONE_PROCESS)
        moment = float(random.uniform(1, duration)) if len(moments) < at_most else 600.0
        with contextlib.suppress(subprocess.TimeoutExpired):
            run.process.wait(moment)
        if run.process.poll() is not None:
            assert run.process.returncode == 0, f"after kills at {moments} s:\n{run.output}"
            return len(moments)
        run.kill_tree()
        moments.append(moment)
