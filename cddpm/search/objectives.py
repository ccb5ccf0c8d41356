"""What a point of the scoring search is worth: one number per objective, in the objectives' order."""

from collections.abc import Mapping

from cddpm.config import ExperimentConfig
from cddpm.errors import DataError, SearchError


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
