"""From a space in a YAML file to Optuna: distributions, points to start from, and values back as settings."""

import json
from collections.abc import Mapping
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import create_trial

from cddpm.config import Choice, ExperimentConfig, Float, Integer, Space, active, ordered, same, value_at


def distributions(space: Space) -> dict[str, BaseDistribution]:
    """Optuna's distribution of each parameter, by dotted path."""
    return {path: _distribution(space[path]) for path in ordered(space)}


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
    return {path: _decoded(space[path], param) for path, param in params.items()}


def _decoded(parameter: Float | Integer | Choice, param: Any) -> Any:
    return json.loads(param) if isinstance(parameter, Choice) else param


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
    return next((c for c in map(encode, parameter.choice) if same(json.loads(c), plain)), encode(value))


def _contains(distribution: BaseDistribution, param: Any) -> bool:
    try:
        create_trial(params={"one": param}, distributions={"one": distribution}, value=0.0)  # it checks
        return True
    except (ValueError, TypeError):
        return False


def defaults(space: Space, config: ExperimentConfig) -> dict[str, Any]:
    """The configuration's own values of all searched settings."""
    return {path: _plain(value_at(config, path)) for path in space}


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def suggest(space: Space, trial: optuna.Trial, config: ExperimentConfig) -> dict[str, Any]:
    """Ask ``trial`` for every parameter whose condition holds; returns settings by dotted path.

    What a condition asks for and the trial does not search has the value of ``config``.
    """
    found: dict[str, Any] = {}
    for path in active(space, lambda asked: value_at(config, asked), found):
        found[path] = _decoded(space[path], _suggested(space[path], trial, path))
    return found


def _suggested(parameter: Float | Integer | Choice, trial: optuna.Trial, path: str) -> Any:
    if isinstance(parameter, Float):
        return trial.suggest_float(path, *parameter.float, log=parameter.log)
    if isinstance(parameter, Integer):
        return trial.suggest_int(path, *parameter.int, step=parameter.step, log=parameter.log)
    return trial.suggest_categorical(path, [encode(value) for value in parameter.choice])


def is_complete(space: Space, params: Mapping[str, Any], config: ExperimentConfig) -> bool:
    """Whether ``params`` decide every parameter of ``space`` that is searched at this point."""
    given = values(space, params)
    return set(active(space, lambda asked: value_at(config, asked), given)) <= given.keys()
