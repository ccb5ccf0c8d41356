"""Every point is kept: for this program, for pandas, for MLflow, for Optuna."""

import json
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from pyarrow import parquet
from tiny_training import tiny_config

from cddpm.config import ExperimentConfig
from cddpm.search import scoring_search
from cddpm.search.point import Point

SPACE = {
    "scoring.noise_levels": {"choice": [None, [10], [10, 25]]},
    "scoring.guidance_scale": {"float": [0.0, 2.0]},
    "scoring.residual": {"choice": ["l1", "l2"]},
    "scoring.median_kernel": {"choice": [1, 3]},
    "scoring.erosion_divisor": {"choice": [None, 25]},
}


def config() -> ExperimentConfig:
    return tiny_config(search__scoring__space=SPACE)


def point(number: int, objective: float, **params: Any) -> Point:
    named = {f"scoring.{name}": value for name, value in params.items()}
    datasets = {"A": {"dice": objective, "volumes": 3}}
    values = {"dice": objective, "seconds_per_volume": 2.0 - number}
    return Point(number, named, objective, {"A": 0.25, "all": 0.5}, datasets, 0.125, values)


POINTS = [
    point(0, 0.5),
    point(1, 0.75, noise_levels=[10, 25], guidance_scale=1.5, residual="l2", median_kernel=1, erosion_divisor=25),
    point(2, 0.25, noise_levels=None, guidance_scale=0.0, residual="l1", median_kernel=3, erosion_divisor=None),
]
COLUMNS = {
    "number": [0, 1, 2],
    "objective": [0.5, 0.75, 0.25],
    "seconds": [0.125] * 3,
    "dice": [0.5, 0.75, 0.25],
    "seconds_per_volume": [2.0, 1.0, 0.0],
    "threshold/A": [0.25] * 3,
    "threshold/all": [0.5] * 3,
    "A/dice": [0.5, 0.75, 0.25],
    "A/volumes": [3] * 3,
    "scoring.noise_levels": [None, "[10, 25]", "null"],
    "scoring.guidance_scale": [None, 1.5, 0.0],
    "scoring.residual": [None, "l2", "l1"],
    "scoring.median_kernel": [None, 1, 3],
    "scoring.erosion_divisor": [None, "25", "null"],
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    scoring_search.record_points(tmp_path / "trial", POINTS, config())
    return tmp_path / "trial"


def test_this_program_reads_back_what_it_kept(folder: Path) -> None:
    assert [Point(**row) for row in json.loads((folder / "scoring_trials.json").read_text())] == POINTS


def test_the_parquet_table_is_flat_and_typed(folder: Path) -> None:
    table = parquet.read_table(folder / "scoring_trials.parquet")
    assert table.to_pydict() == COLUMNS
    assert str(table.schema.field("scoring.guidance_scale").type) == "double"
    assert str(table.schema.field("scoring.median_kernel").type) == "int64"


def test_mlflows_table_has_the_same_columns(folder: Path) -> None:
    raw = json.loads((folder / "scoring_table.json").read_text())
    assert {name: [row[place] for row in raw["data"]] for place, name in enumerate(raw["columns"])} == COLUMNS


def test_whole_and_real_numbers_of_one_setting_are_real() -> None:
    rows = [point(n, 0.0, guidance_scale=value).row() for n, value in enumerate([1, 0.5])]
    values = scoring_search.columns(rows)["scoring.guidance_scale"]
    assert values == [1.0, 0.5]
    assert all(isinstance(value, float) for value in values)


def test_optuna_opens_the_study_with_every_point(folder: Path) -> None:
    study = opened(folder)
    assert [trial.value for trial in study.trials] == [0.5, 0.75, 0.25]
    assert study.best_trial.params == {
        "scoring.noise_levels": "[10, 25]",
        "scoring.guidance_scale": 1.5,
        "scoring.residual": '"l2"',
        "scoring.median_kernel": "1",
        "scoring.erosion_divisor": "25",
    }
    assert study.trials[0].params["scoring.guidance_scale"] == 1.0  # the configuration's own
    assert study.best_trial.user_attrs["thresholds"] == {"A": 0.25, "all": 0.5}
    importance = optuna.importance.get_param_importances(study, params=["scoring.guidance_scale", "scoring.residual"])
    assert set(importance) == {"scoring.guidance_scale", "scoring.residual"}


def opened(folder: Path) -> optuna.Study:
    backend = JournalFileBackend(str(folder / "scoring_study.log"))
    return optuna.load_study(storage=JournalStorage(backend), study_name=scoring_search.STUDY)


def test_several_objectives_are_kept_in_their_order(tmp_path: Path) -> None:
    aims = [{"metric": "dice", "goal": "maximize"}, {"metric": "seconds_per_volume", "goal": "minimize"}]
    scoring_search.record_points(tmp_path, POINTS, tiny_config(search__scoring__space=SPACE, search__objectives=aims))
    study = opened(tmp_path)
    assert [trial.values for trial in study.trials] == [[0.5, 2.0], [0.75, 1.0], [0.25, 0.0]]
    assert [trial.number for trial in study.best_trials] == [1, 2]


def test_what_no_condition_lets_be_searched_has_no_param(tmp_path: Path) -> None:
    space = {**SPACE, "scoring.ssim_window": {"choice": [3, 7], "if": {"scoring.residual": "ssim"}}}
    space["scoring.residual"] = {"choice": ["l1", "ssim"]}
    points = [point(0, 0.5), point(1, 0.25, residual="ssim", ssim_window=3)]
    scoring_search.record_points(tmp_path, points, tiny_config(search__scoring__space=space))
    assert ["scoring.ssim_window" in trial.params for trial in opened(tmp_path).trials] == [False, True]


def test_a_search_of_one_point_is_kept_too(tmp_path: Path) -> None:
    scoring_search.record_points(tmp_path, POINTS[:1], tiny_config())
    assert parquet.read_table(tmp_path / "scoring_trials.parquet").num_rows == 1
    assert len((tmp_path / "scoring_study.log").read_text().splitlines()) >= 2
