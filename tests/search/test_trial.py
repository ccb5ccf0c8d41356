"""A trial: its configuration, its search over reconstructions, its result that appears once. Training is replaced."""

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from tiny_training import tiny_config

from cddpm.errors import ConfigError, SearchError
from cddpm.reconstruct.reconstruction import Reconstruction
from cddpm.search import trial
from cddpm.search.point import Point
from cddpm.search.trial import TrialJob
from cddpm.training import stages, worker

pytestmark = pytest.mark.slow

BASE = tiny_config(search__scoring__trials=5, search__scoring__space={"scoring.guidance_scale": {"float": [0.0, 2.0]}})


@pytest.fixture
def job(tmp_path: Path, tiny_store_path: Path) -> TrialJob:
    params = {"training.learning_rate": 5e-4}
    return TrialJob(tmp_path / "sweep", 7, params, BASE, stages.Place(tmp_path, tiny_store_path), 0.0)


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch, caches: dict[bool, Reconstruction]) -> list[worker.Assignment]:
    """Stands for the worker group; notes what it was given."""
    given: list[worker.Assignment] = []

    def run(assignment: worker.Assignment, name: str, folder: Path, gpus: float, forward_reports: bool) -> Any:
        (folder / name).mkdir(parents=True)
        given.append(assignment)
        return worker.Outcome(stages.Made(Path("/c/check"), None, ("checkpoint",)), caches[True].path)

    monkeypatch.setattr(worker, "run", run)
    return given


def test_the_folder_and_the_configuration(job: TrialJob) -> None:
    assert job.folder.name == "0007"
    assert job.config.training.learning_rate == 5e-4
    assert job.config.model_copy(update={"training": BASE.training}) == BASE


def test_an_impossible_combination_names_the_trial(job: TrialJob) -> None:
    bad = TrialJob(job.sweep, 7, {"reconstruction.noise_levels": [99]}, job.base, job.place, 0.0)
    with pytest.raises(ConfigError, match=r"trial 7: reconstruction\.noise_levels: 99"):
        bad.config  # noqa: B018


def test_a_trial_trains_searches_and_keeps_its_result(job: TrialJob, trained: list[worker.Assignment]) -> None:
    reports: list[dict[str, float]] = []
    result = trial.run(job, None, reports.append)
    assert trained[0].config == job.config
    assert (trained[0].trial, trained[0].stop_file) == (7, job.sweep / "stop")
    assert trial.read_result(job.folder) == result
    assert result.objective == result.best.objective >= result.default.objective
    assert (result.default.number, result.default.params) == (0, {})
    assert (result.checkpoint, result.encoder, result.made) == ("check", None, ("checkpoint",))
    assert len(trial.read_points(job.folder)) == 5
    assert reports == [{"objective": result.objective, "images": 49.0, "flagged": 0.0, "final": 1.0}]


def test_a_trial_with_a_result_never_runs_again(job: TrialJob, trained: list[worker.Assignment]) -> None:
    first = trial.run(job, None, lambda metrics: None)
    reports: list[dict[str, float]] = []
    assert trial.run(job, None, reports.append) == first
    assert len(trained) == len(reports) == 1


def test_a_stop_leaves_no_result_and_the_next_start_finishes(job: TrialJob, trained: list[worker.Assignment]) -> None:
    job.sweep.mkdir()
    job.stop_file.touch()
    reports: list[dict[str, float]] = []
    assert trial.run(job, None, reports.append) is None
    assert reports == []
    assert trial.read_result(job.folder) is None
    job.stop_file.unlink()
    assert trial.run(job, None, reports.append) is not None
    assert len(list((job.folder / "ray").iterdir())) == 2  # every attempt has a new name


def test_a_result_comes_back_whole(tmp_path: Path) -> None:
    point = Point(3, {"scoring.noise_levels": [10]}, 0.5, {"A": 0.25, "all": 0.2}, {"A": {"dice": 0.5}}, 0.1)
    result = trial.TrialResult(1, {"diffusion.loss": "l2"}, point, point, "c", "e", "r", ("encoder",), 3.0)
    trial.artifact.write_json(tmp_path / trial.RESULT, asdict(result))
    assert trial.read_result(tmp_path) == result
    standard = replace(point, values={"dice": 0.5}, statistics={"10": {"mean": [0.1], "deviation": [1 / 3]}})
    trial.artifact.write_json(tmp_path / trial.RESULT, asdict(replace(result, best=standard)))
    assert trial.read_result(tmp_path) == replace(result, best=standard)


def test_a_cut_result_is_an_error_with_a_way_out(tmp_path: Path) -> None:
    (tmp_path / trial.RESULT).write_text('{"number": 1, "par')
    with pytest.raises(SearchError, match="delete it to score this trial again"):
        trial.read_result(tmp_path)


def test_endings(tmp_path: Path) -> None:
    assert trial.read_ending(tmp_path, trial.FAILED) is None
    trial.artifact.write_json(tmp_path / trial.FAILED, {"error": "x"})
    assert trial.read_ending(tmp_path, trial.FAILED) == {"error": "x"}
