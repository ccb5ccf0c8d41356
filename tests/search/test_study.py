"""The study survives the death of its driver: trials keep number and parameters, nothing is proposed twice."""

import os
import signal
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState
from tiny_training import tiny_config

from cddpm import artifact
from cddpm.config import AshaConfig, ExperimentConfig
from cddpm.search import space as spaces
from cddpm.search import study as studies
from cddpm.search import trial as trials


def config(**values: Any) -> ExperimentConfig:
    level = {
        "trials": 4,
        "space": {
            "training.learning_rate": {"float": [1e-4, 1e-2], "log": True},
            "reconstruction.noise_levels": {"choice": [[10], [10, 25]]},
        },
        "start": [{"training.learning_rate": 2e-3}],
    }
    return tiny_config(**{f"search__training__{name}": value for name, value in {**level, **values}.items()})


def ask(study: Any) -> tuple[Any, dict[str, Any]]:
    trial = study.ask()
    return trial, spaces.suggest(config().search.training.space, trial, config())


def test_the_configuration_comes_first_then_the_start_points(tmp_path: Path) -> None:
    study = studies.open_study(tmp_path / "study.db", config())
    (first, params), (second, other) = ask(study), ask(study)
    assert (first.number, second.number) == (0, 1)
    assert params == {"training.learning_rate": 1e-3, "reconstruction.noise_levels": [10, 25]}
    assert other["training.learning_rate"] == 2e-3


def test_no_more_start_points_than_trials(tmp_path: Path) -> None:
    study = studies.open_study(tmp_path / "study.db", config(trials=1))
    assert len(study.get_trials()) == 1


@pytest.mark.slow
def test_running_trials_wait_under_their_number_and_parameters(tmp_path: Path) -> None:
    study = studies.open_study(tmp_path / "study.db", config())
    asked = [ask(study) for _ in range(3)]
    asked[0][0].report(0.3, 16)
    studies.tell(study, asked[1][0], 0.5, pytest.fail)
    study = studies.open_study(tmp_path / "study.db", config())
    assert [t.number for t in studies.finished(study)] == [1]
    assert [t.state for t in study.get_trials()] == [TrialState.WAITING, TrialState.COMPLETE, TrialState.WAITING]
    again = [ask(study) for _ in range(3)]
    assert [(t.number, p) for t, p in again[:2]] == [(asked[i][0].number, asked[i][1]) for i in (0, 2)]
    assert again[2][0].number == 3


CHILD = """
import os, signal, sys
sys.path[:0] = sys.argv[2:]
from pathlib import Path
from test_study import ask, config
from cddpm.search import study as studies
study = studies.open_study(Path(sys.argv[1]), config())
for _ in range(3):
    trial, params = ask(study)
    print(trial.number, params["training.learning_rate"], params["reconstruction.noise_levels"], flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.slow
def test_a_killed_driver_loses_no_trial(tmp_path: Path) -> None:
    path, folder = tmp_path / "study.db", Path(__file__).parent
    command = [sys.executable, "-c", CHILD, str(path), str(folder), str(folder.parent)]
    child = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert child.returncode == -signal.SIGKILL, child.stderr
    study = studies.open_study(path, config())
    again = [ask(study) for _ in range(3)]
    lines = [f"{t.number} {p['training.learning_rate']} {p['reconstruction.noise_levels']}" for t, p in again]
    assert lines == child.stdout.splitlines()
    assert ask(study)[0].number == 3


@pytest.mark.slow
def test_a_resumed_study_does_not_propose_the_same_again(tmp_path: Path) -> None:
    rates = []
    for _ in range(3):
        study = studies.open_study(tmp_path / "study.db", config(start=[]))
        trial, params = ask(study)
        studies.tell(study, trial, 0.1, pytest.fail)
        rates.append(params["training.learning_rate"])
    assert len(set(rates)) == 3


@pytest.mark.slow
def test_two_studies_of_one_seed_propose_the_same(tmp_path: Path) -> None:
    drawn = []
    for name in ("a.db", "b.db"):
        study = studies.open_study(tmp_path / name, config())
        drawn.append([ask(study)[1] for _ in range(4)])
    assert drawn[0] == drawn[1]


def ranked(study: Any) -> list[int]:
    """Numbers of all ended trials as TPE ranks them, best first."""
    ended = studies.finished(study)
    best_of = (optuna.samplers._tpe.sampler._split_trials(study, ended, n)[0] for n in range(1, len(ended) + 1))
    numbers, found = [{t.number for t in best} for best in best_of], list[int]()
    for best in numbers:
        found += sorted(best - set(found))
    return found


@pytest.mark.slow
def test_stopped_trials_are_ranked_behind_results_by_their_rung_then_by_their_preview(tmp_path: Path) -> None:
    """With batches of other sizes a rung is met a few images sooner or later: that is no merit."""
    wanted = config(trials=6, start=[])
    search = wanted.search.model_copy(update={"asha": AshaConfig(grace_images=100)})
    study = studies.open_study(tmp_path / "study.db", wanted)
    asked = [ask(study)[0] for _ in range(6)]
    studies.tell(study, asked[0], 0.2, pytest.fail)
    for number, preview, images in ((1, 0.5, 128), (2, 0.7, 102), (3, 0.9, 100), (4, 0.3, 304), (5, 0.4, 300)):
        stop = trials.Stop(number, {}, preview, float(images))
        studies.report(asked[number], search, 60, 0.99)  # long before
        studies.tell_stopped(study, asked[number], stop, search, pytest.fail)
    assert ranked(study) == [0, 5, 4, 3, 2, 1]
    assert study.best_trial.number == 0
    warnings: list[str] = []
    studies.tell_stopped(study, asked[1], trials.Stop(1, {}, 0.6, 900.0), search, warnings.append)
    assert len(warnings) == 1
    assert warnings[0].startswith("trial 1: ")


@pytest.mark.slow
def test_a_trial_whose_stop_was_not_told_stays_stopped(tmp_path: Path) -> None:
    study = studies.open_study(tmp_path / "study.db", config())
    for _ in range(2):
        ask(study)
    stop = trials.Stop(1, {"training.learning_rate": 2e-3}, 0.25, 64.0)
    artifact.write_json(trials.folder_of(tmp_path, 1) / trials.STOPPED, asdict(stop))
    study = studies.open_study(tmp_path / "study.db", config())
    assert [t.state for t in study.get_trials()] == [TrialState.WAITING, TrialState.PRUNED]
    assert study.trials[1].intermediate_values == {64: 0.25}
    assert [ask(study)[0].number for _ in range(2)] == [0, 2]


@pytest.mark.slow
def test_telling(tmp_path: Path) -> None:
    study = studies.open_study(tmp_path / "study.db", config())
    (good, _), (bad, _) = ask(study), ask(study)
    warnings: list[str] = []
    studies.tell(study, good, 0.5, warnings.append)
    studies.tell(study, bad, None, warnings.append)
    assert [t.state for t in studies.finished(study)] == [TrialState.COMPLETE, TrialState.FAIL]
    assert warnings == []
    studies.tell(study, good, 0.9, warnings.append)  # by a driver that does not know
    assert len(warnings) == 1
    assert warnings[0].startswith("trial 0: ")
    assert study.best_value == 0.5
