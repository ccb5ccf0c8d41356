"""The inner search: the configuration first, the same points for the same seed, objectives that can be recomputed."""

import pickle
from collections.abc import Sequence
from typing import Any

import optuna
import pytest
from tiny_training import tiny_config

from cddpm.config import ExperimentConfig
from cddpm.scoring.score import Scorer
from cddpm.search import scoring_search
from cddpm.search import space as spaces
from cddpm.search.point import Point, Proposal, in_process, scoring_with
from cddpm.search.sampler import Sampler
from cddpm.search.scoring_search import GUIDANCE
from cddpm.seeds import seed_of
from cddpm.training.loop import Interrupted

SPACE = {
    "scoring.noise_levels": {"choice": [None, [10], [25]]},
    "scoring.guidance_scale": {"float": [0.0, 2.0]},
    "scoring.residual": {"choice": ["l1", "l2", "positive"]},
    "scoring.minimum_component_voxels": {"int": [0, 10]},
}


def config(**values: Any) -> ExperimentConfig:
    level = {"trials": 8, "space": SPACE, **values.pop("level", {})}
    return tiny_config(**{f"search__scoring__{name}": value for name, value in level.items()}, **values)


def plain(points: list[Point]) -> list[dict[str, Any]]:
    return [{k: v for k, v in p.row().items() if k != "seconds"} for p in points]


def test_the_first_point_is_the_configuration_itself(scorers: dict[bool, Scorer]) -> None:
    points = scoring_search.search(scorers[True], config(), True)
    assert [p.number for p in points] == list(range(8))
    assert points[0].params == {}
    assert points[0].objective == scorers[True].score(config().scoring, "dice", ["A"]).objective
    assert all(set(p.params) == set(SPACE) for p in points[1:])


def test_points_carry_their_values_and_the_statistics_that_a_prediction_needs(scorers: dict[bool, Scorer]) -> None:
    space = {"scoring.normalise": {"choice": ["none", "healthy-z"]}, "scoring.combine": {"choice": ["mean", "minimum"]}}
    points = scoring_search.search(scorers[True], config(level={"space": space}), True)
    assert {p.params.get("scoring.normalise", "none") for p in points} == {"none", "healthy-z"}
    for point in points:
        assert (point.statistics is not None) == (point.params.get("scoring.normalise") == "healthy-z")
        assert point.values["dice"] == point.objective
        assert point.values["healthy_false_positive_ml"] >= 0


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["dice", "auprc"])
@pytest.mark.parametrize("datasets", [["A"], []])
def test_every_point_can_be_recomputed(scorers: dict[bool, Scorer], objective: str, datasets: list[str]) -> None:
    settings = config(search__objective=objective, search__datasets=datasets)
    for point in scoring_search.search(scorers[True], settings, True):
        again = scorers[True].score(scoring_with(settings, point.params), objective, datasets or ("A", "B"))
        assert (point.objective, point.thresholds, point.datasets) == (
            again.objective,
            again.thresholds,
            again.datasets,
        )
        assert point.objective == pytest.approx(
            sum(point.datasets[n][objective] for n in datasets or ("A", "B")) / (len(datasets) or 2)
        )


@pytest.mark.slow
def test_same_seed_same_points(scorers: dict[bool, Scorer]) -> None:
    first, again, other = (plain(scoring_search.search(scorers[True], config(seed=s), True)) for s in (3, 3, 4))
    assert first == again
    assert first[0] == other[0]
    assert first[1:] != other[1:]


def test_guidance_is_not_searched_without_condition_dropout(scorers: dict[bool, Scorer]) -> None:
    start = [{"scoring.guidance_scale": 1.5, "scoring.residual": "l2"}]
    points = scoring_search.search(scorers[False], config(level={"start": start}), False)
    assert len(points) == 8
    assert all(GUIDANCE not in p.params for p in points)
    assert points[1].params["scoring.residual"] == "l2"


def test_start_points_come_second(scorers: dict[bool, Scorer]) -> None:
    start = [{"scoring.guidance_scale": 0.25}, {"scoring.noise_levels": [25]}]
    points = scoring_search.search(scorers[True], config(level={"start": start}), True)
    assert points[1].params[GUIDANCE] == 0.25
    assert points[2].params["scoring.noise_levels"] == [25]


def test_without_a_space_the_configuration_is_all(scorers: dict[bool, Scorer]) -> None:
    points = scoring_search.search(scorers[True], config(level={"space": {}}), True)
    assert [p.params for p in points] == [{}]
    only_guidance = config(level={"space": {GUIDANCE: SPACE[GUIDANCE]}})
    assert len(scoring_search.search(scorers[False], only_guidance, False)) == 1


@pytest.mark.parametrize("batch", [2, 3, 20])
def test_batches_try_as_many_points_and_each_can_be_recomputed(scorers: dict[bool, Scorer], batch: int) -> None:
    settings, sizes = config(search__scoring_batch=batch), []

    def score(proposals: Sequence[Proposal]) -> list[Point]:
        sizes.append(len(proposals))
        return list(in_process(scorers[True], settings)(proposals))

    points = scoring_search.search(score, settings, True)
    assert sizes == {2: [1, 2, 2, 2, 1], 3: [1, 3, 3, 1], 20: [1, 7]}[batch]
    assert [p.number for p in points] == list(range(8))
    for point in points:
        scoring = scoring_with(settings, point.params)
        assert point.objective == scorers[True].score(scoring, "dice", ["A"]).objective


@pytest.mark.slow
def test_who_scores_a_batch_and_in_which_order_changes_nothing(scorers: dict[bool, Scorer]) -> None:
    settings = config(search__scoring_batch=3, level={"trials": 14})

    def backwards(proposals: Sequence[Proposal]) -> list[Point]:
        copy = pickle.loads(pickle.dumps(scorers[True]))
        return list(in_process(copy, settings)(proposals[::-1]))[::-1]

    here = scoring_search.search(scorers[True], settings, True)
    assert plain(scoring_search.search(backwards, settings, True)) == plain(here)
    assert len({str(p.params) for p in here}) == 14  # the liar keeps a batch from asking for one point twice


@pytest.mark.slow
def test_a_batch_of_one_is_the_search_one_by_one(scorers: dict[bool, Scorer]) -> None:
    """The sampler's own loop, written out."""
    settings, space = config(level={"trials": 13}), config().search.scoring.space
    sampler = Sampler(settings.search.scoring, seed_of(settings.seed, "scoring search"), lasting=True)
    study = optuna.create_study(direction="maximize", sampler=sampler)
    study.enqueue_trial(spaces.point(space, spaces.defaults(space, settings)))
    expected = []
    for number in range(13):
        trial = study.ask()
        expected.append(spaces.suggest(space, trial, settings))
        study.tell(trial, scorers[True].score(scoring_with(settings, expected[number]), "dice", ["A"]).objective)
    points = scoring_search.search(scorers[True], settings, True)
    assert [p.params for p in points[1:]] == expected[1:]


@pytest.mark.slow
def test_searching_finds_more(scorers: dict[bool, Scorer]) -> None:
    points = scoring_search.search(scorers[True], config(level={"trials": 25}), True)
    best = scoring_search.best(points)
    assert best.objective == max(p.objective for p in points) > points[0].objective
    assert best.params[GUIDANCE] > 1  # the drawn unconditional predictions keep the lesion


def test_the_earliest_of_equals_is_best() -> None:
    points = [Point(n, {}, value, {}, {}, 0.0) for n, value in enumerate([0.1, 0.5, 0.5, 0.2])]
    assert scoring_search.best(points).number == 1


def test_progress_and_stop(scorers: dict[bool, Scorer]) -> None:
    seen: list[tuple[int, int, float]] = []
    points = scoring_search.search(scorers[True], config(), True, lambda *a: seen.append(a))
    assert [s[:2] for s in seen] == [(n, 8) for n in range(1, 9)]
    assert [s[2] for s in seen] == [max(p.objective for p in points[:n]) for n in range(1, 9)]
    with pytest.raises(Interrupted):
        scoring_search.search(scorers[True], config(), True, stop=lambda: len(seen) > 0)
