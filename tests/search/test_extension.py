"""Extending a finished sweep: recorded once, beside an unchanged configuration."""

import json
from pathlib import Path

import pytest
from tiny_training import tiny_config

from cddpm.config import ExperimentConfig
from cddpm.errors import ConfigError, SearchError
from cddpm.search import budget
from cddpm.search import study as studies


def config(**values: object) -> ExperimentConfig:
    space = {"training.learning_rate": {"float": [1e-4, 1e-2], "log": True}}
    return tiny_config(**{"search__training__trials": 3, "search__training__space": space, **values})


def trials(folder: Path) -> int:
    return budget.extended(folder, config()).search.training.trials


def test_trials_add_up_and_a_resume_finds_them(tmp_path: Path) -> None:
    assert trials(tmp_path) == 3
    budget.extend(tmp_path, config(), 100, ended=3)
    assert trials(tmp_path) == 103
    assert budget.extended(tmp_path, config(), 7).search.training.trials == 110  # only looked at
    budget.extend(tmp_path, config(), 5, ended=103)
    assert trials(tmp_path) == 108
    assert json.loads((tmp_path / budget.EXTENSIONS).read_text()) == [100, 5]


def test_an_unfinished_sweep_is_resumed_first(tmp_path: Path) -> None:
    with pytest.raises(
        SearchError, match="1 of the 3 trials of sweep 'tiny' are still missing; finish them with --resume"
    ):
        budget.extend(tmp_path, config(), 100, ended=2)
    budget.extend(tmp_path, config(), 100, ended=3)
    with pytest.raises(SearchError, match="90 of the 103"):  # a second call of the same command adds nothing
        budget.extend(tmp_path, config(), 100, ended=13)
    assert trials(tmp_path) == 103


@pytest.mark.parametrize("more", [-1, 0])
def test_nothing_is_no_extension(tmp_path: Path, more: int) -> None:
    with pytest.raises(SearchError, match="allowed is 1 or more"):
        budget.extend(tmp_path, config(), more, ended=3)


def test_a_space_that_is_used_up_cannot_be_extended(tmp_path: Path) -> None:
    grid = {
        "search__training__space": {"diffusion.loss": {"choice": ["l1", "l2"]}},
        "search__training__sampler": "grid",
        "search__training__trials": 2,
    }
    with pytest.raises(ConfigError, match="but the grid has 2 points"):
        budget.extend(tmp_path, config(**grid), 1, ended=2)
    assert not (tmp_path / budget.EXTENSIONS).exists()


def test_a_damaged_record_is_named(tmp_path: Path) -> None:
    (tmp_path / budget.EXTENSIONS).write_text("[1,")
    with pytest.raises(SearchError, match=r"extensions\.json: not a record"):
        trials(tmp_path)


@pytest.mark.slow
def test_a_study_counts_what_has_ended(tmp_path: Path) -> None:
    path = tmp_path / "study.db"
    assert studies.ended(path) == 0
    study = studies.open_study(path, config())
    first, _ = study.ask(), study.ask()
    studies.tell(study, first, None, pytest.fail)
    assert studies.ended(path) == 1


@pytest.mark.slow
def test_an_extended_grid_goes_on_where_it_ended(tmp_path: Path) -> None:
    space = {"training.batch_size": {"choice": [4, 8, 16]}, "diffusion.loss": {"choice": ["l1", "l2"]}}
    level = {"search__training__space": space, "search__training__sampler": "grid"}
    path, seen = tmp_path / "study.db", []
    for total in (2, 6):
        study = studies.open_study(path, config(**level, search__training__trials=total))
        while len(seen) < total:
            trial = study.ask()
            seen.append(tuple(sorted(trial._cached_frozen_trial.system_attrs["fixed_params"].items())))
            studies.tell(study, trial, 0.5, pytest.fail)
    assert len(set(seen)) == 6
    with pytest.raises(ConfigError, match="the grid has 6 points"):
        config(**level, search__training__trials=7)
