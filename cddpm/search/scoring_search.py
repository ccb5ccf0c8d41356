"""The inner search of a trial: scoring settings over its cached reconstructions, all arithmetic."""

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import optuna

from cddpm.config import ExperimentConfig, ScoringConfig, Space, with_values
from cddpm.models.noise import slice_seed
from cddpm.scoring.calibration import Statistics
from cddpm.scoring.score import Scorer
from cddpm.search import space as spaces
from cddpm.training.loop import Interrupted

GUIDANCE = "scoring.guidance_scale"


@dataclass(frozen=True)
class Point:
    """One setting that was tried. ``number`` 0 is the configuration as it is."""

    number: int
    params: dict[str, Any]
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


def search(
    scorer: Scorer,
    config: ExperimentConfig,
    guided: bool,
    progress: Callable[[int, int, float], None] = lambda done, total, best: None,
    stop: Callable[[], bool] = lambda: False,
) -> list[Point]:
    """Try ``search.scoring.trials`` settings on validation reconstructions; the first is ``config`` itself.

    Guidance is searched only if the model was trained with condition dropout (``guided``). Same seed, same points.
    Raises ``Interrupted`` when asked to stop.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    level = config.search.scoring
    wanted = {path: p for path, p in level.space.items() if guided or path != GUIDANCE}
    level = level.model_copy(update={"space": wanted, "start": tuple(_without(p, wanted) for p in level.start)})
    seed = slice_seed(config.seed, "scoring search") % 2**32
    study = optuna.create_study(direction="maximize", sampler=spaces.sampler(level, seed))
    own, *named = spaces.start_points(level, config)
    for params in ([own] if len(own) == len(wanted) else []) + named:
        study.enqueue_trial(params)
    points: list[Point] = []
    for number in range(level.trials if wanted else 1):
        if stop():
            raise Interrupted("the search over scoring settings was stopped; the next start repeats it")
        points.append(_try(scorer, config, number, {}) if number == 0 else _next(study, scorer, config, number, wanted))
        if number == 0 and len(own) == len(wanted):  # the sampler learns from the configuration's own point too
            trial = study.ask()
            spaces.suggest(wanted, trial)
            study.tell(trial, points[0].objective)
        progress(number + 1, level.trials, max(p.objective for p in points))
    return points


def _next(study: optuna.Study, scorer: Scorer, config: ExperimentConfig, number: int, wanted: Space) -> Point:
    trial = study.ask()
    point = _try(scorer, config, number, spaces.suggest(wanted, trial))
    study.tell(trial, point.objective)
    return point


def _without(settings: dict[str, Any], wanted: dict[str, Any]) -> dict[str, Any]:
    return {path: value for path, value in settings.items() if path in wanted}


def _try(scorer: Scorer, config: ExperimentConfig, number: int, params: dict[str, Any]) -> Point:
    start = time.perf_counter()
    score = scorer.score(scoring_with(config, params), config.search.objective, objective_datasets(config))
    seconds = time.perf_counter() - start
    return Point(
        number, params, score.objective, score.thresholds, score.datasets, seconds, score.values, score.statistics
    )


def scoring_with(config: ExperimentConfig, params: dict[str, Any]) -> ScoringConfig:
    """The scoring settings of ``config`` with some replaced by dotted path."""
    return with_values(config, params).scoring


def objective_datasets(config: ExperimentConfig) -> tuple[str, ...]:
    """Data sets that the objective is the mean of."""
    return config.search.datasets or config.data.unhealthy


def best(points: list[Point]) -> Point:
    """The point of the highest objective, the earliest of equals."""
    return max(points, key=lambda p: (p.objective, -p.number))
