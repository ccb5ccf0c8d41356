"""Test volumes of a sweep: those of the table, with its Dice, and pictures within their budget."""

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pytest

from cddpm.report import viewer
from cddpm.report.viewer import Exhibit, packed
from cddpm.scoring import metrics
from cddpm.scoring.postprocess import component_rule, segment
from cddpm.search.record import SweepRecord

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def exhibits(finished: SweepRecord) -> list[Exhibit]:
    assert finished.champion is not None
    return list(viewer.exhibits(finished, finished.champion, finished.contenders[0]))


def test_best_median_and_worst_of_each_data_set(exhibits: list[Exhibit]) -> None:
    """Of three volumes all, of two the best and the worst."""
    assert [e.name.split(":")[0] for e in exhibits] == ["A, best", "A, median", "A, worst", "B, best", "B, worst"]


def test_they_have_the_dice_that_test_has(finished: SweepRecord, exhibits: list[Exhibit]) -> None:
    tested = finished.contenders[0]
    rows = {row["volume"]: row for row in tested.test.rows}
    for exhibit in exhibits:
        row = rows[exhibit.name.split(": ")[1].split(" (")[0]]
        assert exhibit.truth is not None
        assert metrics.dice(exhibit.segmentation, exhibit.truth) == row["dice"]
        above = exhibit.anomaly_map.astype(np.float64) > exhibit.threshold
        assert metrics.dice(above, exhibit.truth) == row["dice_before_component_filter"]
        scoring = tested.scoring
        kept = segment(
            np.ascontiguousarray(exhibit.anomaly_map.transpose(2, 0, 1)),
            exhibit.threshold,
            scoring.minimum_component_voxels,
            component_rule(scoring),
        )
        np.testing.assert_array_equal(kept.transpose(1, 2, 0), exhibit.segmentation)
        assert "model's grid (voxels of 1 x 1 x 1 mm)" in exhibit.note


def test_the_page_has_them_within_a_budget(
    finished: SweepRecord, exhibits: list[Exhibit], monkeypatch: pytest.MonkeyPatch
) -> None:
    body = viewer.section(finished).body
    assert body.count('class="exhibit"') == 5
    assert "Left out" not in body
    monkeypatch.setattr(viewer, "MOST_VOLUME_BYTES", sum(len(packed(e)) for e in exhibits) - 1)
    body = viewer.section(finished).body
    assert body.count('class="exhibit"') == 4
    assert f"Left out to keep this page small: {exhibits[-1].name}." in body
    monkeypatch.setattr(viewer, "MOST_VOLUME_BYTES", 0)
    assert 'id="viewer"' not in viewer.section(finished).body


def test_without_reconstructions_the_reason_is_told(finished: SweepRecord, long: SweepRecord, tmp_path: Path) -> None:
    copied = tmp_path / "sweeps" / finished.config.name  # taken away without its artifacts
    shutil.copytree(finished.folder, copied)
    body = viewer.section(dataclasses.replace(finished, folder=copied)).body
    assert "The volumes cannot be looked through: " in body
    assert 'class="exhibit"' not in body
    assert body.count("<img") == 2
    assert "when test is scored" in viewer.section(long).body


def test_pictures_of_each_data_set_within_a_budget(
    finished: SweepRecord, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert viewer.section(finished).body.count("<img") == 2
    largest = max(p.stat().st_size for p in (finished.folder / "pictures").iterdir())
    monkeypatch.setattr(viewer, "MOST_PICTURE_BYTES", largest)
    body = viewer.section(finished).body
    assert body.count("<img") == 1
    assert "B: left out to keep this page small" in body
    monkeypatch.undo()
    shutil.copy(finished.folder / "pictures/A.png", tmp_path / "champion.png")  # all that an older sweep has
    assert viewer.section(dataclasses.replace(finished, folder=tmp_path)).body.count("<img") == 1
