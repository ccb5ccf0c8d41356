"""Who proposes the next point: TPE, CMA-ES, random, grid or NSGA-II, by name, each decided by seed, trial number and history.

A sweep's sampler is made anew for every trial, with a seed of its own made of the level's seed and the trial's number. What it
proposes depends on what the study knows, never on how often the driver was stopped and started again. That of an inner search,
which is never taken up again, lasts.

What has too little to learn from does not draw by chance, but points that are spread over the space (``spread_value``): TPE until
``STARTUP`` trials have ended, NSGA-II in its first generation, and CMA-ES for what it does not model.
"""

import itertools
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import optuna
from numpy.typing import NDArray
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.samplers import BaseSampler, CmaEsSampler, NSGAIISampler, RandomSampler, TPESampler
from optuna.trial import FrozenTrial, TrialState

from cddpm.config import Choice, ExperimentConfig, Float, LevelConfig, Space, active, ordered, value_at
from cddpm.search import space as spaces
from cddpm.seeds import seed_of

MOST_CANDIDATES, FEWEST_CANDIDATES = 64, 8
MOST_VALUES = 1024
"""Whole numbers of longer ranges are drawn as real ones and rounded."""
Range = FloatDistribution | IntDistribution
Places = NDArray[np.float64]


def spread_value(
    name: str,
    distribution: BaseDistribution,
    decided: FrozenTrial,
    before: Sequence[FrozenTrial],
    random: np.random.Generator,
) -> Any:
    """A value of parameter ``name`` for the trial ``decided``, which has its other values so far; ``before``: earlier trials.

    Spread over the space, no near-copy of another: of a choice or of whole numbers, one of those that were tried least; of a
    range, a stratum that nobody is in. Of the candidates that remain, the one farthest from its nearest neighbour stays
    (best-candidate sampling, Mitchell 1991, over strata as of a Latin hypercube). So the configuration itself, points that are
    named and trials that failed are points of the design as well, and a parameter that is searched under a condition is spread
    over the trials that search it. With so few points this is more even than Sobol's sequence, which is balanced after powers
    of two only and knows no choices.

    Raises ``TypeError`` for a distribution that is none of Optuna's three.
    """
    tried = np.array([place_of(distribution, t.params[name]) for t in before if name in t.params])
    candidates = random.permutation(_candidates(distribution, tried, random))
    if not before:
        return _value_at(distribution, candidates[0])
    apart = np.array([distance(decided, t) for t in before])
    own = np.array([place_of(distribution, t.params[name]) if name in t.params else np.nan for t in before])
    step = np.abs(candidates[:, None] - own[None])  # (candidates, trials)
    if isinstance(distribution, CategoricalDistribution):
        step = np.where(np.isnan(step), np.nan, step > 0)
    nearest = (apart + np.nan_to_num(step, nan=1.0)).min(axis=1)
    return _value_at(distribution, candidates[int(np.argmax(nearest))])


def distance(one: FrozenTrial, other: FrozenTrial) -> float:
    """How far apart two trials are: the sum of differences over the parameters of ``one``, in units of their ranges.

    Another choice differs by 1, and so does what ``other`` does not have (Gower 1971).
    """
    return sum(
        _apart(d, one.params[p], other.params[p]) if p in other.params else 1.0 for p, d in one.distributions.items()
    )


def _apart(distribution: BaseDistribution, one: Any, other: Any) -> float:
    if isinstance(distribution, CategoricalDistribution):
        return float(one != other)
    return abs(place_of(distribution, one) - place_of(distribution, other))


def place_of(distribution: BaseDistribution, param: Any) -> float:
    """Where a value stands: in [0, 1] in its range (a logarithmic one by its logarithm), or the index of a choice."""
    if isinstance(distribution, CategoricalDistribution):
        return distribution.to_internal_repr(param)
    low, high = _limits(distribution)
    at = math.log(param) if _range(distribution).log else param
    return min(1.0, max(0.0, (at - low) / (high - low)))


def _range(distribution: BaseDistribution) -> Range:
    """Raises ``TypeError`` for what has no range."""
    if isinstance(distribution, FloatDistribution | IntDistribution):
        return distribution
    raise TypeError(f"{type(distribution).__name__}: allowed are float, int and categorical distributions")


def _limits(distribution: BaseDistribution) -> tuple[float, float]:
    """Ends of a range; whole numbers have room of half a step around them, so that the ends are as likely as the rest."""
    found = _range(distribution)
    room = 0.5 * found.step if isinstance(found, IntDistribution) else 0.0
    low, high = found.low - room, found.high + room
    return (math.log(low), math.log(high)) if found.log else (low, high)


def _value_at(distribution: BaseDistribution, place: float) -> Any:
    if isinstance(distribution, CategoricalDistribution):
        return distribution.choices[int(place)]
    found, (low, high) = _range(distribution), _limits(distribution)
    at = low + place * (high - low)
    at = math.exp(at) if found.log else at
    if isinstance(found, IntDistribution):
        at = found.low + found.step * round((at - found.low) / found.step)
        return int(min(found.high, max(found.low, at)))
    return float(min(found.high, max(found.low, at)))


def _candidates(distribution: BaseDistribution, tried: Places, random: np.random.Generator) -> Places:
    """Places that may be tried next, beside those that were."""
    if isinstance(distribution, CategoricalDistribution):
        return _least_tried(np.arange(len(distribution.choices), dtype=float), tried)
    if isinstance(distribution, IntDistribution):
        count = (distribution.high - distribution.low) // distribution.step + 1
        if count <= MOST_VALUES:
            numbers = [distribution.low + i * distribution.step for i in range(count)]
            least = _least_tried(np.array([place_of(distribution, n) for n in numbers]), tried)
            new = least[~np.isin(_stratum(least, tried.size), _stratum(tried, tried.size))]
            return new if new.size else least
    return _free(tried, random)


def _least_tried(places: Places, tried: Places) -> Places:
    times = np.isclose(places[:, None], tried[None], rtol=0, atol=1e-9).sum(axis=1)
    return places[times == times.min()]


def strata(count: int) -> int:
    """Into how many equal parts a range is cut for the next point after ``count``: a power of two, so that parts nest."""
    return 1 << count.bit_length()


def _stratum(places: Places, count: int) -> NDArray[np.int64]:
    parts = strata(count)
    return np.minimum(np.floor(places * parts), parts - 1).astype(np.int64)


def _free(tried: Places, random: np.random.Generator) -> Places:
    """Places in the middle half of strata that nobody is in, so that none is nearer to another than a quarter of one."""
    parts = strata(tried.size)
    empty = np.setdiff1d(np.arange(parts), _stratum(tried, tried.size))
    chosen = random.permutation(empty)[:MOST_CANDIDATES]
    chosen = np.repeat(chosen, max(1, FEWEST_CANDIDATES // chosen.size))
    return np.asarray((chosen + random.uniform(0.25, 0.75, chosen.size)) / parts)


PointKey = tuple[tuple[str, Any], ...]
POPULATION = 20
"""Points of one generation of NSGA-II."""
STARTUP = 10
"""Ended trials from which TPE learns, as Optuna has it: up to here its model of what is good would be one single point."""


@dataclass(eq=False)
class Sampler(BaseSampler):
    """The sampler of a level. Plain data: Ray's snapshots pickle it."""

    level: LevelConfig
    seed: int
    lasting: bool = False
    """One of Optuna's samplers for all trials: it need not look through the whole study for each, but what it proposes then
    depends on its course from the first trial on. For a study that is never taken up again."""
    _number: int = field(default=-1, init=False)
    _inner: BaseSampler | None = field(default=None, init=False)
    _spreads: bool = field(default=True, init=False)
    """Whether the trial of ``_number`` is spread, because there is too little to learn from yet."""

    def _of(self, study: optuna.Study, trial: FrozenTrial) -> BaseSampler:
        if self._inner is not None and trial.number == self._number:
            return self._inner
        if self._inner is None or not self.lasting:
            number = 0 if self.lasting else trial.number
            self._inner = made(self.level, seed_of(self.seed, "trial", number) % 2**32)
        self._number, self._spreads = trial.number, self._spreads and _begins(self._inner, study, trial)
        return self._inner

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """As Optuna asks."""
        return dict(self._of(study, trial).infer_relative_search_space(study, trial))

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """As Optuna asks."""
        return dict(self._of(study, trial).sample_relative(study, trial, search_space))

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """As Optuna asks."""
        inner = self._of(study, trial)
        if not self._spreads:
            return inner.sample_independent(study, trial, param_name, param_distribution)
        before = [t for t in study.get_trials(deepcopy=False) if t.number < trial.number]
        random = np.random.default_rng(seed_of(self.seed, "spread", trial.number, param_name))
        return spread_value(param_name, param_distribution, trial, before, random)

    def before_trial(self, study: optuna.Study, trial: FrozenTrial) -> None:
        """As Optuna asks."""
        self._of(study, trial).before_trial(study, trial)

    def after_trial(self, study: optuna.Study, trial: FrozenTrial, state: TrialState, values: Any) -> None:
        """As Optuna asks."""
        self._of(study, trial).after_trial(study, trial, state, values)

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

    A grid's points come in an order shuffled by ``seed``. If not all of them are tried, the first part is so spread over the
    space; else points that share residuals, or maps, are neighbours, so that these are made once.
    """
    named = [spaces.point(level.space, s) for s in (spaces.defaults(level.space, config), *level.start)]
    if level.sampler != "grid":
        return named
    rest = {_key(params): params for params in grid(level.space, config)}
    first = [key for key in (_key(_completed(level.space, params, config)) for params in named) if key in rest]
    keys = list(rest)
    order = [keys[i] for i in np.random.default_rng(seed).permutation(len(keys))]
    if level.trials >= len(keys):
        order = _neighbours(order)
    return [rest[key] for key in dict.fromkeys([*first, *order])]


OF_THE_MAP = ("scoring.erosion_divisor", "scoring.median_kernel")
"""What makes a map of a residual."""
OF_THE_RESULT = (
    "scoring.minimum_component_voxels",
    "scoring.connectivity",
    "scoring.component_size",
    "scoring.operating_point",
    "scoring.healthy_false_positive_rate",
    "scoring.threshold",
)
"""What is done with a map."""


def _neighbours(order: list[PointKey]) -> list[PointKey]:
    """Points of one residual together, and of these those of one map; else in the order that they have."""
    ranks: dict[PointKey, int] = {}

    def rank(point: PointKey, without: tuple[str, ...]) -> int:
        return ranks.setdefault(tuple(pair for pair in point if pair[0] not in without), len(ranks))

    return sorted(order, key=lambda point: (rank(point, OF_THE_MAP + OF_THE_RESULT), rank(point, OF_THE_RESULT)))


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


def _key(params: Mapping[str, Any]) -> PointKey:
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
