"""The label of a version: figures by hand, settings and data in words, nothing of test where nothing was measured."""

from typing import Any

import pytest
from tiny_training import tiny_config

from cddpm.search import registering
from cddpm.search.point import Point
from cddpm.search.trial import TrialResult


def _rows(*dice: float | None) -> list[dict[str, Any]]:
    return [{"dataset": "A", "volume": f"v{n}", "dice": value} for n, value in enumerate(dice)]


@pytest.fixture
def result() -> TrialResult:
    best = Point(1, {"scoring.guidance_scale": 0.5}, 0.51234, {"all": 0.1}, {"A": {"dice": 0.5}}, 1.0)
    return TrialResult(3, {"training.learning_rate": 0.003}, best, best, "c", None, "r", (), 1.0)


def _lines(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith("|")]


@pytest.mark.slow  # SciPy
def test_a_label_by_hand(result: TrialResult) -> None:
    config = tiny_config(name="demo", search__objective="dice")
    healthy = {"dataset": "healthy", "volume": "h", "dice": 0.9}
    text = registering.label(config, result, [*_rows(0.5, 0.5, None, float("nan")), healthy], _rows(0.25))
    assert _lines(text) == [
        "| mean over subjects | validation | test |",
        "| --- | --- | --- |",
        "| A dice | 0.500 [0.500, 0.500], 2 subjects | 0.250, 1 subject |",
    ]
    assert "of trial **demo/0003**, chosen by dice on validation (0.512)." in text
    assert "**Chosen by the search**: `training.learning_rate` 0.003, `scoring.guidance_scale` 0.5" in text
    assert f"**Data**: {config.data.modality} of {config.data.healthy}, fold {config.data.fold}" in text
    assert text.count("`training.learning_rate`") == 1
    other = text.split("**Otherwise than the defaults**: ")[1].split("\n")[0]
    assert len(other.split(", ")) > registering.MOST_SETTINGS
    assert "more in the package's `config.json`" in other


def test_without_a_test_and_without_rows_nothing_is_made_up(result: TrialResult) -> None:
    config = tiny_config(name="demo")
    assert "test" not in "".join(_lines(registering.label(config, result, _rows(0.5), [])))
    assert _lines(registering.label(config, result, [], [])) == []
