"""The end of a sweep: the trial that is best on validation is scored once on test, pictured, packaged and registered.

Two things stand beside it on test: the configuration's own settings without any search, and a threshold on the plain
image. All three take their operating point from validation.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from cddpm import artifact
from cddpm.config import ExperimentConfig, ScoringConfig, to_dict, with_values
from cddpm.data.store import SliceStore
from cddpm.errors import SearchError
from cddpm.reconstruct.cohort import Cohort
from cddpm.scoring.calibration import given
from cddpm.scoring.figures import overview, overview_rows
from cddpm.scoring.score import Evaluation, Scorer, evaluate
from cddpm.search.point import Point, scoring_with
from cddpm.search.scoring_search import book_of
from cddpm.search.trial import TrialResult
from cddpm.training import checkpoint, stages, worker
from cddpm.training.checkpoint import packed

TEST, PICTURE, PICTURES = "test.json", Path("champion.png"), Path("pictures")


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


def measure(
    config: ExperimentConfig, folder: Path, place: stages.Place, results: Sequence[TrialResult], gpus: float
) -> list[Contender]:
    """The contenders of the sweep in ``folder``, the champion (of ``results`` the first) before the others; kept and drawn."""

    def on_test(result: TrialResult, point: Point, own: ExperimentConfig) -> Scorer:
        """The test volumes as a trial's model reconstructs them, under the settings of ``point``."""
        job = worker.Assignment(own, place.of(own), result.number, folder / "stop")
        path = place.artifacts / stages.CHECKPOINT / result.checkpoint
        return worker.scorer_on_test(job, path, gpus, given(point.statistics))

    best = results[0]
    own = with_values(config, best.params, f"trial {best.number}")
    scoring, thresholds, scorer = (
        scoring_with(own, best.best.params),
        best.best.thresholds,
        on_test(best, best.best, own),
    )
    test = evaluate(scorer, scoring, thresholds)
    found = [Contender("champion", best.objective, thresholds, scoring, test, best.number)]

    for first in (r for r in results if r.number == 0):  # absent only if the first trial failed or was stopped early
        own, point = with_values(config, first.params, "trial 0"), first.default
        test = evaluate(on_test(first, point, own), own.scoring, point.thresholds)
        found.append(Contender("unswept defaults", point.objective, point.thresholds, own.scoring, test, 0))

    plain, store = config.scoring, SliceStore.open(place.store, verify=False)
    score = book_of(config, place, None, 1).score(plain, config.search.objective, config.objective_datasets)
    test = evaluate(Cohort.of(store, config.data, "test").scorer(None), plain, score.thresholds)
    found.append(Contender("intensity threshold", score.objective, score.thresholds, plain, test))

    artifact.write_json(folder / TEST, [{**asdict(c), "scoring": to_dict(c.scoring)} for c in found])
    _draw(scorer, found[0], folder)
    return found


def _draw(scorer: Scorer, champion: Contender, folder: Path) -> None:
    """Best, median and worst test volumes over all data sets, and of each."""
    rows = champion.test.rows
    pictures = {
        PICTURES / f"{quote(name, safe='')}.png": [r for r in rows if r["dataset"] == name] for name in scorer.datasets
    }
    for path, some in {PICTURE: rows, **pictures}.items():
        if shown := overview_rows(scorer, champion.scoring, some):
            overview(shown, folder / path)


def weights_of(place: stages.Place, result: TrialResult) -> Mapping[str, Any]:
    """The winner's weights, with those of its guide if it has one."""
    return packed(_weights(place, result.checkpoint), _weights(place, result.guide) if result.guide else None)


def _weights(place: stages.Place, name: str) -> dict[str, Any]:
    folder = place.artifacts / stages.CHECKPOINT / name
    artifact.verify(folder, stages.CHECKPOINT)
    return checkpoint.load_weights(folder / checkpoint.WEIGHTS)


def load(path: Path) -> list[Contender]:
    """What ``measure`` kept; nothing if test was not scored yet. Raises ``SearchError`` for a damaged file."""
    if not path.exists():
        return []
    return artifact.read_json(
        path, list[Contender], "the test scores of a sweep", "--resume the sweep to make them", SearchError
    )
