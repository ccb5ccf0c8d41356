"""The main job on real processes: a foreign DATA_DIR, an interruption, a kill of everything, resumes, what must be refused."""

import csv
import json
from collections import Counter
from pathlib import Path

import foreign_data
import mlflow
import optuna
import psutil
import pytest
import yaml
from launched import ROOT
from small_sweep import ONE_PROCESS, Sweep, small, sweep_here

from cddpm.config import override
from cddpm.publishing import publish
from cddpm.tracking import names as tags

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(600)]


def leaderboard(folder: Path) -> list[dict[str, str]]:
    with (folder / "out/sweeps/small/leaderboard.csv").open() as stream:
        return list(csv.DictReader(stream))


def study_states(folder: Path) -> list[str]:
    storage = f"sqlite:///{folder}/out/sweeps/small/study.db"
    return [t.state.name for t in optuna.load_study(study_name="training", storage=storage).trials]


def runs(folder: Path) -> dict[str, str]:
    """MLflow's run id by our identity."""
    client = mlflow.MlflowClient(f"sqlite:///{folder}/out/mlflow.db")
    experiment = client.get_experiment_by_name("cddpm")
    found = client.search_runs([experiment.experiment_id])
    identities = [run.data.tags[tags.RUN] for run in found]
    assert len(set(identities)) == len(identities), identities
    inner = (tags.KIND_STAGE, tags.KIND_POINT)
    return {run.data.tags[tags.RUN]: run.info.run_id for run in found if run.data.tags[tags.KIND] not in inner}


def test_foreign_data_killed_and_resumed_become_a_champion(
    own_ray: None, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """With the quickstart's file, made small: two workers, pretraining, guidance."""
    data = foreign_data.make(tmp_path / "foreign")
    changes = {**small("quickstart"), "name": "small", "compute.workers": 2}
    config = override(yaml.safe_load((ROOT / "tune_configs/quickstart.yaml").read_text()), changes, "test")
    given = ("--data-dir", str(data), "--trials", "1")
    first = Sweep(tmp_path, *given, config=config)
    first.wait_for("trial 0000 after     128 images")
    other = sweep_here(tmp_path, *given, "--resume", config=config)
    assert other.code == 6
    assert f"process {first.process.pid}" in other.output
    first.kill_tree()
    assert study_states(tmp_path) == ["RUNNING"]
    before = runs(tmp_path)
    changed = {**config, "training": {**config["training"], "batch_size": 8}}
    refused = sweep_here(tmp_path, *given, "--resume", config=changed)
    assert refused.code == 6
    assert f"training.batch_size: was {config['training']['batch_size']}, is 8" in refused.output

    request.getfixturevalue("shared_ray")  # what this test has started has ended
    second = sweep_here(tmp_path, *given, "--resume", config=config)
    assert second.code == 0, second.output
    assert "Traceback" not in second.output
    _each_trial_once(tmp_path, before, 1)
    names = [row["name"] for row in leaderboard(tmp_path)]
    assert sorted(name.replace("champion = ", "") for name in names) == [
        "0000",
        "intensity threshold",
        "unswept defaults",
    ]
    assert (tmp_path / "out/sweeps/small/champion.png").stat().st_size > 10_000
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path}/out/mlflow.db")
    version = client.get_model_version_by_alias("cddpm", "champion")
    assert version.tags["cddpm.sweep"] == "small"
    found = runs(tmp_path)
    assert set(found) == {"small", "small/0000"}
    assert client.get_run(found["small/0000"]).data.tags["mlflow.parentRunId"] == found["small"]
    assert [m.step for m in client.get_metric_history(found["small/0000"], "val/loss")] == [64, 128, 192, 256]
    again = sweep_here(tmp_path, *given, config=config)
    assert again.code == 6
    assert "--resume" in again.output
    assert "Traceback" not in again.output


@pytest.mark.nightly
def test_what_a_missing_lab_book_was_told_is_delivered_later(shared_ray: str, ten_scans: Path, tmp_path: Path) -> None:
    given = ("--data-dir", str(ten_scans), "--trials", "1")
    first = sweep_here(tmp_path, *given)
    assert first.code == 0, first.output
    found = runs(tmp_path)
    second = sweep_here(tmp_path, *given, "--name", "second", "--tracking-uri", "http://127.0.0.1:9")
    assert second.code == 0, second.output
    assert "0 of 256" not in second.output  # the first trial's checkpoint was found, not trained again
    assert len(list((tmp_path / "out/artifacts/checkpoint").glob("[0-9a-f]*"))) == 1
    _delivered_later(tmp_path, second.output, found)


def _delivered_later(tmp_path: Path, output: str, first: dict[str, str]) -> None:
    """A sweep whose MLflow was never there ends well; what it wrote down is delivered by hand, its champion too."""
    assert "The work goes on" in output
    assert "The champion is not yet registered" in output
    assert "registry sync" in output
    uri = f"sqlite:///{tmp_path}/out/mlflow.db"
    done = publish(tmp_path / "out" / "sweeps" / "second", uri)
    assert (done.changed > 2, done.missing, done.refused, done.fault) == (True, 0, (), None)
    found, client = runs(tmp_path), mlflow.MlflowClient(uri)
    assert set(found) == set(first) | {"second", "second/0000"}
    trial = client.get_run(found["second/0000"]).data.tags
    maker = client.get_run(trial[f"{tags.MADE_BY}.checkpoint"]).data.tags
    assert (maker[tags.SWEEP], maker[tags.FINGERPRINT]) == ("small", trial[tags.FINGERPRINT_CHECKPOINT])
    versions = client.search_model_versions("name = 'cddpm'")
    assert {version.tags[tags.SWEEP] for version in versions} == {"small", "second"}
    best = max(json.loads(version.tags[tags.METRICS])[tags.OBJECTIVE] for version in versions)
    champion = client.get_model_version_by_alias("cddpm", "champion")  # the second sweep's only if it is not worse
    assert json.loads(champion.tags[tags.METRICS])[tags.OBJECTIVE] == best


@pytest.mark.nightly
def test_ended_at_once_killed_resumed_and_extended(
    own_ray: None, ten_scans: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    given = ("--data-dir", str(ten_scans), "--trials", "1")
    first = Sweep(tmp_path, *given, config=ONE_PROCESS)
    first.wait_for("trial 0000 after")
    _interrupt_twice(first)
    assert study_states(tmp_path) == ["RUNNING"]
    before = runs(tmp_path)

    second = Sweep(tmp_path, *given, "--resume", config=ONE_PROCESS)
    second.wait_for("trial 0000 after     128 images")
    other = sweep_here(tmp_path, *given, "--resume", config=ONE_PROCESS)
    assert other.code == 6
    assert f"process {second.process.pid}" in other.output
    second.kill_tree()

    third = Sweep(tmp_path, *given, "--resume", config=ONE_PROCESS)
    assert third.finish() == 0, third.output
    assert "Traceback" not in third.output
    assert study_states(tmp_path) == ["COMPLETE"]
    result = (tmp_path / "out/sweeps/small/trials/0000/result.json").read_bytes()

    changed = {**ONE_PROCESS, "training": {**ONE_PROCESS["training"], "batch_size": 8}}
    refused = sweep_here(tmp_path, *given, "--resume", config=changed)
    assert refused.code == 6
    assert "training.batch_size: was 16, is 8" in refused.output

    request.getfixturevalue("shared_ray")  # what this test has started has ended
    more = sweep_here(tmp_path, *given, "--extend", "1", config=ONE_PROCESS)
    assert more.code == 0, more.output
    assert "trial 0000 starts" not in more.output
    assert (tmp_path / "out/sweeps/small/trials/0000/result.json").read_bytes() == result
    _each_trial_once(tmp_path, before)


def _interrupt_twice(sweep: Sweep) -> None:
    """Nothing that it started may be left."""
    tree = psutil.Process(sweep.process.pid).children(recursive=True)
    sweep.interrupt()
    sweep.wait_for("stopping: trainings save their state")
    sweep.interrupt()
    assert sweep.finish(20) == 130, sweep.output
    assert "ended at once" in sweep.output
    assert "Traceback" not in sweep.output
    assert psutil.wait_procs(tree, timeout=15)[1] == []


def _each_trial_once(folder: Path, before: dict[str, str], trials: int = 2) -> None:
    """All trials in study, leaderboard and lab book, whose runs are those of ``before``, with every validation once."""
    numbers = [f"{number:04d}" for number in range(trials)]
    assert study_states(folder) == ["COMPLETE"] * trials
    names = Counter(row["name"].replace("champion = ", "") for row in leaderboard(folder))
    assert names == dict.fromkeys([*numbers, "unswept defaults", "intensity threshold"], 1)
    after = runs(folder)
    assert {k: after[k] for k in before} == before
    client = mlflow.MlflowClient(f"sqlite:///{folder}/out/mlflow.db")
    for number in numbers:
        steps = [m.step for m in client.get_metric_history(after[f"small/{number}"], "val/loss")]
        assert steps == [64, 128, 192, 256]


@pytest.mark.nightly
def test_interrupted_killed_and_resumed(own_ray: None, ten_scans: Path, tmp_path: Path) -> None:
    def start(*arguments: str) -> Sweep:
        return Sweep(tmp_path, "--data-dir", str(ten_scans), *arguments, config=ONE_PROCESS)

    first = start()
    first.wait_for("trial 0000 after")
    first.interrupt()
    assert first.finish(60) == 130, first.output
    assert "--resume" in first.output
    assert "Traceback" not in first.output
    assert study_states(tmp_path) == ["RUNNING"]
    saved = [int(p.name.split("-")[1]) for p in (tmp_path / "out/artifacts/checkpoint/.work").glob("*/images-*")]
    assert saved

    second = start("--resume")
    second.wait_for("trial 0001 after")
    other = sweep_here(tmp_path, "--data-dir", str(ten_scans), "--resume", config=ONE_PROCESS)
    assert other.code == 6
    assert f"process {second.process.pid}" in other.output
    before, result = runs(tmp_path), (tmp_path / "out/sweeps/small/trials/0000/result.json").read_bytes()
    second.kill_tree()

    third = start("--resume")
    assert third.finish() == 0, third.output
    assert "trial 0000 starts" not in third.output
    assert (tmp_path / "out/sweeps/small/trials/0000/result.json").read_bytes() == result
    _each_trial_once(tmp_path, before)


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--set", "training.learning_rat=1"], 2, ["training.learning_rat", "did you mean 'training.learning_rate'"]),
        (
            ["--set", "compute.workers=64", "--set", "training.batch_size=64", "--set", "pretraining.batch_size=64"],
            6,
            ["compute.workers", "64"],
        ),
        (["--data-dir", "/nowhere/at/all"], 3, ["/nowhere/at/all"]),
        (["--resume"], 6, ["no sweep 'small' to resume"]),
        (["--tracking-uri", "http://127.0.0.1:9", "--set", "tracking.when_away=refuse"], 5, ["http://127.0.0.1:9"]),
    ],
)
def test_a_users_fault_is_one_message(
    shared_ray: str, ten_scans: Path, tmp_path: Path, arguments: list[str], code: int, words: list[str]
) -> None:
    sweep = sweep_here(tmp_path, "--data-dir", str(ten_scans), *arguments)
    assert sweep.code == code, sweep.output
    assert "Traceback" not in sweep.output
    for word in words:
        assert word in sweep.output
