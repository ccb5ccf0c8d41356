"""Earlier sweeps: what fits is learnt from, what does not is named, and a resume knows no more than the first start."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from optuna.trial import TrialState
from tiny_training import tiny_config

from cddpm import artifact
from cddpm.campaign import IDENTITY
from cddpm.config import ExperimentConfig, flat, to_dict, with_values
from cddpm.errors import SearchError
from cddpm.search import record, warm_start
from cddpm.search import study as studies
from cddpm.search import trial as trials
from cddpm.search.point import Point
from cddpm.search.trial import TrialResult

RATE = "training.learning_rate"
SPACE = {
    RATE: {"float": [1e-4, 1e-2], "log": True},
    "diffusion.noise.kind": {"choice": ["gaussian", "simplex"]},
    "diffusion.noise.octaves": {"int": [2, 8], "if": {"diffusion.noise.kind": "simplex"}},
}
POINTS = {"scoring.residual": {"choice": ["l1", "l2"]}, "scoring.minimum_component_voxels": {"int": [0, 8]}}
STORE = "0123456789abcdef"


def config(folder: Path, **values: Any) -> ExperimentConfig:
    return tiny_config(
        **{
            "name": "new",
            "output_dir": str(folder),
            "search__training__space": SPACE,
            "search__training__trials": 4,
            "search__scoring__space": POINTS,
            "search__warm_start": ["old"],
            **values,
        }
    )


def sweep(folder: Path, settings: list[dict[str, Any]], store: str = STORE, **values: Any) -> Path:
    """A finished sweep 'old' with a trial of each of ``settings``; trial n reaches 0.1 n."""
    old = tiny_config(name="old", output_dir=str(folder), **values)
    path = folder / "sweeps" / "old"
    artifact.write_json(path / IDENTITY, flat(to_dict(old)))
    record.enter(path, old, store)
    for number, params in enumerate(settings):
        scoring = {"scoring.residual": "l2", "scoring.minimum_component_voxels": 9 - number}
        point = Point(0, scoring, 0.1 * number, {}, {}, 0.1)
        result = TrialResult(number, params, point, point, "c", None, "r", (), 1.0)
        place = trials.folder_of(path, number)
        artifact.write_json(place / trials.CONFIG, to_dict(with_values(old, params)))
        artifact.write_json(place / trials.RESULT, asdict(result))
    return path


def found(folder: Path, **values: Any) -> warm_start.Earlier:
    return warm_start.gathered(folder / "sweeps", config(folder, **values), STORE)


def test_trials_inside_the_space_are_taken_with_their_values(tmp_path: Path) -> None:
    sweep(tmp_path, [{}, {RATE: 5e-3, "diffusion.noise.kind": "simplex", "diffusion.noise.octaves": 4}])
    best, own = sorted(found(tmp_path).trials, key=lambda t: -t.value)
    assert (own.name, own.value) == ("old/0000", 0.0)
    assert own.params == {RATE: 1e-3, "diffusion.noise.kind": '"gaussian"'}  # its octaves had no say
    assert best.params == {RATE: 5e-3, "diffusion.noise.kind": '"simplex"', "diffusion.noise.octaves": 4}
    assert found(tmp_path).said == []


def test_trials_outside_are_named(tmp_path: Path) -> None:
    sweep(tmp_path, [{RATE: 0.5}, {"diffusion.noise.kind": "simplex", "diffusion.noise.octaves": 1}, {RATE: 2e-3}])
    earlier = found(tmp_path)
    assert [t.name for t in earlier.trials] == ["old/0002"]
    assert sorted(earlier.said) == [
        "trial old/0000 is left out: training.learning_rate 0.5 is not in this space",
        "trial old/0001 is left out: diffusion.noise.octaves 1 is not in this space",
    ]


def test_other_settings_are_told_but_taken(tmp_path: Path) -> None:
    sweep(tmp_path, [{"training.images": 96}])
    earlier = found(tmp_path)
    assert len(earlier.trials) == 1
    assert earlier.said == ["trial old/0000 had other settings: training.images 96, here 48"]


@pytest.mark.parametrize(
    ("store", "values", "words"),
    [
        ("other", {}, f"data (slice store) other, here {STORE}"),
        (STORE, {"search__objective": "auprc"}, "search.objective auprc, here dice"),
        (STORE, {"search__datasets": ["B"]}, "data sets of the objective ['B'], here ['A']"),
        (STORE, {"data__fold": 1}, "data.fold 1, here 0"),
    ],
)
def test_another_task_is_left_out_as_a_whole(tmp_path: Path, store: str, values: dict[str, Any], words: str) -> None:
    sweep(tmp_path, [{}], store, **values)
    earlier = found(tmp_path)
    assert (earlier.trials, earlier.scoring) == ([], [])
    assert earlier.said == [f"sweep 'old' is left out: {words}"]


def test_a_sweep_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    sweep(tmp_path, [{}])
    with pytest.raises(SearchError, match="there is no such sweep; did you mean 'old'"):
        found(tmp_path, search__warm_start=["olt"])


def test_a_damaged_configuration_hides_no_other_trial(tmp_path: Path) -> None:
    path = sweep(tmp_path, [{}, {}])
    (trials.folder_of(path, 0) / trials.CONFIG).write_text('{"name"')
    earlier = found(tmp_path)
    assert [t.name for t in earlier.trials] == ["old/0001"]
    assert earlier.said[0].startswith("trial old/0000 is left out: its configuration cannot be read")


def test_the_best_scoring_settings_that_fit_are_tried_first(tmp_path: Path) -> None:
    sweep(tmp_path, [{}] * 8)
    earlier = found(tmp_path)
    sizes = [point["scoring.minimum_component_voxels"] for point in earlier.scoring]
    assert sizes == [2, 3, 4, 5, 6]  # of trials 7, 6, 5, 4 and 3
    named = config(tmp_path, search__scoring__start=[{"scoring.residual": "l1"}])
    started = warm_start.with_scoring_points(named, earlier.scoring)
    assert started.search.scoring.start == ({"scoring.residual": "l1"}, *earlier.scoring)
    assert warm_start.with_scoring_points(named, []) is named


def test_a_resumed_sweep_knows_no_more(tmp_path: Path) -> None:
    sweep(tmp_path, [{}])
    folder = tmp_path / "sweeps" / "new"
    first = warm_start.earlier(folder, config(tmp_path), STORE)
    sweep(tmp_path, [{}, {}])
    assert warm_start.earlier(folder, config(tmp_path), STORE) == first
    assert len(first.trials) == 1
    (folder / warm_start.FILE).write_text("{}")
    with pytest.raises(SearchError, match="not a record of a warm start"):
        warm_start.earlier(folder, config(tmp_path), STORE)


def test_without_names_there_is_nothing(tmp_path: Path) -> None:
    nothing = warm_start.earlier(tmp_path / "sweeps" / "new", config(tmp_path, search__warm_start=[]), STORE)
    assert nothing == warm_start.Earlier([], [], [])


@pytest.mark.slow
def test_the_study_learns_and_counts_only_its_own(tmp_path: Path) -> None:
    sweep(tmp_path, [{RATE: 10 ** (-2 - 0.1 * n)} for n in range(12)])
    earlier, wanted = found(tmp_path), config(tmp_path)
    study = studies.open_study(tmp_path / "study.db", wanted, earlier.trials)
    states = [t.state for t in study.trials]
    assert states == [TrialState.WAITING] + [TrialState.COMPLETE] * 12  # trial 0 is the configuration as it is
    assert study.best_value == pytest.approx(1.1)
    assert studies.finished(study) == []
    assert study.ask().number == 0
    study = studies.open_study(tmp_path / "study.db", wanted, earlier.trials)
    assert len(study.trials) == 13
    assert len(studies.own(study)) == 1
