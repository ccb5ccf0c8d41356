"""A lab book with three registered versions of one sweep, made as a sweep makes them."""

import json
import os
import shutil
import sqlite3
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch

from cddpm.config import ExperimentConfig, ScoringConfig, TrackingConfig
from cddpm.tracking import names
from cddpm.tracking.lab import Lab
from cddpm.tracking.mirror import MirroredRun, Registration, rows_file, texts
from cddpm.tracking.package import Pipeline, write_package
from cddpm.tracking.package_files import verify_package
from cddpm.tracking.publish import Mirror

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


def run(key: str, kind: str = names.KIND_TRIAL, name: str = "", **more: Any) -> MirroredRun:
    """A run of a folder that does not exist, as one that finished if nothing else is said."""
    own = {"campaign": "test", "status": "FINISHED", "began": 1.0, "ended": 2.0}
    return MirroredRun(key, kind, name or key, **{**own, **more})


def publish(output_dir: Path, *runs: MirroredRun, tracking: TrackingConfig | None = None) -> Mirror:
    """Into the lab book of an output folder, whole."""
    mirror = Mirror.of(tracking or TrackingConfig(), output_dir)
    mirror.publish(runs)
    assert mirror.refusals == {}
    return mirror


def begun_lab(output_dir: Path, tracking: TrackingConfig, *runs: MirroredRun) -> Lab:
    """One that has begun, as a sweep begins."""
    found = Lab(output_dir, Mirror.of(tracking, output_dir), lambda: runs)
    found.start(must_answer=tracking.when_away == "refuse")
    return found


def registration(package: Path, metrics: dict[str, float], model: str = "cddpm", **more: Any) -> Registration:
    """Of a package, without a promotion if none is asked for."""
    own = {"fingerprint": verify_package(package).fingerprint, "tags": {names.VERSION: "0.1"}, "time_ms": 1000}
    return Registration(package, model=model, metrics=metrics, **{**own, **more})


def register(
    output_dir: Path, package: Path, key: str = "demo/0000", params: dict[str, Any] | None = None, **more: Any
) -> int:
    """A package as a version of a trial of its own."""
    sweep, _, number = key.partition("/")
    own = {names.TRIAL: str(int(number))}
    one = run(key, tags=own, params=texts(params or {}), registration=registration(package, **{"metrics": {}, **more}))
    version = publish(output_dir, run(sweep, names.KIND_SWEEP), one).version(one)
    assert version is not None
    return version


def demo(folder: Path) -> list[MirroredRun]:
    """A sweep of three trials, each with a version; publishing it again changes nothing."""
    params = {"training.images": 500, "search.scoring.space.scoring.guidance_scale": {"float": [0.0, 2.0]}}
    runs = [run("demo", names.KIND_SWEEP, tags={names.COMMIT: "abc"}, params=texts(params))]
    for number, metrics in enumerate(METRICS):
        rows = [
            {"dataset": "Brats21", "volume": f"v{i}", "subject": f"s{i}", "dice": dice, "auprc": None}
            for i, dice in enumerate(DICE[number])
        ]
        runs.append(
            run(
                names.trial_key("demo", number),
                tags={names.TRIAL: str(number)},
                params=texts({"scoring.guidance_scale": GUIDANCE[number]}),
                files=[rows_file(names.VOLUMES["val"], rows)],
                registration=registration(make_package(folder, number), metrics),
            )
        )
    return runs


def filled(folder: Path, database: Path) -> Path:
    """The output folder ``folder`` with a copy of an empty database, filled."""
    shutil.copyfile(database, folder / "mlflow.db")
    runs = demo(folder)
    mirror = publish(folder, *runs)
    assert [mirror.version(run) for run in runs] == [None, 1, 2, 3]
    return folder


def altered(package: Path) -> None:
    """Change the meaning of a package, not its form."""
    file = package / "pipeline.json"
    value = json.loads(file.read_text())
    value["thresholds"]["all"] = 0.2
    file.write_text(json.dumps(value))


def many(file: Path, sweeps: int, trials: int, versions: int) -> None:
    """Fill an empty lab book with ``sweeps`` x ``trials`` runs and ``versions`` versions, by SQL: a big one in seconds.

    The versions have no files.
    """
    numbers = [(sweep, trial) for sweep in range(sweeps) for trial in range(-1, trials)]
    ids = {key: f"{key[0]:016x}{key[1] + 1:016x}" for key in numbers}
    with sqlite3.connect(file) as connection:
        insert = partial(_insert, connection)
        insert("runs", [_run_row(ids[key]) for key in numbers])
        insert("tags", [row for key in numbers for row in _run_tags(*key, ids)])
        insert("params", [row for key in numbers for row in _run_params(*key, ids)])
        insert("latest_metrics", [row for key in numbers for row in _run_metrics(*key, ids)])
        insert("registered_models", [{"name": "cddpm", "creation_time": 1, "workspace": "default"}])
        chosen = [key for key in numbers if key[1] >= 0][:versions]
        insert("model_versions", [_version_row(n, ids[key]) for n, key in enumerate(chosen, 1)])
        insert("model_version_tags", [row for n, key in enumerate(chosen, 1) for row in _version_tags(n, *key)])


def _insert(connection: sqlite3.Connection, table: str, rows: list[dict[str, Any]]) -> None:
    names_of = list(rows[0])
    marks = ", ".join("?" * len(names_of))
    columns = ", ".join(f'"{name}"' for name in names_of)
    connection.executemany(f"INSERT INTO {table} ({columns}) VALUES ({marks})", [tuple(row.values()) for row in rows])


def _run_row(run_id: str) -> dict[str, Any]:
    return {
        "run_uuid": run_id,
        "name": "run",
        "source_type": "LOCAL",
        "user_id": "me",
        "status": "FINISHED",
        "start_time": 1,
        "end_time": 2,
        "lifecycle_stage": "active",
        "artifact_uri": f"/nowhere/{run_id}",
        "experiment_id": 0,
    }


def _run_tags(sweep: int, trial: int, ids: dict[tuple[int, int], str]) -> list[dict[str, Any]]:
    found = {names.SWEEP: f"sweep-{sweep:03d}", names.COMMIT: "abc", names.HOST: "node"}
    if trial >= 0:
        found |= {names.TRIAL: str(trial), names.PARENT: ids[sweep, -1]}
    return [{"run_uuid": ids[sweep, trial], "key": key, "value": value} for key, value in found.items()]


def _run_params(sweep: int, trial: int, ids: dict[tuple[int, int], str]) -> list[dict[str, Any]]:
    trial_params = {"scoring.guidance_scale": str(trial / 10), "training.learning_rate": f"{1e-4 * (trial + 1)}"}
    found = trial_params if trial >= 0 else {f"training.setting_{n}": str(n) for n in range(20)}
    return [{"run_uuid": ids[sweep, trial], "key": key, "value": value} for key, value in found.items()]


def _run_metrics(sweep: int, trial: int, ids: dict[tuple[int, int], str]) -> list[dict[str, Any]]:
    run = {"run_uuid": ids[sweep, trial], "timestamp": 1, "step": 500, "is_nan": 0}
    return [{**run, "key": f"val/D{n}/dice", "value": (trial + n) / 100} for n in range(10)]


def _version_row(number: int, run_id: str) -> dict[str, Any]:
    own = {"source": f"models:/m-{number:032x}", "run_id": run_id, "status": "READY", "current_stage": "None"}
    return {"name": "cddpm", "version": number, "creation_time": number * 1000, "workspace": "default", **own}


def _version_tags(number: int, sweep: int, trial: int) -> list[dict[str, Any]]:
    metrics = {f"val/D{n}/dice": (number + n) / 1000 for n in range(10)} | {"val/dice": number / 1000}
    found = {
        names.SWEEP: f"sweep-{sweep:03d}",
        names.TRIAL: str(trial),
        names.METRICS: json.dumps(metrics),
        names.FINGERPRINT_PACKAGE: f"{number:016x}",
        names.AIM: "dice on D0",
        names.RECORD: json.dumps(
            {f"{names.FINGERPRINT}.{kind}": f"{kind}{number}" for kind in ("store", "checkpoint", "reconstruction")}
        ),
    }
    own = {"name": "cddpm", "version": number, "workspace": "default"}
    return [{**own, "key": key, "value": value} for key, value in found.items()]


def imports_of(commands: list[list[str]], *options: str) -> list[str]:
    """Which big packages are imported by ``cddpm registry`` commands, one after the other in a process of their own."""
    code = (
        "import json, sys; from typer.testing import CliRunner; from cddpm.cli import app\n"
        "for command in json.loads(sys.argv[1]):\n"
        "    done = CliRunner().invoke(app, ['registry', *command, *sys.argv[2:]], catch_exceptions=False)\n"
        "    assert done.exit_code == 0, done.output\n"
        "print(json.dumps([name for name in ('torch', 'ray', 'mlflow', 'pandas') if name in sys.modules]))"
    )
    command = [sys.executable, "-c", code, json.dumps(commands), *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, "COLUMNS": "100"})
    assert done.stderr == ""
    return list(json.loads(done.stdout))
