"""Who scores: processes only for batches, of as many CPUs as the training books, and always as this process would."""

import pickle
from collections.abc import Callable, Sequence
from typing import Any, Self

import pytest
from tiny_training import tiny_config

from cddpm.config import ExperimentConfig
from cddpm.scoring.score import Scorer
from cddpm.search import scoring_search
from cddpm.search.point import Point, PointScorer, Proposal

SPACE = {"scoring.guidance_scale": {"float": [0.0, 2.0]}, "scoring.residual": {"choice": ["l1", "l2"]}}


def config(batch: int, workers: int, trials: int = 9, **values: Any) -> ExperimentConfig:
    own = {"search__scoring_batch": batch, "compute__workers": workers, "search__scoring__trials": trials}
    return tiny_config(**own, search__scoring__space=SPACE, **values)


class Pool:
    """Stands for the pool of actors: a copy of the scorer for each, made as they make it."""

    counts: list[int] = []  # noqa: RUF012
    ended = 0

    def __init__(self, factory: PointScorer, count: int) -> None:
        Pool.counts.append(count)
        self.functions: list[Callable[[Proposal], Point]] = [
            pickle.loads(pickle.dumps(factory))() for _ in range(count)
        ]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        Pool.ended += 1

    def map(self, items: Sequence[Proposal]) -> list[Point]:
        return [self.functions[number % len(self.functions)](item) for number, item in enumerate(items)]


@pytest.fixture
def pools(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    monkeypatch.setattr(scoring_search, "ActorPool", Pool)
    monkeypatch.setattr(Pool, "counts", [])
    monkeypatch.setattr(Pool, "ended", 0)
    return Pool.counts


def rows(scorer: Scorer, settings: ExperimentConfig) -> list[dict[str, Any]]:
    with scoring_search.point_workers(scorer, settings) as score:
        points = scoring_search.search(score, settings, True)
    return [{k: v for k, v in p.row().items() if k != "seconds"} for p in points]


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (config(1, 4), []),
        (config(4, 1), []),
        (config(4, 4), [4]),
        (config(2, 4), [2]),
        (config(8, 4), [4]),
        (config(8, 1, compute__cpus_per_worker=3.5), [3]),
        (config(8, 2, compute__cpus_per_worker=0.5), []),
        (config(8, 4, trials=3), [3]),
        (config(8, 4, trials=1), []),
    ],
)
def test_how_many_processes(
    scorers: dict[bool, Scorer], pools: list[int], settings: ExperimentConfig, expected: list[int]
) -> None:
    with scoring_search.point_workers(scorers[True], settings):
        pass
    assert pools == expected
    assert Pool.ended == len(expected)


def test_without_a_space_no_process_is_started(scorers: dict[bool, Scorer], pools: list[int]) -> None:
    settings = tiny_config(search__scoring_batch=4, compute__workers=4)
    assert len(rows(scorers[True], settings)) == 1
    assert pools == []


@pytest.mark.slow
def test_processes_find_what_this_process_finds(scorers: dict[bool, Scorer], pools: list[int]) -> None:
    alone, together = config(4, 1), config(4, 4)
    assert rows(scorers[True], alone) == rows(scorers[True], together)
    assert pools == [4]


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(300)
def test_actors_find_what_this_process_finds(shared_ray: str, scorers: dict[bool, Scorer]) -> None:
    assert rows(scorers[True], config(4, 2)) == rows(scorers[True], config(4, 1))
