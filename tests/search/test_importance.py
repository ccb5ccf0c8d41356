"""Importance: what makes the objective vary is found, the rest is not, and little data says nothing."""

import random

import pytest
from tiny_training import tiny_config

from cddpm.search import importance as importances
from cddpm.search.importance import Observation, importance

SPACE = tiny_config(
    search__scoring__space={
        "scoring.guidance_scale": {"float": [0.0, 2.0]},
        "scoring.residual": {"choice": ["l1", "l2"]},
        "scoring.noise_levels": {"choice": [None, [10], [25]]},
    }
).search.scoring.space


def observations(count: int, seed: int = 0) -> list[Observation]:
    """The objective is a parabola over the guidance scale; the levels add a little; the residual nothing."""
    draw, found = random.Random(seed), []
    for _ in range(count):
        settings = {
            "scoring.guidance_scale": draw.uniform(0, 2),
            "scoring.residual": draw.choice(["l1", "l2"]),
            "scoring.noise_levels": draw.choice([None, [10], [25]]),
        }
        value = -((settings["scoring.guidance_scale"] - 1) ** 2) + 0.15 * (settings["scoring.noise_levels"] == [25])
        found.append((settings, value))
    return found


@pytest.mark.slow
def test_what_matters_comes_first() -> None:
    shares = importance(SPACE, observations(80))
    assert list(shares) == ["scoring.guidance_scale", "scoring.noise_levels", "scoring.residual"]
    assert shares["scoring.guidance_scale"] > 0.7
    assert shares["scoring.residual"] < 0.05
    assert sum(shares.values()) == pytest.approx(1.0)


def test_same_input_same_shares_also_from_a_drawn_part(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importances, "MOST", 30)
    rows = observations(60)
    assert importance(SPACE, rows) == importance(SPACE, rows)


def test_too_few_or_all_the_same_say_nothing() -> None:
    assert importance(SPACE, observations(importances.FEWEST - 1)) == {}
    assert importance(SPACE, [(settings, 0.5) for settings, _ in observations(20)]) == {}
    assert importance({}, [({}, 0.5), ({}, 0.1)] * 10) == {}


def test_a_setting_that_some_lack_or_have_outside_of_the_space_is_left_out() -> None:
    rows = observations(30)
    lacking = [({k: v for k, v in rows[0][0].items() if k != "scoring.residual"}, rows[0][1]), *rows[1:]]
    assert "scoring.residual" not in importance(SPACE, lacking)
    outside = [({**rows[0][0], "scoring.noise_levels": [10, 25]}, rows[0][1]), *rows[1:]]
    assert set(importance(SPACE, outside)) == {"scoring.guidance_scale", "scoring.residual"}
