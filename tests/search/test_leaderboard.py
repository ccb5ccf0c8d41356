"""The leaderboard names every trial once, best first."""

import csv
import json
from dataclasses import asdict
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_training import tiny_config

from cddpm import artifact
from cddpm.config import ObjectiveConfig
from cddpm.errors import SearchError
from cddpm.search import leaderboard, record, report, trial
from cddpm.search.leaderboard import Row
from cddpm.search.point import Point
from cddpm.search.trial import TrialResult
from cddpm.text import Console


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
    assert [r.number for r in record.results(sweep)] == [3, 4, 11, 0]
    assert record.results(sweep)[0] == a_result(3, 0.5, **{"training.learning_rate": 1e-3})


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
    assert [r.name for r in leaderboard.rows(sweep) if r.state == "stopped early"] == ["0008", "0005", "0001"]
    (sweep / "trials/0008" / trial.STOPPED).write_text('{"number": 8}')
    with pytest.raises(SearchError, match=r"0008/stopped\.json: not the record of a stopped trial .*; delete it"):
        leaderboard.rows(sweep)


def test_an_empty_sweep_has_no_rows(tmp_path: Path) -> None:
    assert record.results(tmp_path) == leaderboard.rows(tmp_path) == record.trials_of(tmp_path) == []


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"number": 1}', "3"])
def test_a_damaged_result_is_named(sweep: Path, text: str) -> None:
    path = sweep / "trials" / "0004" / trial.RESULT
    path.write_text(text)
    with pytest.raises(SearchError, match=r"0004/result\.json: not a trial's result .*; delete it"):
        record.results(sweep)


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


AIMS = (
    ObjectiveConfig(metric="dice", goal="maximize"),
    ObjectiveConfig(metric="healthy_false_positive_ml", goal="minimize"),
    ObjectiveConfig(metric="seconds_per_volume", goal="minimize"),
)


def point(dice: float, ml: float, seconds: float) -> dict[str, float]:
    return {"dice": dice, "healthy_false_positive_ml": ml, "seconds_per_volume": seconds}


def beats(one: dict[str, float], other: dict[str, float]) -> bool:
    """By the definition of dominance."""
    signs = {aim.metric: 1 if aim.goal == "maximize" else -1 for aim in AIMS}
    gains = [signs[metric] * (one[metric] - other[metric]) for metric in signs]
    return min(gains) >= 0 and max(gains) > 0


@pytest.mark.parametrize("seed", range(6))
def test_the_front_is_what_nothing_beats(seed: int) -> None:
    table = np.random.default_rng(seed).integers(0, 6, (60, 3)).astype(float)
    points = [point(*row) for row in table]
    slow = [i for i, p in enumerate(points) if not any(beats(q, p) for q in points) and p not in points[:i]]
    found = leaderboard.front(points, AIMS)
    assert sorted(found) == slow
    assert [points[i]["dice"] for i in found] == sorted((points[i]["dice"] for i in found), reverse=True)


@pytest.mark.parametrize("goals", list(product(["maximize", "minimize"], repeat=2)))
def test_every_goal_has_its_better_side(goals: tuple[Any, Any]) -> None:
    table = np.random.default_rng(0).integers(0, 12, (60, 2)).astype(float)  # with ties and equal points
    signed = table * [1 if goal == "maximize" else -1 for goal in goals]
    slow = [
        i
        for i, one in enumerate(signed)
        if not any((o >= one).all() and ((o > one).any() or j < i) for j, o in enumerate(signed) if j != i)
    ]
    aims = [leaderboard.Aim("a", goals[0]), leaderboard.Aim("b", goals[1])]
    assert sorted(leaderboard.front([{"a": a, "b": b} for a, b in table], aims)) == slow


def test_by_hand() -> None:
    points = [point(0.5, 3, 1), point(0.6, 3, 1), point(0.4, 1, 2), point(0.6, 3, 1), point(0.4, 2, 2)]
    assert leaderboard.front(points, AIMS) == [1, 2]
    assert leaderboard.front([], AIMS) == []
    assert leaderboard.front(points, AIMS[:1]) == [1]


def written(sweep: Path, number: int, rows: list[dict[str, float]]) -> None:
    points = [Point(i, {"scoring.residual": "l2"} if i else {}, r["dice"], {}, {}, 0.1, r) for i, r in enumerate(rows)]
    params = {"training.learning_rate": 10.0**-number}
    result = TrialResult(number, params, points[0], points[0], "c", None, "r", (), 1.0)
    artifact.write_json(trial.folder_of(sweep, number) / trial.RESULT, asdict(result))
    artifact.write_json(trial.folder_of(sweep, number) / trial.POINTS, [p.row() for p in points])


def test_the_front_of_a_sweep_names_trial_and_settings(tmp_path: Path) -> None:
    config = tiny_config(search__objectives=[aim.model_dump() for aim in AIMS])
    written(tmp_path, 0, [point(0.5, 3, 1), point(0.6, 4, 1)])
    written(tmp_path, 2, [point(0.5, 3, 1), point(0.4, 0, 1), point(0.3, 2, 1)])
    front = leaderboard.front_members(tmp_path, config)
    assert [(m["trial"], m["number"]) for m in front] == [(0, 1), (0, 0), (2, 1)]
    assert front[2]["params"] == {"training.learning_rate": 0.01, "scoring.residual": "l2"}
    kept: dict[str, Any] = json.loads(leaderboard.save_front(tmp_path, config, front).read_text())
    assert kept["objectives"][1] == {"metric": "healthy_false_positive_ml", "goal": "minimize"}
    assert kept["points"] == front
    console = Console(record=True, width=160)
    console.print(report.pareto_front(config, front))
    text = console.export_text()
    assert "3 points" in text
    assert "learning_rate 0.01, residual l2" in text


def test_points_without_the_objectives_values_are_left_out(tmp_path: Path) -> None:
    config = tiny_config(search__objectives=[aim.model_dump() for aim in AIMS])
    written(tmp_path, 0, [point(0.5, 3, 1)])
    written(tmp_path, 1, [{"dice": 0.9}])
    assert [m["trial"] for m in leaderboard.front_members(tmp_path, config)] == [0]


CONTENDERS = [
    Row("champion = 0001", "finished", 0.51234, {"A": 0.4, "B": 0.3}, {"training.learning_rate": 0.00123}, 9.0),
    Row("0000", "finished", 0.4, None, {"scoring.residual": "l1"}, 9.0),
    Row("0002", "failed", None, None, {}, note="the loss became nan"),
    Row("intensity threshold", "for comparison", 0.2, {"A": 0.1, "B": None}, {}),
]


def test_the_table_by_hand() -> None:
    text = leaderboard.note(tiny_config(name="demo", search__objective="dice"), CONTENDERS)
    assert text.split("\n\n")[1].splitlines() == [
        "| trial | validation dice | test dice: A | test dice: B | state | settings |",
        "| --- | ---: | ---: | ---: | --- | --- |",
        "| champion = 0001 | 0.512 | 0.400 | 0.300 | finished | learning_rate 0.00123 |",
        "| 0000 | 0.400 | - | - | finished | residual l1 |",
        "| 0002 | - | - | - | failed | as configured |",
        "| intensity threshold | 0.200 | 0.100 | - | for comparison | as configured |",
    ]
    assert "more, in" not in text
    assert "[Registered model `cddpm`](#/models/cddpm)" in text
    assert "`cddpm report demo`" in text
    assert "``tags.`cddpm.sweep` = 'demo' and tags.`cddpm.kind` = 'trial'``" in text


def test_of_many_trials_the_best_and_every_contender() -> None:
    many = [Row(f"{n:04d}", "finished", 1 - n / 100, None, {}) for n in range(30)]
    text = leaderboard.note(tiny_config(), [*many, CONTENDERS[-1]])
    assert text.count("\n| 00") == leaderboard.MOST_TRIALS
    assert "| intensity threshold |" in text
    assert "And 20 more, in `leaderboard.csv`" in text


def test_a_pipe_in_a_value_breaks_no_table() -> None:
    row = Row("0000", "finished", 0.5, None, {"a.b": "x|y\nz"})
    assert r"| b x\|y z |" in leaderboard.note(tiny_config(), [row])
