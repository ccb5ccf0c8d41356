"""The Pareto front against all pairs, and over the points of a sweep's trials."""

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
from cddpm.search import leaderboard, pareto, report, trial
from cddpm.search.scoring_search import Point
from cddpm.search.trial import TrialResult
from cddpm.text import Console

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
    found = pareto.front(points, AIMS)
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
    aims = [pareto.Aim("a", goals[0]), pareto.Aim("b", goals[1])]
    assert sorted(pareto.front([{"a": a, "b": b} for a, b in table], aims)) == slow


def test_by_hand() -> None:
    points = [point(0.5, 3, 1), point(0.6, 3, 1), point(0.4, 1, 2), point(0.6, 3, 1), point(0.4, 2, 2)]
    assert pareto.front(points, AIMS) == [1, 2]
    assert pareto.front([], AIMS) == []
    assert pareto.front(points, AIMS[:1]) == [1]


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
    front = pareto.members(tmp_path, config, leaderboard.results(tmp_path))
    assert [(m["trial"], m["number"]) for m in front] == [(0, 1), (0, 0), (2, 1)]
    assert front[2]["params"] == {"training.learning_rate": 0.01, "scoring.residual": "l2"}
    kept: dict[str, Any] = json.loads(pareto.save(tmp_path, config, front).read_text())
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
    assert [m["trial"] for m in pareto.members(tmp_path, config, leaderboard.results(tmp_path))] == [0]
