"""Spaces: every value survives the way to Optuna and back, starting points keep what they can."""

from typing import Any

import optuna
import pytest
from pydantic import TypeAdapter
from tiny_training import tiny_config

from cddpm.config import LevelConfig, Space
from cddpm.search import space as spaces
from cddpm.search.sampler import Sampler, first_points

SPACE: Space = TypeAdapter(Space).validate_python(
    {
        "training.learning_rate": {"float": [1e-4, 1e-2], "log": True},
        "training.batch_size": {"int": [4, 16], "step": 4},
        "scoring.noise_levels": {"choice": [None, [10], [10, 25]]},
        "diffusion.loss": {"choice": ["l1", "l2"]},
        "diffusion.condition_dropout": {"choice": [0, 0.3]},
        "training.augmentation.enabled": {"choice": [True, False]},
    }
)


@pytest.mark.parametrize("value", [None, True, 3, 0.1, 1e-7, "l1", [10, 25], [[1], [2, 3]], [], "null", "Ümlaut"])
def test_choices_come_back(value: Any) -> None:
    space: Space = TypeAdapter(Space).validate_python({"a.b": {"choice": [value, "other"]}})
    params = spaces.point(space, {"a.b": value})
    assert spaces.values(space, params) == {"a.b": value}
    assert isinstance(params["a.b"], str)


def test_tuples_are_lists() -> None:
    assert spaces.encode((1, 2)) == spaces.encode([1, 2]) == "[1, 2]"


@pytest.mark.parametrize("seed", range(5))
def test_suggestions_lie_in_the_space_and_make_a_configuration(seed: int) -> None:
    study = optuna.create_study(sampler=Sampler(LevelConfig(sampler="random"), seed))
    settings = spaces.suggest(SPACE, study.ask(), tiny_config())
    assert set(settings) == set(SPACE)
    assert 1e-4 <= settings["training.learning_rate"] <= 1e-2
    assert settings["training.batch_size"] in (4, 8, 12, 16)
    for path in ("scoring.noise_levels", "diffusion.loss", "diffusion.condition_dropout"):
        assert settings[path] in SPACE[path].choice
    config = tiny_config(**{path.replace(".", "__"): value for path, value in settings.items()})
    assert config.training.batch_size == settings["training.batch_size"]


def test_the_order_in_the_file_does_not_matter() -> None:
    drawn = []
    for space in (SPACE, dict(reversed(SPACE.items()))):
        study = optuna.create_study(sampler=Sampler(LevelConfig(), 1))
        drawn.append([spaces.suggest(space, study.ask(), tiny_config()) for _ in range(3)])
    assert drawn[0] == drawn[1]


@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_samplers_are_seeded(sampler: str) -> None:
    def draw(seed: int) -> dict[str, Any]:
        return spaces.suggest(
            SPACE,
            optuna.create_study(sampler=Sampler(LevelConfig(sampler=sampler), seed)).ask(),
            tiny_config(),
        )

    assert draw(1) == draw(1)
    assert draw(1) != draw(2)


def test_the_configurations_own_values_start() -> None:
    level = LevelConfig(space=SPACE, start=({"diffusion.loss": "l2"},))
    first, second = first_points(level, tiny_config(diffusion__condition_dropout=0.0), 0)
    assert spaces.values(SPACE, first) == {
        "training.learning_rate": 1e-3,
        "training.batch_size": 4,
        "scoring.noise_levels": None,
        "diffusion.loss": "l1",
        "diffusion.condition_dropout": 0,  # 0.0 in the configuration
        "training.augmentation.enabled": True,
    }
    assert spaces.values(SPACE, second) == {"diffusion.loss": "l2"}


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("training.learning_rate", 1.0),
        ("training.learning_rate", 0.0),
        ("training.learning_rate", "fast"),
        ("training.batch_size", 6),
        ("training.batch_size", 20),
        ("scoring.noise_levels", [25]),
        ("diffusion.condition_dropout", 0.2),
    ],
)
def test_values_outside_are_left_to_the_sampler(path: str, value: Any) -> None:
    point = spaces.point(SPACE, {path: value, "diffusion.loss": "l2"})
    assert spaces.values(SPACE, point) == {"diffusion.loss": "l2"}
    study = optuna.create_study(sampler=Sampler(LevelConfig(), 0))
    study.enqueue_trial(point)
    settings = spaces.suggest(SPACE, study.ask(), tiny_config())
    assert settings["diffusion.loss"] == "l2"
    assert set(settings) == set(SPACE)


def test_asking_twice_gives_the_same() -> None:
    trial = optuna.create_study(sampler=Sampler(LevelConfig(), 0)).ask()
    assert spaces.suggest(SPACE, trial, tiny_config()) == spaces.suggest(SPACE, trial, tiny_config())
