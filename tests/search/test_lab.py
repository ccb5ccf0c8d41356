"""What a sweep enters into the lab book, without Ray: the driver's own code on a sweep that was really trained."""

import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import built_sweep
import mlflow
import pytest
from mlflow import MlflowClient
from mlflow.entities import Run
from readme_pages import ROOT, read

from cddpm import artifact, events
from cddpm.config import ExperimentConfig, with_values
from cddpm.search import champion, leaderboard, record, trial
from cddpm.search.mirror import SweepMirror
from cddpm.search.registering import register
from cddpm.search.scoring_search import PICTURE, VOLUMES
from cddpm.tracking import connection, logged_model, names
from cddpm.tracking.address import default_uri
from cddpm.tracking.lab import Lab
from cddpm.tracking.provenance import surroundings
from cddpm.tracking.registry import Registry
from cddpm.training import stages

pytestmark = pytest.mark.slow

TRIAL = "tiny/0000"


@pytest.fixture(scope="module")
def sweep(database: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = built_sweep.trained(tmp_path_factory.mktemp("lab") / "outputs", trials=1)
    shutil.copyfile(database, folder.parents[1] / "mlflow.db")
    return folder


@pytest.fixture(scope="module")
def config(sweep: Path) -> ExperimentConfig:
    own = built_sweep.config(sweep.parents[1], trials=1, points=8)
    return with_values(own, {"search.logged_points": 3}, "test")


@pytest.fixture(scope="module")
def version(config: ExperimentConfig, sweep: Path) -> int:
    return enter(config, sweep)


def enter(config: ExperimentConfig, folder: Path) -> int:
    artifacts = config.output_dir / "artifacts"
    (store,) = artifacts.glob("store/*")
    results, winner = record.results(folder), champion.load(folder / champion.TEST)[0]
    events.start(folder, surroundings=surroundings())
    record.enter(folder, config, store.name)
    with Lab.open(config, folder, SweepMirror(folder).runs) as lab:
        found = register(config, stages.Place(artifacts, store), lab, results, winner)
        assert found.undelivered == 0
        assert lab.mirror.refusals == {}
    assert found.version is not None
    return found.version


@pytest.fixture(scope="module")
def client(config: ExperimentConfig, version: int) -> MlflowClient:
    return connection.connect(connection.default_uri(config.output_dir), create=False)


@pytest.fixture(scope="module")
def runs(client: MlflowClient) -> dict[str, Run]:
    found = client.search_runs([e.experiment_id for e in client.search_experiments()])
    assert all(run.info.status == "FINISHED" for run in found)
    return {run.data.tags[names.RUN]: run for run in found}


def files(client: MlflowClient, run: Run, folder: str | None = None) -> set[str]:
    return {file.path for file in client.list_artifacts(run.info.run_id, folder)}


def test_the_sweeps_run_says_what_was_asked_and_what_came_out(client: MlflowClient, runs: dict[str, Run]) -> None:
    parent = runs["tiny"]
    assert parent.data.params["search.training.space.diffusion.loss"] == '{"choice": ["l1", "l2"]}'
    assert parent.data.params["training.images"] == "16"
    assert not {"output_dir", "name", "diffusion.schedule"} & parent.data.params.keys()
    assert {"config.json", names.VOLUMES["test"], str(champion.PICTURES)} <= files(client, parent)
    assert {f"{champion.PICTURES}/A.png", f"{champion.PICTURES}/B.png"} == files(client, parent, str(champion.PICTURES))
    for tag in (names.COMMIT, names.LOCK, names.PROCESSOR, names.MEMORY, names.GPUS, names.TORCH, names.RAY):
        assert parent.data.tags[tag]
    assert {names.SECONDS, names.CPU_HOURS, names.GPU_SECONDS, "test/A/dice", "val/dice"} <= parent.data.metrics.keys()
    assert [i.dataset.digest for i in parent.inputs.dataset_inputs] == [parent.data.tags[names.FINGERPRINT_STORE]]
    assert parent.data.tags[names.CHAMPION] == TRIAL


def test_a_trials_run_has_its_settings_curves_volumes_and_picture(client: MlflowClient, runs: dict[str, Run]) -> None:
    run = runs[TRIAL]
    assert run.info.run_name == "0000 loss l1 batch 4 lr 0.001"
    assert run.data.params["training.learning_rate"] == "0.001"
    assert {names.TRAIN_LOSS, names.VAL_LOSS, names.OBJECTIVE, "val/A/dice", names.SECONDS} <= run.data.metrics.keys()
    assert [point.step for point in client.get_metric_history(run.info.run_id, names.VAL_LOSS)] == [8, 16]
    assert {trial.RESULT, VOLUMES, PICTURE, "scoring_table.json"} <= files(client, run)
    tables = {entry["path"] for entry in json.loads(run.data.tags[names.LOGGED_ARTIFACTS])}
    assert tables == {VOLUMES, "scoring_table.json"}
    assert [i.dataset.digest for i in run.inputs.dataset_inputs] == [run.data.tags[names.FINGERPRINT_STORE]]


def test_what_was_computed_is_a_run_and_the_trial_is_linked_to_it(runs: dict[str, Run]) -> None:
    tags = runs[TRIAL].data.tags
    assert (tags[names.MADE], tags[names.REUSED]) == ("checkpoint, reconstruction", "store")
    for stage in ("checkpoint", "reconstruction"):
        (made,) = (run for run in runs.values() if run.info.run_id == tags[f"{names.MADE_BY}.{stage}"])
        assert made.data.tags[names.FINGERPRINT] == tags[f"cddpm.fingerprint.{stage}"]
        assert made.data.tags[names.PARENT] == runs["tiny"].info.run_id
        assert {names.SECONDS, names.CPU_USED, names.MEMORY_USED} <= made.data.metrics.keys()


def test_the_best_points_are_runs_and_no_others(config: ExperimentConfig, sweep: Path, runs: dict[str, Run]) -> None:
    points = trial.read_points(trial.folder_of(sweep, 0))
    best = sorted(points, key=lambda point: (-point.objective, point.number))[:3]
    found = {key: run for key, run in runs.items() if run.data.tags[names.KIND] == names.KIND_POINT}
    assert set(found) == {f"tiny/point-0000.{point.number:04d}" for point in best}
    for point in best:
        run = found[f"tiny/point-0000.{point.number:04d}"]
        assert run.data.metrics[names.OBJECTIVE] == pytest.approx(point.objective)
        assert run.data.metrics["val/A/dice"] == pytest.approx(point.datasets["A"]["dice"])
        assert set(run.data.params) == set(point.params)
        assert run.info.run_name.startswith(f"0000.{point.number:04d}")


def test_readmes_lines_for_pandas_run(
    sweep: Path, version: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    leaderboard.write_csv(sweep / "leaderboard.csv", leaderboard.rows(sweep))
    (code,) = read(ROOT / "cddpm" / "tracking" / "README.md").blocks("python")
    monkeypatch.chdir(sweep.parents[2])
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", "0")  # set_experiment changes both for the whole process
    monkeypatch.setattr("mlflow.tracking.fluent._active_experiment_id", None)
    found: dict[str, Any] = {}
    try:
        exec(code.replace("sweeps/quickstart", f"sweeps/{sweep.name}"), found)
    finally:
        mlflow.set_tracking_uri(None)
    assert list(found["trials"]["tags.cddpm.run"]) == [TRIAL]
    assert len(found["volumes"]) == 7  # 3 of A, 2 of B, 2 healthy
    assert len(found["curve"]) == 2
    assert len(found["board"]) == 1
    assert len(found["points"]) == 8
    assert "0000 loss l1 batch 4 lr 0.001" in capsys.readouterr().out


def test_a_versions_page_reads_like_a_label(client: MlflowClient, version: int, runs: dict[str, Run]) -> None:
    shown = client.get_model_version("cddpm", str(version))
    assert str(shown.description).startswith(f"Conditioned DDPM of trial **{TRIAL}**, chosen by ")
    for part in ("| validation | test |", " dice | 0.", "**Chosen by the search**: `", "**Data**: "):
        assert part in str(shown.description)
    run = runs[TRIAL].info
    assert f"](#/experiments/{run.experiment_id}/runs/{run.run_id}/artifacts)" in str(shown.description)
    assert set(shown.tags) <= {*logged_model._FILTERED, names.RECORD}
    assert json.loads(shown.tags[names.RECORD])[names.FINGERPRINT_CHECKPOINT]


def test_a_champion_that_outlives_an_extension_is_registered_once(
    config: ExperimentConfig, sweep: Path, version: int, client: MlflowClient, runs: dict[str, Run]
) -> None:
    longer = with_values(config, {"search.training.trials": 3, "search.concurrent_trials": 1}, "extension")
    assert enter(longer, sweep) == version
    again = client.search_runs([runs["tiny"].info.experiment_id])
    assert {run.data.tags[names.RUN]: run.info.run_id for run in again} == {k: r.info.run_id for k, r in runs.items()}


def entered(config: ExperimentConfig, folder: Path, objective: float) -> tuple[str, bool]:
    """The verdict on a sweep whose only trial reached ``objective``, and whether it became the champion."""
    artifacts, own = config.output_dir / "artifacts", folder.with_name(f"{config.name}-{objective}")
    (store,) = artifacts.glob("store/*")
    shutil.copytree(folder / "trials", own / "trials")
    (found,), winner = record.results(folder), champion.load(folder / champion.TEST)[0]
    result = replace(found, best=replace(found.best, objective=objective))
    artifact.write_json(trial.folder_of(own, result.number) / trial.RESULT, asdict(result))
    events.start(own)
    record.enter(own, config, store.name)
    with Lab.open(config, own, SweepMirror(own).runs) as lab:
        built_sweep.ended(own, result.number, result.params, "finished")
        registered = register(config, stages.Place(artifacts, store), lab, [result], winner)
        assert registered.undelivered == 0
        return registered.said, registered.promoted


def test_a_sweep_replaces_no_better_champion_and_none_of_another_aim(sweep: Path) -> None:
    config = with_values(
        built_sweep.config(sweep.parents[1], trials=1, points=8), {"tracking.registered_model": "aims"}, "test"
    )
    assert entered(config, sweep, 0.4) == ("'aims': version 1 is the champion", True)
    worse, better = (with_values(config, {"name": name}, "test") for name in ("worse", "better"))
    verdict, moved = entered(worse, sweep, 0.3)
    assert verdict == (
        "'aims': version 2 is registered; version 1 stays champion: its objective is 0.3000, that of version 1 is 0.4000"
    )
    assert not moved
    assert entered(better, sweep, 0.5) == ("'aims': version 3 is the champion", True)
    other = with_values(better, {"name": "other", "search.objective": "auprc"}, "test")
    verdict, moved = entered(other, sweep, 0.9)
    assert "version 3 was chosen by another aim (dice on A, B, not auprc on A, B)" in verdict
    assert not moved
    audit = Registry.open(default_uri(config.output_dir), "aims").promotions()
    assert [(entry.version, entry.refused == "") for entry in audit] == [(1, True), (2, False), (3, True), (4, False)]


def test_a_stop_that_no_driver_lived_to_enter_is_entered_without_an_objective(sweep: Path) -> None:
    config = with_values(built_sweep.config(sweep.parents[1], trials=1, points=8), {"name": "late"}, "test")
    folder = sweep.with_name("late")
    stop = trial.Stop(7, {"training.learning_rate": 2e-3}, 0.25, 8.0)
    artifact.write_json(trial.folder_of(folder, 7) / trial.STOPPED, asdict(stop))
    events.start(folder)
    record.enter(folder, config, "store")
    events.append(folder, "trial started", number=7, params=stop.params)
    for _ in range(2):  # a resume enters nothing twice
        with Lab.open(config, folder, SweepMirror(folder).runs) as lab:
            assert lab.close() == 0
    client = connection.connect(connection.default_uri(config.output_dir), create=False)
    (experiment,) = (e for e in client.search_experiments() if e.name == "cddpm")
    (found,) = client.search_runs([experiment.experiment_id], f"tags.`{names.RUN}` = 'late/0007'")
    assert (found.info.status, found.data.tags[names.ENDING]) == ("FINISHED", "stopped")
    assert names.OBJECTIVE not in found.data.metrics
    assert trial.STOPPED in files(client, found)
