"""Where a search begins: points spread over the space, none a near-copy of another, until a sampler can learn from them.

Each point is built parameter by parameter beside all that the study has asked before: of a choice or of whole numbers, one
of those that were tried least; of a range, a stratum that nobody is in. Of the candidates that remain, the one farthest
from its nearest neighbour stays (best-candidate sampling, Mitchell 1991, over strata as of a Latin hypercube). So the
configuration itself, points that are named and trials that failed are points of the design as well, and a parameter that is
searched under a condition is spread over the trials that search it.

With so few points this is more even than Sobol's sequence, which is balanced after powers of two only and knows no choices.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial

MOST_CANDIDATES, FEWEST_CANDIDATES = 64, 8
MOST_VALUES = 1024
"""Whole numbers of longer ranges are drawn as real ones and rounded."""
Range = FloatDistribution | IntDistribution
Places = NDArray[np.float64]


def value(
    name: str,
    distribution: BaseDistribution,
    decided: FrozenTrial,
    before: Sequence[FrozenTrial],
    random: np.random.Generator,
) -> Any:
    """A value of parameter ``name`` for the trial ``decided``, which has its other values so far; ``before``: earlier trials.

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
