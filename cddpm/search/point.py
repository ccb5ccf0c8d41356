"""One point of a search over scoring settings: what was tried, and what came out.

Nothing here needs a network or a sampler: processes that only score points stay small.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

from cddpm.config import ExperimentConfig, ScoringConfig, with_values
from cddpm.errors import DataError, SearchError
from cddpm.scoring.calibration import Statistics
from cddpm.scoring.score import Scorer
from cddpm.scoring.score_book import ScoreBook


def measured(config: ExperimentConfig, values: Mapping[str, float]) -> list[float]:
    """The objectives of ``config`` among the ``values`` of a score (see ``Scorer.values``).

    Raises ``DataError`` for an objective on healthy volumes without any, ``SearchError`` for seconds that nobody measured.
    """
    return [_value(aim.metric, values) for aim in config.search.aims]


def _value(metric: str, values: Mapping[str, float]) -> float:
    if metric in values:
        return values[metric]
    if metric == "healthy_false_positive_ml":
        raise DataError(f"objective '{metric}' needs healthy validation volumes; there are none")
    if metric == "seconds_per_volume":
        raise SearchError(f"objective '{metric}': nobody measured how long a prediction takes")
    raise ValueError(f"objective {metric!r}; the score has {', '.join(values)}")


Params = dict[str, Any]
"""Scoring settings by dotted path."""
Proposal = tuple[int, Params]
"""Number of a point, and its settings."""


@dataclass(frozen=True)
class Point:
    """One setting that was tried. ``number`` 0 is the configuration as it is."""

    number: int
    params: Params
    objective: float
    thresholds: dict[str, float]
    datasets: dict[str, dict[str, float]]
    seconds: float
    values: dict[str, float] = field(default_factory=dict)
    """What may be optimised, by name (``Scorer.values``)."""
    statistics: Statistics | None = None
    """Of healthy residuals, if the settings ask for any."""

    def row(self) -> dict[str, Any]:
        """Plain data for tables."""
        return asdict(self)


ScorePoints = Callable[[Sequence[Proposal]], Sequence[Point]]
"""Scores proposals, in their order."""


def scoring_with(config: ExperimentConfig, params: Params) -> ScoringConfig:
    """The scoring settings of ``config`` with some replaced by dotted path."""
    return with_values(config, params).scoring


def score_point(scorer: Scorer | ScoreBook, config: ExperimentConfig, proposal: Proposal) -> Point:
    """Score one proposal under the objective of ``config``."""
    number, params = proposal
    start = time.perf_counter()
    score = scorer.score(scoring_with(config, params), config.search.objective, config.objective_datasets)
    seconds = time.perf_counter() - start
    return Point(
        number, params, score.objective, score.thresholds, score.datasets, seconds, score.values, score.statistics
    )


def in_process(scorer: Scorer | ScoreBook, config: ExperimentConfig) -> ScorePoints:
    """Score in this process, one point after the other, each by the scorer's threads."""
    return lambda proposals: [score_point(scorer, config, proposal) for proposal in proposals]


@dataclass(frozen=True)
class PointScorer:
    """What a process needs to score points of one trial. Calling it opens store and cache once, for all points."""

    scorer: Scorer | ScoreBook
    config: ExperimentConfig

    def __call__(self) -> Callable[[Proposal], Point]:
        """The function of a proposal. Raises ``ArtifactError`` for a store or cache that is gone."""
        return partial(score_point, self.scorer, self.config)
