"""The overview picture: which volumes, which slice, which way up."""

import numpy as np
import pytest
from matplotlib import image as picture

from cddpm.config import ScoringConfig
from cddpm.scoring.figures import OverviewRow, choose, overview, overview_rows, slice_to_show
from cddpm.scoring.score import Scorer, evaluate


def table(*values) -> list[dict]:
    return [{"volume": f"v{i}", "dice": value} for i, value in enumerate(values)]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ((0.1, 0.9, 0.5), ["best v1", "median v2", "worst v0"]),
        ((0.1, 0.9, 0.5, 0.4), ["best v1", "median v3", "worst v0"]),
        ((0.1, None, 0.5), ["best v2", "worst v0"]),
        ((0.3,), ["best v0"]),
        ((None,), []),
    ],
)
def test_best_median_and_worst(values, expected):
    assert [f"{label} {row['volume']}" for label, row in choose(table(*values))] == expected


def test_slice_with_most_lesion_else_most_anomaly():
    truth, scores = np.zeros((4, 3, 3), bool), np.zeros((4, 3, 3), np.float16)
    scores[3] = 0.5
    assert slice_to_show(truth, scores) == 3
    truth[1, 0, 0] = True
    assert slice_to_show(truth, scores) == 1


def make_row(image: np.ndarray) -> OverviewRow:
    nothing = np.zeros(image.shape, bool)
    return OverviewRow("best", "A", "v", None, 0.1, image, 0 * image, 0 * image, nothing, nothing)


@pytest.mark.slow
def test_front_is_up_and_the_patients_left_on_the_right(tmp_path):
    image = np.zeros((1, 40, 40), np.float32)
    image[0, 25:35, 5:15] = 1  # towards the left (H high), in front (W low)
    overview([make_row(image)], tmp_path / "sub" / "picture.png")
    drawn = picture.imread(tmp_path / "sub" / "picture.png")[:, :, :3]
    black = (drawn < 0.05).all(axis=2)
    rows = np.flatnonzero(black.mean(axis=1) > 0.5)  # where the four pictures lie
    columns = np.flatnonzero(black[rows[0] + 3])
    end = columns[np.flatnonzero(np.diff(columns) > 1)[0]]  # the first picture's last column
    inside = drawn[rows[0] : rows[-1] + 1, columns[0] : end + 1]
    white = np.argwhere((inside > 0.98).all(axis=2)) / np.array(inside.shape[:2])
    assert white.mean(axis=0) == pytest.approx([0.25, 0.75], abs=0.05)


@pytest.mark.slow
def test_an_overview_of_a_scored_cohort(store, reconstructions, tmp_path):
    scorer, scoring = Scorer(store, reconstructions, {"A": [0, 1, 2], "B": [3, 4]}), ScoringConfig()
    rows = overview_rows(scorer, scoring, evaluate(scorer, scoring, scorer.thresholds(scoring)).rows)
    assert [row.label for row in rows] == ["best", "median", "worst"]
    assert rows[0].dice >= rows[1].dice >= rows[2].dice
    overview(rows, tmp_path / "overview.png")
    assert picture.imread(tmp_path / "overview.png").std() > 0.05


def test_nothing_to_draw_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no volumes to draw"):
        overview([], tmp_path / "overview.png")
