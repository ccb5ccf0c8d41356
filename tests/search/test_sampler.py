"""Samplers: each by its name, decided by seed, number and history alone, grids without repeats."""

import itertools
import pickle
from pathlib import Path
from typing import Any

import optuna
import pytest
from pydantic import TypeAdapter
from tiny_training import tiny_config

from cddpm.config import LevelConfig, Space
from cddpm.search import space as spaces
from cddpm.search.sampler import Sampler, first_points, grid

CONDITIONAL = {
    "diffusion.noise.kind": {"choice": ["gaussian", "simplex"]},
    "diffusion.noise.octaves": {"int": [2, 6], "step": 2, "if": {"diffusion.noise.kind": "simplex"}},
    "diffusion.noise.frequency": {"choice": [32, 64], "if": {"diffusion.noise.octaves": {"above": 2}}},
    "training.learning_rate": {"float": [1e-4, 1e-2], "log": True},
    "training.weight_decay": {"float": [0.0, 0.1]},
}
FINITE = {path: parameter for path, parameter in CONDITIONAL.items() if "float" not in parameter}
CONFIG = tiny_config()
NAMES = ["tpe", "random", "nsga-ii", "cma-es"]


def level(space: dict[str, Any] = CONDITIONAL, **values: Any) -> LevelConfig:
    return LevelConfig(space=TypeAdapter(Space).validate_python(space), **values)


def value(settings: dict[str, Any]) -> float:
    """Higher for simplex noise and weight decay near 0.03."""
    return (settings["diffusion.noise.kind"] == "simplex") - abs(settings["training.weight_decay"] - 0.03)


def walk(
    wanted: LevelConfig, count: int, seed: int, at_once: int = 1, path: Path | None = None
) -> list[dict[str, Any]]:
    """``count`` proposals with ``at_once`` running abreast; with ``path`` the driver is a new one for each."""

    def study() -> optuna.Study:
        storage = None if path is None else f"sqlite:///{path}"
        return optuna.create_study(
            storage=storage, study_name="s", load_if_exists=True, direction="maximize", sampler=Sampler(wanted, seed)
        )

    found, running, current = [], [], study()
    for _ in range(count):
        current = study() if path is not None else current
        trial = current.ask()
        found.append(spaces.suggest(wanted.space, trial, CONFIG))
        running.append((trial, value(found[-1])))
        if len(running) == at_once:
            done, score = running.pop(0)
            current.tell(done.number, score)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_proposals_lie_in_the_space_and_only_where_conditions_hold(name: str) -> None:
    found = walk(level(sampler=name), 40, 0)
    for settings in found:
        simplex = settings["diffusion.noise.kind"] == "simplex"
        assert ("diffusion.noise.octaves" in settings) == simplex
        octaves = settings.get("diffusion.noise.octaves", 6)  # the configuration's own, where it is not searched
        assert ("diffusion.noise.frequency" in settings) == (octaves > 2)
        tiny_config(**{path.replace(".", "__"): v for path, v in settings.items()})
    assert len({settings["diffusion.noise.kind"] for settings in found}) == 2


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("at_once", [1, 3])
def test_same_seed_and_concurrency_same_proposals(name: str, at_once: int) -> None:
    wanted = level(sampler=name)
    assert walk(wanted, 25, 1, at_once) == walk(wanted, 25, 1, at_once)
    assert walk(wanted, 5, 1, at_once) != walk(wanted, 5, 2, at_once)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tpe", *(pytest.param(name, marks=pytest.mark.nightly) for name in NAMES[1:])])
def test_a_new_driver_for_each_trial_proposes_what_one_driver_would(name: str, tmp_path: Path) -> None:
    wanted = level(sampler=name)
    assert walk(wanted, 14, 1, path=tmp_path / "study.db") == walk(wanted, 14, 1)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tpe", "cma-es", "nsga-ii"])
def test_what_was_learnt_is_used(name: str) -> None:
    """The mean of later proposals is better than that of random ones."""
    later = [value(settings) for settings in walk(level(sampler=name), 80, 0)[60:]]
    chance = [value(settings) for settings in walk(level(sampler="random"), 80, 0)[60:]]
    assert sum(later) > sum(chance) + 2


def test_a_sampler_survives_a_snapshot() -> None:
    wanted = level()
    study = optuna.create_study(sampler=Sampler(wanted, 3))
    again = pickle.loads(pickle.dumps(study.sampler))
    drawn = [
        spaces.suggest(wanted.space, optuna.create_study(sampler=sampler).ask(), CONFIG)
        for sampler in (study.sampler, again)
    ]
    assert drawn[0] == drawn[1]


def test_a_grid_holds_every_point_once() -> None:
    points = [spaces.values(level(FINITE).space, params) for params in grid(level(FINITE).space, CONFIG)]
    frequencies = [{"diffusion.noise.frequency": f} for f in (32, 64)]
    simplex = [{"diffusion.noise.kind": "simplex", "diffusion.noise.octaves": 2}] + [
        {"diffusion.noise.kind": "simplex", "diffusion.noise.octaves": octaves, **frequency}
        for octaves, frequency in itertools.product((4, 6), frequencies)
    ]
    # without simplex noise the configuration's own six octaves let the frequency be searched
    gaussian = [{"diffusion.noise.kind": "gaussian", **frequency} for frequency in frequencies]
    key = repr
    assert sorted(points, key=lambda p: key(sorted(p.items()))) == sorted(
        [*simplex, *gaussian], key=lambda p: key(sorted(p.items()))
    )


def test_a_grid_begins_with_the_configuration_and_the_points_that_are_named() -> None:
    wanted = level(FINITE, sampler="grid", start=({"diffusion.noise.kind": "simplex", "diffusion.noise.octaves": 2},))
    points = [spaces.values(wanted.space, params) for params in first_points(wanted, CONFIG, 0)]
    assert points[0] == {"diffusion.noise.kind": "gaussian", "diffusion.noise.frequency": 64}
    assert points[1] == {"diffusion.noise.kind": "simplex", "diffusion.noise.octaves": 2}
    assert len(points) == 7
    shuffled = [spaces.values(wanted.space, params) for params in first_points(wanted, CONFIG, 1)]
    assert shuffled[:2] == points[:2]
    assert shuffled != points


SCORING = {
    "scoring.residual": {"choice": ["l1", "l2", "positive"]},
    "scoring.guidance_scale": {"int": [0, 2]},
    "scoring.median_kernel": {"choice": [1, 3, 5]},
    "scoring.minimum_component_voxels": {"int": [0, 30], "step": 10},
}


def changes(points: list[dict[str, Any]], *paths: str) -> int:
    """How often something else than before is needed of these settings."""
    asked = [tuple(point[path] for path in paths) for point in points]
    return sum(one != other for one, other in itertools.pairwise(asked))


@pytest.mark.parametrize("seed", range(5))
def test_points_of_a_whole_grid_that_share_residuals_or_maps_are_neighbours(seed: int) -> None:
    wanted = level(SCORING, sampler="grid", trials=1000)
    found = [spaces.values(wanted.space, params) for params in first_points(wanted, CONFIG, seed)][1:]
    assert len(found) == 9 * 3 * 4 - 1
    above = ("scoring.residual", "scoring.guidance_scale")
    assert changes(found, *above) <= 9  # the configuration's own point comes first, away from the others of its kind
    assert changes(found, *above, "scoring.median_kernel") <= 27


def test_the_first_part_of_a_grid_that_is_cut_is_spread() -> None:
    wanted = level(SCORING, sampler="grid", trials=40)
    found = [spaces.values(wanted.space, params) for params in first_points(wanted, CONFIG, 0)][:40]
    assert changes(found, "scoring.residual", "scoring.guidance_scale") > 20


def test_a_single_range_can_be_a_grid() -> None:
    space = {"training.batch_size": {"int": [4, 12], "step": 4}}
    assert sorted(p["training.batch_size"] for p in grid(level(space).space, CONFIG)) == [4, 8, 12]
