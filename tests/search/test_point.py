"""A point is the same wherever it is scored: here, in a copy of the scorer, in another process."""

import pickle
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_training import tiny_config

from cddpm.errors import ConfigError, DataError, SearchError
from cddpm.reconstruct.reconstruction import Reconstruction
from cddpm.scoring import score_book
from cddpm.scoring.score import Scorer
from cddpm.scoring.score_book import ScoreBook
from cddpm.search import leaderboard, point, scoring_search
from cddpm.search.point import Point, PointScorer, Proposal, in_process, score_point, scoring_with

AIMS = [
    {"metric": "dice", "goal": "maximize"},
    {"metric": "healthy_false_positive_ml", "goal": "minimize"},
    {"metric": "seconds_per_volume", "goal": "minimize"},
]
SPACE = {
    "scoring.noise_levels": {"choice": [None, [10], [25]]},
    "scoring.guidance_scale": {"float": [0.0, 2.0]},
    "scoring.residual": {"choice": ["l1", "l2", "positive"]},
    "scoring.minimum_component_voxels": {"int": [0, 10]},
}


def config(trials: int = 12, **values: Any) -> Any:
    level = {"search__scoring__trials": trials, "search__scoring__space": SPACE}
    return tiny_config(**{**level, "search__objectives": AIMS, **values})


@pytest.fixture
def timed(scorers: dict[bool, Scorer], caches: dict[bool, Reconstruction]) -> Scorer:
    """Guided, with half a second for a forward pass of a volume."""
    cohort = {name: [case.index for case in scorers[True].cases(name)] for name in ("A", "B")}
    healthy = [case.index for case in scorers[True].cases("healthy")]
    return Scorer(scorers[True].store, caches[True], cohort, healthy, seconds_per_pass=0.5)


def test_the_objectives_in_their_order() -> None:
    values = {"seconds_per_volume": 3.0, "auroc": 0.9, "dice": 0.5, "healthy_false_positive_ml": 7.0}
    assert point.measured(config(), values) == [0.5, 7.0, 3.0]
    assert point.measured(tiny_config(search__objective="auprc"), {"dice": 0.5, "auprc": 0.25}) == [0.25]


def test_without_healthy_volumes_there_is_no_such_objective(scorers: dict[bool, Scorer]) -> None:
    unhealthy = {name: [case.index for case in scorers[False].cases(name)] for name in ("A", "B")}
    alone = Scorer(scorers[False].store, None, unhealthy)
    with pytest.raises(DataError, match="needs healthy validation volumes"):
        scoring_search.search(alone, config(), False)


def test_seconds_that_nobody_measured_are_an_error(scorers: dict[bool, Scorer]) -> None:
    with pytest.raises(SearchError, match="nobody measured"):
        scoring_search.search(scorers[True], config(), True)


@pytest.mark.slow
def test_a_search_with_several_objectives_keeps_the_value_of_each(timed: Scorer) -> None:
    points = scoring_search.search(timed, config(), True)
    assert len(points) == 12
    for p in points:
        assert p.values["dice"] == p.objective
        assert p.values["seconds_per_volume"] in (0.5, 1.0, 2.0)
        scoring = scoring_with(config(), p.params)
        segmented = [timed.segmentation(c.index, scoring, p.thresholds["all"]) for c in timed.cases("healthy")]
        voxels = np.mean([array.sum() for array in segmented])  # of 1 mm: a thousandth of a millilitre each
        assert p.values["healthy_false_positive_ml"] == pytest.approx(voxels / 1000)
    assert points == [
        # the same but for the clock
        type(p)(**{**p.row(), "seconds": points[p.number].seconds})
        for p in scoring_search.search(timed, config(), True)
    ]
    assert scoring_search.best(points).objective == max(p.objective for p in points)


@pytest.mark.slow
@pytest.mark.parametrize("sampler", ["tpe", "nsga-ii", "random"])
def test_the_front_grows_with_the_search(timed: Scorer, sampler: str) -> None:
    wanted = config(30, search__scoring__sampler=sampler)
    points = scoring_search.search(timed, wanted, True)
    front = leaderboard.front([p.values for p in points], wanted.search.aims)
    assert 2 <= len(front) < len(points)
    assert points[front[0]].objective == max(p.objective for p in points)


def test_a_grid_over_scoring_settings_ends_with_its_last_point(scorers: dict[bool, Scorer]) -> None:
    space = {
        "scoring.residual": {"choice": ["l1", "l2"]},
        "scoring.median_kernel": {"choice": [1, 3, 5], "if": {"scoring.residual": "l1"}},
    }
    grid = {"search__scoring__trials": 50, "search__scoring__space": space, "search__scoring__sampler": "grid"}
    wanted = tiny_config(**grid)
    points = scoring_search.search(scorers[True], wanted, True)
    assert points[0].params == {}  # which is residual l1, median 3: not tried twice
    assert sorted((p.params["scoring.residual"], p.params.get("scoring.median_kernel", 0)) for p in points[1:]) == [
        ("l1", 1),
        ("l1", 5),
        ("l2", 0),
    ]
    outside = tiny_config(scoring__residual="positive", **grid)
    assert len(scoring_search.search(scorers[True], outside, True)) == 5


PROPOSALS: list[Proposal] = [
    (3, {"scoring.guidance_scale": 1.5, "scoring.noise_levels": [25]}),
    (4, {"scoring.residual": "l2", "scoring.minimum_component_voxels": 4}),
]


def timeless(points: list[Point]) -> list[Point]:
    return [replace(point, seconds=0.0) for point in points]


def test_a_point_is_the_score_of_its_settings(scorers: dict[bool, Scorer]) -> None:
    config, (number, params) = tiny_config(), PROPOSALS[0]
    point = score_point(scorers[True], config, (number, params))
    scoring = config.scoring.model_copy(update={"guidance_scale": 1.5, "noise_levels": (25,)})
    score = scorers[True].score(scoring, "dice", ["A"])
    assert (point.number, point.params, point.objective) == (3, params, score.objective)
    assert (point.thresholds, point.datasets) == (score.thresholds, score.datasets)
    assert point.seconds > 0


def test_an_unpickled_copy_scores_the_same(scorers: dict[bool, Scorer]) -> None:
    here = in_process(scorers[True], tiny_config())(PROPOSALS)
    apply = pickle.loads(pickle.dumps(PointScorer(scorers[True], tiny_config())))()
    assert timeless([apply(proposal) for proposal in PROPOSALS]) == timeless(list(here))


def test_a_copy_has_the_cohort_and_none_of_the_memory(scorers: dict[bool, Scorer]) -> None:
    scorers[True].score(tiny_config().scoring)
    packed = pickle.dumps(scorers[True])
    copy = pickle.loads(packed)
    assert len(packed) < 2000
    assert copy.datasets == scorers[True].datasets == ("A", "B")
    for name in ("A", "B", "healthy"):
        assert [c.id for c in copy.cases(name)] == [c.id for c in scorers[True].cases(name)]


def test_copies_of_a_book_write_files_of_their_own(
    scorers: dict[bool, Scorer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(score_book, "REFRESH_SECONDS", 0.0)
    book = ScoreBook.open(scorers[True], tmp_path, "r", "s")
    apply = pickle.loads(pickle.dumps(PointScorer(book, tiny_config())))()
    there = [apply(proposal) for proposal in PROPOSALS]
    assert timeless(list(in_process(book, tiny_config())(PROPOSALS))) == timeless(there)
    assert book.found == len(PROPOSALS)
    book.score(tiny_config(scoring__median_kernel=5).scoring)
    assert len(list(book.folder.glob("*.jsonl"))) == 2


@pytest.mark.slow
def test_another_process_scores_the_same(scorers: dict[bool, Scorer]) -> None:
    here = in_process(scorers[True], tiny_config())(PROPOSALS)
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        there = list(pool.map(PointScorer(scorers[True], tiny_config())(), PROPOSALS))
    assert timeless(there) == timeless(list(here))


def test_a_point_that_cannot_be_is_refused(scorers: dict[bool, Scorer]) -> None:
    with pytest.raises(ConfigError, match=r"scoring\.noise_levels: 99"):
        score_point(scorers[True], tiny_config(), (1, {"scoring.noise_levels": [99]}))
    unknown = tiny_config(data__unhealthy=["A", "C"], search__datasets=["C"])
    with pytest.raises(DataError, match="data set 'C'"):
        score_point(scorers[True], unknown, (1, {}))


@pytest.mark.slow
def test_scoring_needs_no_network_and_no_sampler() -> None:
    """A process that scores points must stay small."""
    code = (
        "import sys, cddpm.search.point, cddpm.data.slices, cddpm.reconstruct.reconstruction\n"
        "print([name for name in ('torch', 'optuna', 'ray', 'mlflow') if name in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
