"""The end of a sweep: the trial that is best on validation is scored once on test, pictured, packaged and registered.

Two things stand beside it on test: the configuration's own settings without any search, and a threshold on the plain
image. All three take their operating point from validation.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

from cddpm import artifact
from cddpm.config import ExperimentConfig, ScoringConfig
from cddpm.data.store import SliceStore
from cddpm.errors import SearchError
from cddpm.reconstruct.cohort import Cohort
from cddpm.scoring.calibration import given
from cddpm.scoring.figures import overview, overview_rows
from cddpm.scoring.score import Evaluation, Scorer, evaluate
from cddpm.search.leaderboard import Row
from cddpm.search.point import Point, objective_datasets, scoring_with
from cddpm.search.scoring_search import book_of
from cddpm.search.trial import TrialResult
from cddpm.training import checkpoint, stages, worker
from cddpm.training.checkpoint import packed

TEST, PICTURES = "test.json", "pictures"


@dataclass(frozen=True)
class Contender:
    """Something measured on test at operating points fixed on validation."""

    name: str
    validation: float
    thresholds: dict[str, float]
    scoring: ScoringConfig
    test: Evaluation
    trial: int | None = None
    """Whose model it is; None: nobody's."""

    def metric(self, datasets: tuple[str, ...], metric: str) -> float:
        """Mean over ``datasets`` of the mean over their volumes."""
        return sum(self.test.aggregates[name][metric] for name in datasets) / len(datasets)


class Final:
    """Scores contenders on the test cohort of one store."""

    def __init__(self, config: ExperimentConfig, place: stages.Place, stop_file: Path, gpus: float) -> None:
        self.config, self.place, self.stop_file, self.gpus = config, place, stop_file, gpus

    def champion(self, result: TrialResult, config: ExperimentConfig) -> tuple[Contender, Scorer]:
        """The winner with its searched scoring settings; ``config`` is that trial's."""
        scoring = scoring_with(config, result.best.params)
        scorer = self._scorer(result, result.best, config)
        test = evaluate(scorer, scoring, result.best.thresholds)
        return Contender("champion", result.objective, result.best.thresholds, scoring, test, result.number), scorer

    def unswept(self, result: TrialResult, config: ExperimentConfig) -> Contender:
        """The first trial (the configuration's own training settings) under the configuration's own scoring settings."""
        first = result.default
        test = evaluate(self._scorer(result, first, config), config.scoring, first.thresholds)
        return Contender("unswept defaults", first.objective, first.thresholds, config.scoring, test, result.number)

    def intensity(self) -> Contender:
        """A threshold on the image itself."""
        scoring, store = self.config.scoring, SliceStore.open(self.place.store, verify=False)
        book = book_of(self.config, self.place, None, 1)
        score = book.score(scoring, self.config.search.objective, objective_datasets(self.config))
        test = evaluate(Cohort.of(store, self.config.data, "test").scorer(None), scoring, score.thresholds)
        return Contender("intensity threshold", score.objective, score.thresholds, scoring, test)

    def _scorer(self, result: TrialResult, point: Point, config: ExperimentConfig) -> Scorer:
        """Of the test volumes under the settings of ``point``."""
        job = worker.Assignment(config, self.place, result.number, self.stop_file)
        checkpoint = self.place.artifacts / stages.CHECKPOINT / result.checkpoint
        return worker.scorer_on_test(job, checkpoint, self.gpus, given(point.statistics))


def table(config: ExperimentConfig, rows: list[Row], contenders: list[Contender]) -> list[Row]:
    """The leaderboard with test scores: in the champion's row, the first of ``contenders``; the others get rows of their own."""
    names = objective_datasets(config)

    def scores(c: Contender) -> dict[str, float]:
        return {name: c.metric((name,), config.search.objective) for name in names}

    winner, *others = contenders
    own = [
        replace(row, name=f"champion = {row.name}", test=scores(winner))
        if row.name == f"{winner.trial:04d}" and row.state == "finished"
        else row
        for row in rows
    ]
    return [*own, *(Row(c.name, "for comparison", c.validation, scores(c), {}) for c in others)]


def draw(scorer: Scorer, contender: Contender, path: Path) -> None:
    """Best, median and worst test volumes over all data sets."""
    overview(overview_rows(scorer, contender.scoring, contender.test.rows), path)


def draw_each(scorer: Scorer, contender: Contender, folder: Path) -> None:
    """Best, median and worst test volumes of each data set, one picture per data set in ``folder``."""
    for dataset in scorer.datasets:
        rows = overview_rows(scorer, contender.scoring, [r for r in contender.test.rows if r["dataset"] == dataset])
        if rows:
            overview(rows, folder / f"{quote(dataset, safe='')}.png")


def weights_of(place: stages.Place, result: TrialResult) -> Mapping[str, Any]:
    """The winner's weights, with those of its guide if it has one."""
    return packed(_weights(place, result.checkpoint), _weights(place, result.guide) if result.guide else None)


def _weights(place: stages.Place, name: str) -> dict[str, Any]:
    folder = place.artifacts / stages.CHECKPOINT / name
    artifact.verify(folder, stages.CHECKPOINT)
    return checkpoint.load_weights(folder / checkpoint.WEIGHTS)


def save(path: Path, contenders: list[Contender]) -> None:
    """Keep what was measured on test."""
    rows = [{**asdict(c), "scoring": c.scoring.model_dump(mode="json")} for c in contenders]
    artifact.write_json(path, rows)


def load(path: Path) -> list[Contender]:
    """What ``save`` kept; nothing if test was not scored yet. Raises ``SearchError`` for a damaged file."""
    if not path.exists():
        return []
    return artifact.read_json(
        path, list[Contender], "the test scores of a sweep", "--resume the sweep to make them", SearchError
    )
