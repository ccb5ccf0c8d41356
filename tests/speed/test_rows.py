"""Bars are held or missed as they say; sorting finds the same best Dice as the histogram."""

import numpy as np
import pytest
from speed.row import Row, worse
from speed.rows import _by_sorting

from cddpm.scoring.operating_point import best_dice, histogram


@pytest.mark.parametrize(
    ("measured", "sense", "held"),
    [(3000, "at least", True), (2999, "at least", False), (3000, "at most", True), (3001, "at most", False)],
)
def test_a_bar_is_held_or_missed(measured: float, sense: str, held: bool) -> None:
    row = Row("work", "trials/hour", measured, 3000, sense)
    assert row.held is held
    assert row.plain()["held"] is held


@pytest.mark.parametrize(
    ("unit", "sense", "measured", "before", "fallen"),
    [
        ("times faster", "at least", 7.0, 10.0, True),
        ("times faster", "at least", 8.0, 10.0, False),
        ("%", "at most", 1.4, 1.0, True),
        ("%", "at most", 1.3, 1.0, False),
        ("slices/s", "at least", 1.0, 10.0, False),
        ("times faster", "at least", 1.0, None, False),
    ],
)
def test_only_a_ratio_can_have_got_worse(
    unit: str, sense: str, measured: float, before: float | None, fallen: bool
) -> None:
    assert worse(Row("work", unit, measured, 1.0, sense), before) is fallen


def test_a_row_without_a_bar_is_neither() -> None:
    assert Row("work", "times", 1.0).held is None


@pytest.mark.parametrize("seed", range(5))
def test_sorting_and_histogram_agree_where_scores_are_equal_too(seed: int) -> None:
    random = np.random.default_rng(seed)
    scores = random.integers(0, 6, (4, 5, 6)).astype(np.float16) / 8
    truth = random.random(scores.shape) < 0.2 + 0.1 * scores
    plain = max(
        2 * (truth & (scores > t)).sum() / (truth.sum() + (scores > t).sum()) for t in np.unique(scores).tolist()
    )
    found = _by_sorting(scores.astype(np.float32).ravel(), truth.ravel())
    assert found == pytest.approx(plain, rel=1e-12)
    assert best_dice([[histogram(scores, truth)]]).dice == pytest.approx(plain, rel=1e-12)
