"""How sure a number is: spread over folds, intervals over subjects, and tests between two methods on the same subjects.

What one method reached on one test data set in one fold is a ``FoldResult``, the unit that tables are made of. Folds share
their test subjects, so the volumes of all folds are no independent sample. A subject's values are first averaged over folds;
what is resampled or flipped is the subject.
"""

import math
import warnings
from collections import defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from cddpm.scoring.metrics import mean


@dataclass(frozen=True)
class FoldResult:
    """Measurements of one fold; undefined numbers are ``None``, never NaN.

    Raises ``ValueError`` for an empty name, a negative fold, a row without ``volume``, or NaN or infinity anywhere.
    """

    method: str
    """What tables call the method."""
    dataset: str
    fold: int
    rows: list[dict[str, Any]]
    """One per volume: ``volume``, measures by name, and ``subject`` where a subject has several volumes."""
    measures: dict[str, float | None]
    """The data set's numbers: means over volumes, or measures pooled over them."""

    def __post_init__(self) -> None:
        if not self.method or not self.dataset or self.fold < 0:
            raise ValueError(
                f"method {self.method!r}, data set {self.dataset!r}, fold {self.fold}: names and a fold >= 0"
            )
        for row in self.rows:
            if not row.get("volume"):
                raise ValueError(f"{self.place}: a row without 'volume'; it has {', '.join(row) or 'nothing'}")
            self._refuse_infinite(row, f"volume '{row['volume']}'")
        self._refuse_infinite(self.measures, "measures")

    @property
    def place(self) -> str:
        """How messages name this result."""
        return f"{self.method} on {self.dataset}, fold {self.fold}"

    def _refuse_infinite(self, values: dict[str, Any], where: str) -> None:
        for name, value in values.items():
            if isinstance(value, float) and not math.isfinite(value):
                raise ValueError(f"{self.place}, {where}: {name} is {value}; an undefined number is None")

    def values(self, measure: str) -> list[tuple[str, str, float]]:
        """(subject, volume, value) of every volume for which ``measure`` is defined."""
        return [
            (str(row.get("subject") or row["volume"]), str(row["volume"]), float(row[measure]))
            for row in self.rows
            if row.get(measure) is not None
        ]


_CHUNK = 2**22
"""Numbers drawn at once by a resampling: bounds its memory, does not change its outcome."""
_ROUNDING = 1e-12
"""Values that differ by less, relative to the largest, are equal."""

Key = TypeVar("Key", bound=Hashable)


@dataclass(frozen=True)
class Spread:
    """Mean and standard deviation over folds."""

    mean: float | None
    std: float | None
    """Sample standard deviation (n - 1); none for fewer than two folds."""
    folds: int
    """Folds in which the number is defined."""


@dataclass(frozen=True)
class Interval:
    """Confidence interval of the mean over subjects; ``note`` says why there is none, or why it is a point."""

    low: float | None
    high: float | None
    mean: float | None
    subjects: int
    note: str = ""


@dataclass(frozen=True)
class Pairs:
    """Two methods on the same subjects: first minus second per subject, and who was measured by one method only."""

    differences: dict[str, float]
    left_out: tuple[str, ...]


@dataclass(frozen=True)
class Comparison:
    """Outcome of a paired test; ``p`` is none with a reason in ``note``."""

    p: float | None
    difference: float | None
    """Mean difference over subjects, in the unit of the measure."""
    subjects: int
    left_out: tuple[str, ...] = ()
    """Subjects that only one of the two methods has a value for."""
    exact: bool = False
    """Whether all sign patterns were counted, not a random part of them."""
    adjusted: float | None = None
    """``p`` after correction for all comparisons of its family (see ``holm``)."""
    note: str = ""

    @property
    def smallest(self) -> float:
        """The smallest p that an exact test of so many subjects can give."""
        return min(1.0, 2.0 ** (1 - self.subjects))


def over_folds(values: Iterable[float | None]) -> Spread:
    """Mean and sample standard deviation (n - 1) of the defined values, one per fold."""
    defined = [value for value in values if value is not None]
    std = float(np.std(defined, ddof=1)) if len(defined) > 1 else None
    return Spread(mean(defined), std, len(defined))


def subject_means(results: Iterable[FoldResult], measure: str) -> dict[str, float]:
    """Mean of ``measure`` per subject: over its volumes in a fold, then over folds; subjects in alphabetical order.

    Subjects for which it is undefined in every fold are absent.
    """
    by_fold: dict[str, list[float]] = defaultdict(list)
    for result in results:
        by_volume: dict[str, list[float]] = defaultdict(list)
        for subject, _, value in result.values(measure):
            by_volume[subject].append(value)
        for subject, values in by_volume.items():
            by_fold[subject].append(fmean(values))
    return {subject: fmean(by_fold[subject]) for subject in sorted(by_fold)}


def paired(first: Iterable[FoldResult], second: Iterable[FoldResult], measure: str) -> Pairs:
    """Differences per subject over the folds and volumes in which both methods have a value of ``measure``.

    Subjects without any such pair, but with a value in one of them, are left out by name.
    """
    one, other = _by_place(first, measure), _by_place(second, measure)
    differences: dict[str, list[float]] = defaultdict(list)
    for place in sorted(one.keys() & other.keys()):
        differences[place[0]].append(one[place] - other[place])
    known = {place[0] for place in one.keys() | other.keys()}
    found = {subject: fmean(differences[subject]) for subject in sorted(differences)}
    return Pairs(found, tuple(sorted(known - found.keys())))


def _by_place(results: Iterable[FoldResult], measure: str) -> dict[tuple[str, int, str], float]:
    """Values by (subject, fold, volume); a volume that a split names twice in a fold has the same value twice."""
    return {
        (subject, result.fold, volume): value for result in results for subject, volume, value in result.values(measure)
    }


def bootstrap_interval(values: Iterable[float], resamples: int, confidence: float, seed: int = 0) -> Interval:
    """Bias-corrected and accelerated bootstrap interval of the mean over subjects, one value per subject.

    Efron 1987, "Better bootstrap confidence intervals". It does not depend on the order of ``values``.

    One subject gives no interval, equal values give a point; both say so.
    """
    sample = np.sort(np.asarray(list(values), np.float64))
    centre = mean(sample.tolist())
    if sample.size < 2 or centre is None:
        found = "one subject: an interval needs two" if sample.size else "no subject has a value"
        return Interval(None, None, centre, sample.size, found)
    if np.ptp(sample) <= _ROUNDING * np.abs(sample).max():
        return Interval(centre, centre, centre, sample.size, "all subjects have the same value")
    needed = math.ceil(round(2 / (1 - confidence), 6))  # so that one resample lies beyond each bound
    if resamples < needed:
        return Interval(None, None, centre, sample.size, f"{resamples} resamples: an interval needs {needed}")
    return _bca(sample, centre, resamples, confidence, seed)


def _bca(sample: NDArray[np.float64], centre: float, resamples: int, confidence: float, seed: int) -> Interval:
    from scipy.stats import bootstrap  # slow to import

    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # what they warn of is looked for and told below
        result = bootstrap(
            (sample,),
            np.mean,
            n_resamples=resamples,
            batch=max(1, _CHUNK // sample.size),
            confidence_level=confidence,
            method="BCa",
            rng=np.random.default_rng(seed),
        )
    low, high = (float(bound) for bound in result.confidence_interval)
    if not np.isfinite([low, high]).all():
        return Interval(None, None, centre, sample.size, f"{resamples} resamples do not tell an interval")
    return Interval(low, high, centre, sample.size)


def compare(pairs: Pairs, resamples: int, seed: int = 0) -> Comparison:
    """Two-sided paired permutation test of the mean difference: under the null hypothesis each subject's sign is a coin.

    Exact if there are at most ``resamples`` sign patterns, else over that many random ones with the observed one added
    (Phipson and Smyth 2010, "Permutation p-values should never be zero"). p is twice the smaller tail, at most 1.
    """
    found = np.asarray([pairs.differences[subject] for subject in sorted(pairs.differences)], np.float64)
    centre = mean(found.tolist())
    if found.size < 2:
        note = "one common subject: a test needs two" if found.size else "no subject was measured by both methods"
        return Comparison(None, centre, found.size, pairs.left_out, note=note)
    if not found.any():
        return Comparison(1.0, 0.0, found.size, pairs.left_out, exact=True, note="all differences are zero")
    return Comparison(
        _sign_flips(found, resamples, seed), centre, found.size, pairs.left_out, 2**found.size <= resamples
    )


def _sign_flips(differences: NDArray[np.float64], resamples: int, seed: int) -> float:
    """p from SciPy's null distribution; its own p takes sums for different that differ by rounding only."""
    from scipy.stats import permutation_test  # slow to import

    def total(sample: NDArray[np.float64], axis: int) -> Any:
        return sample.sum(axis=axis)

    result = permutation_test(
        (differences,),
        total,
        permutation_type="samples",
        vectorized=True,
        n_resamples=resamples,
        batch=max(1, _CHUNK // differences.size),
        rng=np.random.default_rng(seed),
    )
    null, observed = result.null_distribution, float(differences.sum())
    rounding = _ROUNDING * float(np.abs(differences).sum())
    above = int(np.count_nonzero(null >= observed - rounding))
    below = int(np.count_nonzero(null <= observed + rounding))
    itself = 0 if 2**differences.size <= resamples else 1
    return min(1.0, 2 * (min(above, below) + itself) / (null.size + itself))


def holm(p_values: Mapping[Key, float | None]) -> dict[Key, float]:
    """Adjusted p of several comparisons (Holm 1979, "A simple sequentially rejective multiple test procedure").

    Comparisons without a p were not made: they are absent and do not count.
    """
    made: Sequence[tuple[Key, float]] = sorted(
        ((key, p) for key, p in p_values.items() if p is not None), key=lambda item: item[1]
    )
    adjusted: dict[Key, float] = {}
    highest = 0.0
    for rank, (key, p) in enumerate(made):
        highest = max(highest, min(1.0, (len(made) - rank) * p))
        adjusted[key] = highest
    return adjusted
