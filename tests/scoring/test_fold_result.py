"""A fold's result survives being written, and is refused by name where it cannot be right."""

import json
import math
from pathlib import Path

import pytest

from cddpm.errors import ArtifactError
from cddpm.scoring.fold_result import FoldResult

RESULT = FoldResult("DDPM", "MSLUB", 1, [{"volume": "p1", "dice": 0.25, "hd95": None}], {"dice": 0.25, "hd95": None})


def test_a_result_comes_back_from_its_file_as_it_was(tmp_path: Path) -> None:
    RESULT.write(tmp_path / "a" / "result.json")
    assert FoldResult.read(tmp_path / "a" / "result.json") == RESULT


def test_values_are_the_defined_ones_under_the_subject_of_their_volume() -> None:
    rows = [{"volume": "a1", "subject": "a", "dice": 0.0}, {"volume": "b", "dice": 1}, {"volume": "c", "dice": None}]
    assert FoldResult("m", "d", 0, rows, {}).values("dice") == [("a", "a1", 0.0), ("b", "b", 1.0)]


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_numbers_that_are_none_are_refused_in_rows_and_measures(value: float) -> None:
    with pytest.raises(ValueError, match=r"DDPM on MSLUB, fold 1, volume 'p1': dice is"):
        FoldResult("DDPM", "MSLUB", 1, [{"volume": "p1", "dice": value}], {})
    with pytest.raises(ValueError, match="measures: dice is"):
        FoldResult("DDPM", "MSLUB", 1, [], {"dice": value})


def test_a_row_needs_a_volume_and_a_fold_is_not_negative() -> None:
    with pytest.raises(ValueError, match="a row without 'volume'; it has dice"):
        FoldResult("m", "d", 0, [{"dice": 0.5}], {})
    with pytest.raises(ValueError, match="fold -1"):
        FoldResult("m", "d", -1, [], {})


@pytest.mark.parametrize("text", ["", "[]", "{", '{"method": "m"}', RESULT.to_json().replace("0.25", "NaN")])
def test_a_damaged_file_is_told_by_name(tmp_path: Path, text: str) -> None:
    path = tmp_path / "result.json"
    path.write_text(text)
    with pytest.raises(ArtifactError, match=r"result\.json: not the result of a fold"):
        FoldResult.read(path)


def test_a_missing_file_is_told_by_name(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"absent\.json: the result of a fold cannot be read"):
        FoldResult.read(tmp_path / "absent.json")


def test_the_json_is_plain() -> None:
    raw = json.loads(RESULT.to_json())
    assert set(raw) == {"method", "dataset", "fold", "rows", "measures"}
    assert raw["rows"] == [{"volume": "p1", "dice": 0.25, "hd95": None}]
