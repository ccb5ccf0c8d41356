"""A trial: its configuration, its search over reconstructions, its result that appears once. Training is replaced."""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from tiny_training import tiny_config

from cddpm.errors import SearchError
from cddpm.reconstruct.reconstruction import Reconstruction
from cddpm.search import trial
from cddpm.search.point import Point
from cddpm.training import stages, worker, worker_group

pytestmark = pytest.mark.slow

BASE = tiny_config(search__scoring__trials=5, search__scoring__space={"scoring.guidance_scale": {"float": [0.0, 2.0]}})


PARAMS = {"training.learning_rate": 5e-4}


class Board:
    """Nobody looks at it."""

    def left(self, box: str, after: int) -> list[Any]:
        return []

    def warnings(self, name: str) -> Any:
        return nullcontext()

    def post(self, *told: Any) -> None:
        pass


@pytest.fixture
def run(tmp_path: Path, store_path: Path) -> Callable[..., list[dict[str, float]]]:
    """Runs trial 7 of the sweep in ``tmp_path / "sweep"``; gives what it reported."""
    place = stages.Place(tmp_path, store_path)

    def once(params: dict[str, Any] = PARAMS) -> list[dict[str, float]]:
        reports: list[dict[str, float]] = []
        proposal = {"number": 7, "params": params}
        trial.run(proposal, tmp_path / "sweep", BASE, place, 0.0, Board(), reports.append)
        return reports

    return once


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch, caches: dict[bool, Reconstruction]) -> list[worker.Assignment]:
    """Stands for the worker group; notes what it was given."""
    given: list[worker.Assignment] = []

    def run(assignment: worker.Assignment, folder: Path, gpus: float, report: Any) -> Any:
        (folder / worker.fresh_name(folder, "attempt")).mkdir(parents=True)
        given.append(assignment)
        return worker.Outcome(stages.Made(Path("/c/check"), None, ("checkpoint",)), caches[True].path)

    monkeypatch.setattr(worker_group, "run", run)
    return given


def test_an_impossible_combination_is_told_and_ends_the_trial_alone(run: Any, tmp_path: Path) -> None:
    reports = run({"reconstruction.noise_levels": [99]})
    fault = trial.read_ending(tmp_path / "sweep/trials/0007", trial.FAILED)
    assert fault["error"].startswith("trial 7: reconstruction.noise_levels: 99")
    assert reports == [{"objective": 0.0, "images": 0.0, "flagged": 1.0, "final": 1.0}]


def test_a_trial_trains_searches_and_keeps_its_result(
    run: Any, trained: list[worker.Assignment], tmp_path: Path
) -> None:
    reports, folder = run(), tmp_path / "sweep/trials/0007"
    assert trained[0].config.training.learning_rate == 5e-4
    assert trained[0].config.model_copy(update={"training": BASE.training}) == BASE
    assert (trained[0].trial, trained[0].stop_file) == (7, tmp_path / "sweep/stop")
    result = trial.read_result(folder)
    assert result.objective == result.best.objective >= result.default.objective
    assert (result.default.number, result.default.params) == (0, {})
    assert (result.checkpoint, result.encoder, result.made) == ("check", None, ("checkpoint",))
    assert len(trial.read_points(folder)) == 5
    assert reports == [{"objective": result.objective, "images": 49.0, "flagged": 0.0, "final": 1.0}]


def test_a_trial_with_a_result_never_runs_again(run: Any, trained: list[worker.Assignment]) -> None:
    assert run() == run()
    assert len(trained) == 1


def test_a_stop_leaves_no_result_and_the_next_start_finishes(
    run: Any, trained: list[worker.Assignment], tmp_path: Path
) -> None:
    sweep = tmp_path / "sweep"
    sweep.mkdir()
    (sweep / "stop").touch()
    assert run() == [{"objective": 0.0, "images": 0.0, "flagged": 1.0, "final": 1.0}]
    assert trial.read_result(sweep / "trials/0007") is None
    (sweep / "stop").unlink()
    assert run()[0]["images"] == 49.0
    assert len(list((sweep / "trials/0007/ray").iterdir())) == 2  # every attempt has a new name


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
