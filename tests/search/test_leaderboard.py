"""The leaderboard names every trial once, best first."""

import csv
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from cddpm import artifact
from cddpm.errors import SearchError
from cddpm.search import leaderboard, trial
from cddpm.search.scoring_search import Point
from cddpm.search.trial import TrialResult


def a_result(number: int, objective: float, **params: Any) -> TrialResult:
    default = Point(0, {}, objective / 2, {"A": 0.1}, {"A": {"dice": objective / 2}}, 0.1)
    best = Point(4, {"scoring.residual": "l2"}, objective, {"A": 0.2}, {"A": {"dice": objective}}, 0.1)
    return TrialResult(number, params, default, best, "c", None, "r", ("checkpoint",), 12.5)


def write(sweep: Path, number: int, name: str, content: Any) -> None:
    artifact.write_json(sweep / "trials" / f"{number:04d}" / name, content)


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    for number, objective in ((0, 0.3), (3, 0.5), (4, 0.5), (11, 0.4)):
        result = a_result(number, objective, **{"training.learning_rate": 10.0**-number})
        write(tmp_path, number, trial.RESULT, asdict(result))
    for number, objective in ((1, 0.1), (5, 0.2), (3, 0.9)):  # 3 finished after all
        row = {"number": number, "params": {"seed": number}, "objective": objective, "images": 512.0}
        write(tmp_path, number, trial.STOPPED, row)
    write(tmp_path, 2, trial.FAILED, {"number": 2, "error": "the loss became nan"})
    write(tmp_path, 7, trial.CONFIG, {})  # interrupted: neither ended nor failed
    return tmp_path


def test_finished_trials_best_first_the_earlier_of_equals_before(sweep: Path) -> None:
    assert [r.number for r in leaderboard.results(sweep)] == [3, 4, 11, 0]
    assert leaderboard.results(sweep)[0] == a_result(3, 0.5, **{"training.learning_rate": 1e-3})


def test_each_trial_once_finished_then_stopped_then_failed(sweep: Path) -> None:
    rows = leaderboard.rows(sweep)
    assert [r.name for r in rows] == ["0003", "0004", "0011", "0000", "0005", "0001", "0002"]
    assert [r.state for r in rows] == ["finished"] * 4 + ["stopped early"] * 2 + ["failed"]
    assert [r.validation for r in rows] == [0.5, 0.5, 0.4, 0.3, None, None, None]
    assert rows[0].settings == {"training.learning_rate": 1e-3, "scoring.residual": "l2"}
    assert rows[4].note == "preview 0.200 after 512 images"
    assert rows[6].note == "the loss became nan"


def test_stopped_trials_the_furthest_first_and_only_without_a_result(sweep: Path) -> None:
    write(sweep, 8, trial.STOPPED, {"number": 8, "params": {}, "objective": 0.05, "images": 1024.0})
    assert [s.number for s in leaderboard.stops(sweep)] == [8, 5, 1]
    (sweep / "trials/0008" / trial.STOPPED).write_text('{"number": 8}')
    with pytest.raises(SearchError, match=r"0008/stopped\.json: not the record of a stopped trial .*; delete it"):
        leaderboard.rows(sweep)


def test_an_empty_sweep_has_no_rows(tmp_path: Path) -> None:
    assert leaderboard.results(tmp_path) == leaderboard.rows(tmp_path) == leaderboard.stops(tmp_path) == []


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"number": 1}', "3"])
def test_a_damaged_result_is_named(sweep: Path, text: str) -> None:
    path = sweep / "trials" / "0004" / trial.RESULT
    path.write_text(text)
    with pytest.raises(SearchError, match=r"0004/result\.json: not a trial's result .*; delete it"):
        leaderboard.results(sweep)


def test_the_csv_has_a_column_per_setting(sweep: Path, tmp_path: Path) -> None:
    rows = leaderboard.rows(sweep)
    tested = leaderboard.Row("champion = 0003", "finished", 0.5, {"A": 0.45, "B": 0.4}, rows[0].settings, 12.5)
    leaderboard.write_csv(tmp_path / "board.csv", [tested, *rows[1:]])
    with (tmp_path / "board.csv").open(newline="") as stream:
        table = list(csv.DictReader(stream))
    assert len(table) == 7
    assert table[0]["A"] == "0.45"
    assert table[0]["scoring.residual"] == "l2"
    assert table[1]["B"] == table[6]["validation"] == ""
    assert [row["name"] for row in table[1:3]] == ["0004", "0011"]
