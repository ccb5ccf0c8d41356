"""From a space in a YAML file to Optuna: distributions, points to start from, and values back as settings."""

import json
from collections.abc import Mapping
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from cddpm.config import Choice, ExperimentConfig, Float, Integer, LevelConfig, Space, to_dict

SEPARATOR = "."


def distributions(space: Space) -> dict[str, BaseDistribution]:
    """Optuna's distribution of each parameter, by dotted path."""
    return {path: _distribution(parameter) for path, parameter in sorted(space.items())}


def _distribution(parameter: Float | Integer | Choice) -> BaseDistribution:
    if isinstance(parameter, Float):
        return FloatDistribution(*parameter.float, log=parameter.log)
    if isinstance(parameter, Integer):
        return IntDistribution(*parameter.int, step=parameter.step, log=parameter.log)
    return CategoricalDistribution([encode(value) for value in parameter.choice])


def encode(value: Any) -> str:
    """A choice as Optuna stores it: JSON text, so that lists (of noise levels, say), numbers and words all can be chosen."""
    return json.dumps(list(value) if isinstance(value, tuple) else value)


def values(space: Space, params: Mapping[str, Any]) -> dict[str, Any]:
    """Settings by dotted path from Optuna's ``params``."""
    return {path: json.loads(v) if isinstance(space[path], Choice) else v for path, v in params.items()}


def point(space: Space, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Optuna's params of ``settings`` (dotted path -> value); what lies outside of the space is left to the sampler."""
    known = distributions(space)
    inside = {}
    for path, value in settings.items():
        parameter = space[path]
        param = _chosen(parameter, value) if isinstance(parameter, Choice) else value
        if _contains(known[path], param):
            inside[path] = param
    return inside


def _chosen(parameter: Choice, value: Any) -> str:
    """The choice that equals ``value``: a file may write 0 where the configuration has 0.0."""
    plain = json.loads(encode(value))
    return next((c for c in map(encode, parameter.choice) if json.loads(c) == plain), encode(value))


def _contains(distribution: BaseDistribution, param: Any) -> bool:
    try:
        return bool(distribution._contains(distribution.to_internal_repr(param)))
    except (ValueError, TypeError):
        return False


def defaults(space: Space, config: ExperimentConfig) -> dict[str, Any]:
    """The configuration's own values of all searched settings."""
    return {path: _at(to_dict(config), path) for path in space}


def _at(tree: Mapping[str, Any], path: str) -> Any:
    value: Any = tree
    for part in path.split(SEPARATOR):
        value = value[part]
    return value


def sampler(level: LevelConfig, seed: int) -> optuna.samplers.BaseSampler:
    """The level's sampler, seeded."""
    if level.sampler == "tpe":
        return optuna.samplers.TPESampler(seed=seed)
    if level.sampler == "random":
        return optuna.samplers.RandomSampler(seed=seed)
    raise ValueError(f"sampler: {level.sampler!r}; allowed are tpe and random")


def start_points(level: LevelConfig, config: ExperimentConfig) -> list[dict[str, Any]]:
    """Params tried first: the configuration's own values, then those the level names."""
    return [point(level.space, settings) for settings in (defaults(level.space, config), *level.start)]


def suggest(space: Space, trial: optuna.Trial) -> dict[str, Any]:
    """Ask ``trial`` for every parameter; returns settings by dotted path."""
    known = distributions(space)
    return values(space, {path: trial._suggest(path, distribution) for path, distribution in known.items()})
