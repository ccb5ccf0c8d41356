"""The inner search of a trial: scoring settings over its cached reconstructions, all arithmetic."""

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import optuna

from cddpm.config import ExperimentConfig, LevelConfig, ScoringConfig, with_values
from cddpm.models.noise import slice_seed
from cddpm.scoring.calibration import Statistics
from cddpm.scoring.score import Scorer
from cddpm.scoring.score_book import ScoreBook
from cddpm.search import objectives
from cddpm.search import space as spaces
from cddpm.search.sampler import Sampler, first_points
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


class _Search:
    """The study of one inner search, kept in memory: what it proposes, and what the scorer says of it."""

    def __init__(self, scorer: Scorer | ScoreBook, config: ExperimentConfig, guided: bool) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._scorer, self._config = scorer, config
        self.level = _level(config, guided)
        seed = slice_seed(config.seed, "scoring search")
        directions = [aim.goal for aim in config.search.aims]
        self._study = optuna.create_study(directions=directions, sampler=Sampler(self.level, seed))
        own = spaces.point(self.level.space, spaces.defaults(self.level.space, config))
        self._whole = spaces.is_complete(self.level.space, own, config)
        grid, queue = self.level.sampler == "grid", first_points(self.level, config, seed)
        if not grid and not self._whole:  # tried as it is, but no point of the space
            queue = queue[1:]
        for params in queue[: self.level.trials]:
            self._study.enqueue_trial(params)
        self.trials = self.level.trials if self.level.space else 1
        if grid:
            self.trials = min(self.trials, len(queue) + (not self._whole))

    def first(self) -> Point:
        """The configuration as it is; the sampler learns from it if it lies in the space."""
        point = self._try(0, {})
        if self._whole and self.level.space:
            trial = self._study.ask()
            spaces.suggest(self.level.space, trial, self._config)
            self._study.tell(trial, objectives.measured(self._config, point.values))
        return point

    def next(self, number: int) -> Point:
        """A point that the sampler proposes."""
        trial = self._study.ask()
        point = self._try(number, spaces.suggest(self.level.space, trial, self._config))
        self._study.tell(trial, objectives.measured(self._config, point.values))
        return point

    def _try(self, number: int, params: dict[str, Any]) -> Point:
        start = time.perf_counter()
        config, scoring = self._config, scoring_with(self._config, params)
        score = self._scorer.score(scoring, config.search.objective, objective_datasets(config))
        seconds = time.perf_counter() - start
        return Point(
            number, params, score.objective, score.thresholds, score.datasets, seconds, score.values, score.statistics
        )


def _level(config: ExperimentConfig, guided: bool) -> LevelConfig:
    """The scoring level, without guidance if there is nothing to guide with."""
    level = config.search.scoring
    wanted = {path: parameter for path, parameter in level.space.items() if guided or path != GUIDANCE}
    start = tuple({path: value for path, value in point.items() if path in wanted} for point in level.start)
    return level.model_copy(update={"space": wanted, "start": start})


def search(
    scorer: Scorer | ScoreBook,
    config: ExperimentConfig,
    guided: bool,
    progress: Callable[[int, int, float], None] = lambda done, total, best: None,
    stop: Callable[[], bool] = lambda: False,
) -> list[Point]:
    """Try ``search.scoring.trials`` settings on validation reconstructions; the first is ``config`` itself.

    Guidance is searched only if the model was trained with condition dropout (``guided``). A grid ends with its last point.
    With several objectives the sampler looks for their Pareto front. Same seed, same points. Raises
    ``Interrupted`` when asked to stop, ``DataError`` and ``SearchError`` for an objective without a value.
    """
    walk, points = _Search(scorer, config, guided), list[Point]()
    for number in range(walk.trials):
        if stop():
            raise Interrupted("the search over scoring settings was stopped; the next start repeats it")
        points.append(walk.next(number) if number else walk.first())
        progress(number + 1, walk.trials, max(p.objective for p in points))
    return points


def scoring_with(config: ExperimentConfig, params: dict[str, Any]) -> ScoringConfig:
    """The scoring settings of ``config`` with some replaced by dotted path."""
    return with_values(config, params).scoring


def objective_datasets(config: ExperimentConfig) -> tuple[str, ...]:
    """Data sets that the objective is the mean of."""
    return objectives.datasets(config)


def best(points: list[Point]) -> Point:
    """The point of the highest (first) objective, the earliest of equals."""
    return max(points, key=lambda p: (p.objective, -p.number))
