"""The leaderboard has every trial once, best first; the gap to test is told with what it is measured against."""

import re

import pytest

from cddpm.report import standing
from cddpm.search.record import SweepRecord


def first_cells(body: str) -> list[str]:
    return [re.sub("<[^>]+>", "", cell) for cell in re.findall(r'<th scope="row".*?</th>', body)]


@pytest.mark.slow
def test_every_trial_once_best_first(long: SweepRecord) -> None:
    names = first_cells(standing.leaderboard(long).body)
    finished = [t.name for t in long.finished]
    assert names[: len(finished)] == finished
    assert sorted(names) == [t.name for t in long.trials]
    assert names[-1] == "0007"  # failed


def test_a_failure_is_told_not_run(long: SweepRecord) -> None:
    body = standing.leaderboard(long).body
    assert "the loss became nan &lt;at once&gt;" in body
    assert "<at once>" not in body


@pytest.mark.slow
def test_the_champion_is_named_once_test_was_scored(finished: SweepRecord, long: SweepRecord) -> None:
    assert finished.champion is not None
    assert first_cells(standing.leaderboard(finished).body)[0] == f"{finished.champion.name} champion"
    assert "champion" not in standing.leaderboard(long).body


@pytest.mark.slow
def test_the_gap_to_test_by_hand(finished: SweepRecord) -> None:
    body = standing.gap(finished).body
    winner, plain = finished.contenders[:2]
    test = (winner.test.aggregates["A"]["dice"] + winner.test.aggregates["B"]["dice"]) / 2
    assert f"{winner.validation:.3f} on validation and {test:.3f} on test ({test - winner.validation:+.3f})" in body
    other = (plain.test.aggregates["A"]["dice"] + plain.test.aggregates["B"]["dice"]) / 2 - plain.validation
    assert f"The rest, {test - winner.validation - other:+.3f}," in body
    rows = {f"{c.name}" for c in finished.contenders}
    assert set(first_cells(body)) == rows == {"champion", "unswept defaults", "intensity threshold"}


def test_what_is_missing_is_said(long: SweepRecord, empty: SweepRecord) -> None:
    assert "Test was not scored" in standing.gap(long).body
    assert "No trial has begun" in standing.leaderboard(empty).body
