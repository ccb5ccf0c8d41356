"""A point is the same wherever it is scored: here, in a copy of the scorer, in another process."""

import pickle
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

import pytest
from tiny_training import tiny_config

from cddpm.errors import ConfigError, DataError
from cddpm.scoring import score_book
from cddpm.scoring.score import Scorer
from cddpm.scoring.score_book import ScoreBook
from cddpm.search.point import Point, PointScorer, Proposal, in_process, score_point

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
