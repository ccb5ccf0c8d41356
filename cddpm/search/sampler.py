"""Who proposes the next point: TPE, CMA-ES, random, grid or NSGA-II, by name, each decided by seed, trial number and history.

A sampler is made anew for every trial, with a seed of its own made of the level's seed and the trial's number. What it
proposes depends on what the study knows, never on how often the driver was stopped and started again.

What has too little to learn from does not draw by chance, but points that are spread over the space (``spread``): TPE until
``STARTUP`` trials have ended, NSGA-II in its first generation, and CMA-ES for what it does not model.
"""

import itertools
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, CmaEsSampler, NSGAIISampler, RandomSampler, TPESampler
from optuna.trial import FrozenTrial, TrialState

from cddpm.config import Choice, ExperimentConfig, Float, LevelConfig, Space, active, ordered, value_at
from cddpm.search import space as spaces
from cddpm.search import spread
from cddpm.seeds import seed_of

POPULATION = 20
"""Points of one generation of NSGA-II."""
STARTUP = 10
"""Ended trials from which TPE learns, as Optuna has it: up to here its model of what is good would be one single point."""


@dataclass(eq=False)
class Sampler(BaseSampler):
    """The sampler of a level. Plain data: Ray's snapshots pickle it."""

    level: LevelConfig
    seed: int
    _number: int = field(default=-1, init=False)
    _inner: BaseSampler = field(default_factory=RandomSampler, init=False)

    def _of(self, trial: FrozenTrial) -> BaseSampler:
        if trial.number != self._number:
            self._number = trial.number
            self._inner = made(self.level, seed_of(self.seed, "trial", trial.number) % 2**32)
        return self._inner

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """As Optuna asks."""
        return dict(self._of(trial).infer_relative_search_space(study, trial))

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """As Optuna asks."""
        return dict(self._of(trial).sample_relative(study, trial, search_space))

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """As Optuna asks."""
        inner = self._of(trial)
        if not _begins(inner, study, trial):
            return inner.sample_independent(study, trial, param_name, param_distribution)
        before = [t for t in study.get_trials(deepcopy=False) if t.number < trial.number]
        random = np.random.default_rng(seed_of(self.seed, "spread", trial.number, param_name))
        return spread.value(param_name, param_distribution, trial, before, random)

    def before_trial(self, study: optuna.Study, trial: FrozenTrial) -> None:
        """As Optuna asks."""
        self._of(trial).before_trial(study, trial)

    def after_trial(self, study: optuna.Study, trial: FrozenTrial, state: TrialState, values: Any) -> None:
        """As Optuna asks."""
        self._of(trial).after_trial(study, trial, state, values)

    def reseed_rng(self) -> None:
        """Nothing: the seed is the trial's."""


def _begins(inner: BaseSampler, study: optuna.Study, trial: FrozenTrial) -> bool:
    """Whether a sampler that learns has nothing to learn from yet."""
    if isinstance(inner, NSGAIISampler):
        return inner.get_trial_generation(study, trial) == 0
    if isinstance(inner, TPESampler | CmaEsSampler):
        ended = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED))
        return len(ended) < STARTUP
    return False


def made(level: LevelConfig, seed: int) -> BaseSampler:
    """Optuna's sampler of that name."""
    if level.sampler == "tpe":
        return _tpe(level, seed)
    if level.sampler == "cma-es":
        # choices, and what is not searched in every trial, are no axes of an ellipsoid: TPE, one by one, proposes them
        beside = TPESampler(seed=seed, multivariate=False, n_startup_trials=STARTUP)
        return CmaEsSampler(seed=seed, independent_sampler=beside, warn_independent_sampling=False)
    if level.sampler == "nsga-ii":
        return NSGAIISampler(seed=seed, population_size=POPULATION)
    if level.sampler in ("random", "grid"):  # the points of a grid wait in the study: there is nothing to propose
        return RandomSampler(seed=seed)
    raise ValueError(f"sampler: {level.sampler!r}; allowed are tpe, cma-es, random, grid and nsga-ii")


def _tpe(level: LevelConfig, seed: int) -> TPESampler:
    if any(
        parameter.only_if for parameter in level.space.values()
    ):  # parameters that come together are modelled together
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            return TPESampler(seed=seed, n_startup_trials=STARTUP, multivariate=True, group=True)
    return TPESampler(seed=seed, n_startup_trials=STARTUP)


def first_points(level: LevelConfig, config: ExperimentConfig, seed: int) -> list[dict[str, Any]]:
    """Params tried before the sampler proposes any: the configuration's own, those the level names, and of a grid the rest.

    A grid's points come in an order shuffled by ``seed``, so that its first part is spread over the space too.
    """
    named = [spaces.point(level.space, s) for s in (spaces.defaults(level.space, config), *level.start)]
    if level.sampler != "grid":
        return named
    rest = {_key(params): params for params in grid(level.space, config)}
    first = [key for key in (_key(_completed(level.space, params, config)) for params in named) if key in rest]
    keys = list(rest)
    order = np.random.default_rng(seed).permutation(len(keys))
    return [rest[key] for key in dict.fromkeys([*first, *(keys[i] for i in order)])]


def point_count(level: LevelConfig, config: ExperimentConfig) -> int:
    """How many points a search of ``level`` tries: ``trials``, but a grid ends with its last, and an empty space has one.

    The configuration as it is comes first, though it be no point of a grid.
    """
    if not level.space:
        return 1
    if level.sampler != "grid":
        return level.trials
    own = spaces.point(level.space, spaces.defaults(level.space, config))
    beside = not spaces.is_complete(level.space, own, config)
    return min(level.trials, sum(1 for _ in grid(level.space, config)) + beside)


def _key(params: Mapping[str, Any]) -> tuple[tuple[str, Any], ...]:
    return tuple(sorted(params.items()))


def _completed(space: Space, params: Mapping[str, Any], config: ExperimentConfig) -> dict[str, Any]:
    """``params`` with the configuration's own values where they are silent, without what no condition lets be searched."""
    whole = {**spaces.point(space, spaces.defaults(space, config)), **params}
    given = spaces.values(space, whole)
    return {path: whole[path] for path in active(space, lambda asked: value_at(config, asked), given) if path in whole}


def grid(space: Space, config: ExperimentConfig) -> Iterator[dict[str, Any]]:
    """Params of every point of a finite space, each once: what no condition lets be searched does not multiply it."""
    paths = ordered(space)
    seen = set()
    for values in itertools.product(*(_all(space, path) for path in paths)):
        params = _completed(space, dict(zip(paths, values, strict=True)), config)
        if _key(params) not in seen:
            seen.add(_key(params))
            yield params


def _all(space: Space, path: str) -> list[Any]:
    parameter = space[path]
    if isinstance(parameter, Choice):
        return [spaces.encode(value) for value in parameter.choice]
    if isinstance(parameter, Float):
        raise ValueError(f"{path}: a float range has no end of points")
    return list(range(parameter.int[0], parameter.int[1] + 1, parameter.step))
