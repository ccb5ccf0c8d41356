"""The inner search of a trial: scoring settings over its cached reconstructions, all arithmetic."""

from collections.abc import Callable

import optuna

from cddpm.config import ExperimentConfig, LevelConfig, with_values
from cddpm.scoring.score import Scorer
from cddpm.scoring.score_book import ScoreBook
from cddpm.search import objectives
from cddpm.search import space as spaces
from cddpm.search.point import Params, Point, ScorePoints, in_process, objective_datasets, scoring_with
from cddpm.search.sampler import Sampler, first_points, point_count
from cddpm.seeds import seed_of
from cddpm.training.loop import Interrupted

__all__ = ["GUIDANCE", "Point", "best", "objective_datasets", "preview", "scoring_with", "search"]

GUIDANCE = "scoring.guidance_scale"


class _Search:
    """The study of one inner search, kept in memory: what it proposes, and what the scorer says of it."""

    def __init__(self, score: ScorePoints, config: ExperimentConfig, guided: bool) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._score, self._config = score, config
        self.level = _level(config, guided)
        seed = seed_of(config.seed, "scoring search")
        directions = [aim.goal for aim in config.search.aims]
        self._study = optuna.create_study(directions=directions, sampler=Sampler(self.level, seed))
        own = spaces.point(self.level.space, spaces.defaults(self.level.space, config))
        self._whole = spaces.is_complete(self.level.space, own, config)
        grid, queue = self.level.sampler == "grid", first_points(self.level, config, seed)
        if not grid and not self._whole:  # tried as it is, but no point of the space
            queue = queue[1:]
        for params in queue[: self.level.trials]:
            self._study.enqueue_trial(params)
        self.trials = point_count(self.level, config)

    def first(self) -> list[Point]:
        """The configuration as it is; the sampler learns from it if it lies in the space."""
        points = list(self._score([(0, {})]))
        if self._whole and self.level.space:
            self._tell([trial for trial, _ in self._ask(1)], points)
        return points

    def next(self, number: int) -> list[Point]:
        """As many points as one batch has (fewer at the end), from ``number`` on, as the sampler proposes them."""
        asked = self._ask(min(self._config.search.scoring_batch, self.trials - number))
        points = list(self._score([(number + place, params) for place, (_, params) in enumerate(asked)]))
        self._tell([trial for trial, _ in asked], points)
        return points

    def _ask(self, count: int) -> list[tuple[optuna.Trial, Params]]:
        """New trials with their settings; of those that are still without a value the sampler expects nothing good."""
        trials = (self._study.ask() for _ in range(count))
        return [(trial, spaces.suggest(self.level.space, trial, self._config)) for trial in trials]

    def _tell(self, asked: list[optuna.Trial], points: list[Point]) -> None:
        for trial, point in zip(asked, points, strict=True):
            self._study.tell(trial, objectives.measured(self._config, point.values))


def _level(config: ExperimentConfig, guided: bool) -> LevelConfig:
    """The scoring level, without guidance if there is nothing to guide with."""
    level = config.search.scoring
    wanted = {path: parameter for path, parameter in level.space.items() if guided or path != GUIDANCE}
    start = tuple({path: value for path, value in point.items() if path in wanted} for point in level.start)
    return level.model_copy(update={"space": wanted, "start": start})


def search(
    scorer: Scorer | ScoreBook | ScorePoints,
    config: ExperimentConfig,
    guided: bool,
    progress: Callable[[int, int, float], None] = lambda done, total, best: None,
    stop: Callable[[], bool] = lambda: False,
) -> list[Point]:
    """Try ``search.scoring.trials`` settings on validation reconstructions; the first is ``config`` itself.

    ``scorer`` scores in this process; or a function scores each batch of ``search.scoring_batch`` points, as
    ``point_workers.point_workers`` gives one. Guidance is searched only if the model was trained with condition dropout
    (``guided``). A grid ends with its last point. With several objectives the sampler looks for their Pareto front. Same seed
    and same batch, same points, wherever they are scored. Raises ``Interrupted`` when asked to stop, ``DataError`` and
    ``SearchError`` for an objective without a value.
    """
    score = in_process(scorer, config) if isinstance(scorer, Scorer | ScoreBook) else scorer
    walk, points = _Search(score, config, guided), list[Point]()
    while len(points) < walk.trials:
        if stop():
            raise Interrupted("the search over scoring settings was stopped; the next start repeats it")
        points += walk.next(len(points)) if points else walk.first()
        progress(len(points), walk.trials, max(p.objective for p in points))
    return points


def preview(scorer: Scorer, config: ExperimentConfig, guided: bool) -> dict[str, float]:
    """The inner search of a model in training: ``search.preview_trials`` settings on a few volumes, for one objective.

    Gives the best value by data set. Raises as ``search``.
    """
    own = {"search.scoring.trials": config.search.preview_trials, "search.objectives": [], "search.scoring_batch": 1}
    found = best(search(scorer, with_values(config, own, "preview"), guided))
    return {name: found.datasets[name][config.search.objective] for name in objective_datasets(config)}


def best(points: list[Point]) -> Point:
    """The point of the highest (first) objective, the earliest of equals."""
    return max(points, key=lambda p: (p.objective, -p.number))
