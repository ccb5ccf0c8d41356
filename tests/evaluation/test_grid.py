"""What is shown: hand-made texts, explained gaps, and blocks that fit."""

import pytest
from fold_results import SUBJECTS, fold_result, shifted, table_of

from cddpm.evaluation.grid import Grid, Line, Text, _letter, details, headline
from cddpm.published.numbers import CDDPM, DDPM
from cddpm.scoring.statistics import FoldResult


def texts(grid: Grid) -> dict[str, list[str]]:
    """Cells by label; labels of later lines get the method in front."""
    found, method = {}, ""
    for line in grid.lines:
        method = method if line.faint else line.labels[0]
        found[f"{method} {line.labels[0]}" if line.faint else method] = [cell.text for cell in line.cells]
    return found


def test_a_method_has_three_lines_number_interval_and_published() -> None:
    results = [shifted(DDPM, 0, 0.0, "Brats21"), shifted(DDPM, 1, 0.02, "Brats21")]
    found = texts(headline(table_of(results), ["dice"]))
    assert found[DDPM] == ["36.0±1.4"]  # 35 and 37
    assert found[f"{DDPM} ↳ published"] == ["44.25"]
    low, high = found[f"{DDPM} ↳ 95 % interval"][0].strip("[]").split(", ")
    assert 0 < float(low) < 36 < float(high) < 72


def test_what_others_got_is_a_line_of_its_own_with_its_source() -> None:
    results = [shifted(m, 0, 0.0, d) for m in (DDPM, CDDPM) for d in ("Brats21", "ATLAS_v2")]
    grid = headline(table_of(results), ["dice"])
    found = texts(grid)
    assert found[f"{CDDPM} ↳ re-run by others"] == ["41.5", "-"]
    assert f"{DDPM} ↳ re-run by others" not in found
    assert [line for line in grid.legend if "2409.19623" in line]
    alone = headline(table_of([shifted(DDPM, 0, 0.0, "Brats21")]), ["dice"])
    assert not [line for line in alone.legend if "re-run" in line]


def test_what_nobody_published_has_no_line_but_a_word() -> None:
    grid = headline(table_of([shifted("mine", 0, 0.1)]), ["dice"])
    assert set(texts(grid)) == {"mine", "mine ↳ 95 % interval"}
    assert any(line == "Nothing is published for mine on these data sets." for line in grid.legend)


def test_a_difference_is_marked_and_explained() -> None:
    grid = headline(table_of([shifted("base", 0, 0.0), shifted("up", 0, 0.1)], against="base"), ["dice"])
    found = texts(grid)
    assert (found["base"], found["up"]) == (["35.0"], ["45.0†"])
    assert any(line.startswith("† differs from base: two-sided paired permutation test") for line in grid.legend)
    assert not any("possible" in line for line in grid.legend)


def test_too_few_subjects_for_any_mark_are_told() -> None:
    """Three subjects reach 2 / 2^3 = 0.25 at best."""
    results = [fold_result(m, 0, {"a": 0.1 + s, "b": 0.2 + s, "c": 0.4 + s}) for m, s in (("base", 0), ("up", 0.3))]
    grid = headline(table_of(results, against="base"), ["dice"])
    assert "D: no † was possible; with 3 subjects the smallest corrected p is 0.25." in grid.legend


def test_empty_cells_carry_letters_that_the_legend_explains() -> None:
    results = [shifted("m", 0, 0.1), shifted("m", 1, 0.1), shifted("half", 0, 0.2)]
    grid = headline(table_of(results, methods=["absent"]), ["dice"])
    found = texts(grid)
    assert found["absent"] == ["- (a)"]
    assert found["half"] == ["55.0 (b)"]
    assert grid.legend[-2:] == ("(a) not run.", "(b) without fold 1 (not run).")


def test_a_missing_interval_carries_its_reason() -> None:
    grid = headline(table_of([fold_result("m", 0, {"a": 0.5})]), ["dice"])
    assert texts(grid)["m ↳ 95 % interval"] == ["- (a)"]
    assert "(a) one subject: an interval needs two." in grid.legend


def test_data_sets_without_the_measure_stay_out_of_the_headline() -> None:
    healthy = FoldResult("m", "IXI", 0, [{"volume": "h", "dice": None, "ssim": 0.8}], {"dice": None, "ssim": 0.8})
    table = table_of([shifted("m", 0, 0.1), healthy])
    assert headline(table, ["dice"]).head == ("D Dice",)
    assert [line.labels[0] for line in details(table, "IXI").lines] == ["ssim"]


def test_details_show_every_measure_with_a_direction_and_its_unit() -> None:
    measures: dict[str, float | None] = {
        "hd95": 12.34,
        "l1_ratio": 1.2345,
        "threshold": 0.2,
        "dice": 0.5,
        "l1": 0.01234,
        "false_positive_rate": 0.0012,
        "false_positive_ml": 0.045,
        "lesions_found": 12,
    }
    grid = details(table_of([FoldResult("m", "D", 0, [], measures)]), "D")
    assert [(*line.labels, line.cells[0].text) for line in grid.lines] == [
        ("dice", "% ↑", "50.0"),
        ("false_positive_ml", "ml ↓", "0.04"),
        ("false_positive_rate", "% ↓", "0.12"),
        ("hd95", "mm ↓", "12.3"),
        ("lesions_found", "lesions ↑", "12.0"),
        ("l1", "intensity ↓", "0.0123"),
        ("l1_ratio", "↑", "1.23"),
    ]


def test_what_no_model_looked_at_is_told_below_the_headline() -> None:
    numbers: dict[str, float | None] = {"dice": 0.5, "brain_unseen": 0.08, "brain_unseen_ml": 98.4, "lesion_ml": 9.0}
    of_lesions = FoldResult("m", "D", 0, [], {**numbers, "lesion_unseen_ml": 1.0})
    healthy = FoldResult("m", "H", 0, [], {"dice": None, "brain_unseen": 0.12, "brain_unseen_ml": 150.0})
    trifle = {"brain_unseen": 0.001, "brain_unseen_ml": 1.0, "lesion_unseen_ml": 0.01}
    grid = headline(table_of([of_lesions, healthy, FoldResult("m", "E", 0, [], {**numbers, **trifle})]), ["dice"])
    (line,) = [line for line in grid.legend if "window" in line]
    assert "per scan: D 98 ml of brain (8.0%), 1 ml of lesions (10.0%); H 150 ml of brain (12.0%). data." in line
    assert not [line for line in headline(table_of([shifted("m", 0, 0.1)]), ["dice"]).legend if "window" in line]


def test_one_fold_says_that_it_has_no_deviation() -> None:
    assert (
        headline(table_of([shifted("m", 0, 0.1)]), ["dice"])
        .legend[0]
        .startswith("Numbers of fold 0: one fold has no standard deviation; bold")
    )


def test_subjects_per_data_set_stand_in_the_legend() -> None:
    results = [shifted("m", 0, 0.1, "D"), fold_result("m", 0, {"a": 0.1, "b": 0.2}, "E")]
    legend = " ".join(headline(table_of(results), ["dice"]).legend)
    assert f"subjects: D {len(SUBJECTS)}, E 2." in legend


def grid_of(columns: int, together: int) -> Grid:
    cells = tuple(Text("12345", strong=True) for _ in range(columns))
    return Grid(("m",), tuple("abcdef"[:columns]), (Line(("name",), cells),), (), together)


@pytest.mark.parametrize(
    ("width", "sizes"), [(None, [6]), (55, [6]), (54, [4, 2]), (39, [4, 2]), (38, [2, 2, 2]), (5, [2, 2, 2])]
)
def test_blocks_fit_the_width_and_keep_data_sets_whole(width: int | None, sizes: list[int]) -> None:
    """Width: 4 for the label, 5 per cell, 3 per column and 1 at the end: 8 n + 8, so 56 for six, 40 for four."""
    width = None if width is None else width + 1
    assert [len(block.head) for block in grid_of(6, 2).blocks(width)] == sizes


def test_bold_text_may_need_more_room() -> None:
    assert len(grid_of(2, 1).blocks(24)) == 1
    assert len(grid_of(2, 1).blocks(24, strong_extra=4)) == 2


def test_letters_go_on_after_z() -> None:
    assert [_letter(i) for i in (0, 25, 26, 27, 52)] == ["a", "z", "aa", "ab", "ba"]
