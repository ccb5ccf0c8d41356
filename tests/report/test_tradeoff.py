"""Trade-offs: the kept front is shown as it is, or one is read off what was recorded."""

import dataclasses

import pytest

from cddpm.errors import SearchError
from cddpm.report import landscape
from cddpm.report.chart import MOST_DOTS
from cddpm.search.leaderboard import Aim
from cddpm.search.record import SweepRecord

POINTS = [
    {"trial": 0, "number": 3, "params": {"scoring.residual": "l1"}, "values": {"dice": 0.5, "seconds_per_volume": 2.0}},
    {"trial": 1, "number": 7, "params": {"scoring.residual": "l2"}, "values": {"dice": 0.4, "seconds_per_volume": 1.0}},
]
OBJECTIVES = [{"metric": "dice", "goal": "maximize"}, {"metric": "seconds_per_volume", "goal": "minimize"}]


def test_objectives_by_name_alone_know_their_better_side() -> None:
    names = ["dice", "healthy_false_positive_ml", "seconds_per_volume", {"metric": "auprc"}, OBJECTIVES[1]]
    goals = ["maximize", "minimize", "minimize", "maximize", "minimize"]
    assert [a.goal for a in landscape.aims(names)] == goals
    assert landscape.aims(OBJECTIVES)[0] == Aim("dice", "maximize")


def test_a_front_is_a_chart_and_a_table(long: SweepRecord) -> None:
    section = landscape.tradeoff(dataclasses.replace(long, pareto={"objectives": OBJECTIVES, "points": POINTS}))
    (chart,), body = section.charts, section.body
    assert [tip.split(":")[0] for tip in chart.figure.data[-1].hovertext] == [
        "trial 0, setting 3",
        "trial 1, setting 7",
    ]
    assert "seconds_per_volume (minimize)" in body
    assert "0001 / 7" in body


@pytest.mark.parametrize("raw", [{}, {"objectives": ["dice"]}, {"objectives": OBJECTIVES, "points": [{"trial": 0}]}])
def test_a_damaged_front_is_named(long: SweepRecord, raw: dict[str, object]) -> None:
    with pytest.raises(SearchError, match=r"pareto\.json: not a Pareto front"):
        landscape.tradeoff(dataclasses.replace(long, pareto=raw))


def test_one_objective_is_set_against_healthy_scans(long: SweepRecord, empty: SweepRecord) -> None:
    (chart,) = landscape.tradeoff(long).charts
    tried, front, marks = chart.figure.data
    assert marks.name == "not dominated"
    assert marks.x.tolist() == front.x.tolist() == sorted(marks.x)
    assert len(tried.hovertext) == len(tried.x) == MOST_DOTS
    assert "no Pareto front" in landscape.tradeoff(empty).body
    assert (
        "No point"
        in landscape.tradeoff(dataclasses.replace(long, pareto={"objectives": OBJECTIVES, "points": []})).body
    )
