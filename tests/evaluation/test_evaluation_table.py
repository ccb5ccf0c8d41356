"""The table's numbers against hand-worked ones; what is missing is explained, what is compared is compared fairly."""

import csv
import io

import pytest
from fold_results import fold_result, shifted, table_of

from cddpm.errors import DataError
from cddpm.evaluation.table import csv_text, in_percent, shown_unit
from cddpm.published.numbers import CDDPM, DDPM
from cddpm.scoring.statistics import FoldResult


def test_a_cell_holds_mean_and_deviation_over_folds_and_an_interval_over_subjects() -> None:
    table = table_of([fold_result("m", 0, {"a": 0.1, "b": 0.3}), fold_result("m", 1, {"a": 0.5, "b": 0.7})])
    cell = table.cells["m", "D", "dice"]
    assert cell.spread.mean == pytest.approx(0.4)  # folds: 0.2 and 0.6
    assert cell.spread.std == pytest.approx(0.08**0.5)
    assert cell.interval.subjects == 2  # a 0.3, b 0.5, not four volumes
    assert (cell.interval.low, cell.interval.high) == (pytest.approx(0.3), pytest.approx(0.5))


def test_eight_subjects_that_all_gain_differ_from_the_method_compared_with() -> None:
    """Exact p 2 / 2^8 = 1/128; Holm over three comparisons: 3/128 for both that differ, 1 for the equal one."""
    results = [shifted("base", 0, 0.0), shifted("up", 0, 0.1), shifted("down", 0, -0.05), shifted("same", 0, 0.0)]
    table = table_of(results, against="base")
    up, down, same = (table.cells[name, "D", "dice"] for name in ("up", "down", "same"))
    assert up.comparison is not None
    assert down.comparison is not None
    assert same.comparison is not None
    assert (up.comparison.p, up.comparison.adjusted) == (pytest.approx(1 / 128), pytest.approx(3 / 128))
    assert down.comparison.adjusted == pytest.approx(3 / 128)
    assert up.comparison.difference == pytest.approx(0.1)
    assert same.comparison.adjusted == 1.0
    assert [table.differs(cell) for cell in (up, down, same)] == [True, True, False]
    assert table.cells["base", "D", "dice"].comparison is None


def test_holm_counts_the_methods_of_one_data_set_and_measure() -> None:
    results = [shifted(m, 0, s, d) for m, s in (("base", 0.0), ("up", 0.1)) for d in ("D", "E", "F")]
    comparison = table_of(results, against="base").cells["up", "E", "dice"].comparison
    assert comparison is not None
    assert comparison.adjusted == comparison.p == pytest.approx(1 / 128)


def test_the_best_is_the_highest_or_lowest_as_the_measure_says() -> None:
    results = [shifted(name, 0, s, measure=m) for m in ("dice", "hd95") for name, s in (("low", 0.0), ("high", 0.5))]
    by_method = {
        name: FoldResult(name, "D", 0, [], {m: r.measures[m] for r in results if r.method == name for m in r.measures})
        for name in ("low", "high")
    }
    table = table_of(list(by_method.values()))
    assert [table.cells[name, "D", "dice"].best for name in ("low", "high")] == [False, True]
    assert [table.cells[name, "D", "hd95"].best for name in ("low", "high")] == [True, False]


def test_nothing_is_best_among_equals_or_alone() -> None:
    assert not table_of([shifted("m", 0, 0.1)]).cells["m", "D", "dice"].best
    equal = table_of([shifted("m", 0, 0.1), shifted("n", 0, 0.1)])
    assert not any(cell.best for cell in equal.cells.values())


def test_a_pooled_number_has_no_interval_and_no_test() -> None:
    """The data set's number is not the mean of its volumes: 0.9, not 0.5."""
    pooled = [FoldResult(m, "D", 0, [{"volume": "a", "auprc": 0.5}], {"auprc": 0.9}) for m in ("m", "n")]
    cell = table_of(pooled, against="n").cells["m", "D", "auprc"]
    assert (cell.interval.low, cell.interval.subjects, cell.comparison) == (None, 0, None)
    assert cell.interval.note == "a number of the whole data set, no mean over its volumes"


def test_missing_runs_folds_and_undefined_numbers_are_told() -> None:
    nothing = [FoldResult("never", "D", k, [{"volume": "a", "dice": None}], {"dice": None}) for k in (0, 1)]
    results = [shifted("m", 0, 0.1), shifted("m", 1, 0.1), shifted("half", 0, 0.2), *nothing]
    table = table_of(results, methods=["absent", "m"], against="m")
    assert table.methods == ("absent", "m", "half", "never")
    notes = {method: table.cells[method, "D", "dice"].note for method in table.methods}
    assert notes == {
        "absent": "not run",
        "m": "",
        "half": "without fold 1 (not run)",
        "never": "undefined in every fold",
    }
    assert table.cells["absent", "D", "dice"].comparison is None


def test_subjects_of_one_method_only_are_named() -> None:
    one = fold_result("m", 0, {"a": 0.1, "b": 0.2, "c": 0.3})
    other = fold_result("n", 0, {"a": 0.1, "b": 0.3, "c": None, "d": 0.5})
    comparison = table_of([one, other], against="n").cells["m", "D", "dice"].comparison
    assert comparison is not None
    assert (comparison.subjects, comparison.left_out) == (2, ("c", "d"))


def test_the_order_of_results_and_of_volumes_changes_no_number() -> None:
    results = [shifted(m, k, s) for m, s in (("base", 0.0), ("up", 0.1)) for k in (0, 1)]
    turned = [FoldResult(r.method, r.dataset, r.fold, r.rows[::-1], r.measures) for r in reversed(results)]
    first, second = (table_of(rs, methods=["base", "up"], against="base") for rs in (results, turned))
    assert csv_text(first) == csv_text(second)


def test_a_fold_given_twice_or_an_unknown_method_is_refused() -> None:
    with pytest.raises(DataError, match="m on D, fold 0: given twice"):
        table_of([shifted("m", 0, 0.1), shifted("m", 0, 0.1)])
    with pytest.raises(DataError, match="method 'x' is to be compared with, but has no row; there are m"):
        table_of([shifted("m", 0, 0.1)], against="x")


def test_columns_about_the_mean_over_volumes_are_no_measures() -> None:
    measures: dict[str, float | None] = {"hd95": 4.0, "volumes": 3, "dice": 0.5, "dice_std": 0.1, "dice_volumes": 3}
    assert table_of([FoldResult("m", "D", 0, [], measures)]).measures == ("dice", "volumes", "hd95")


def test_measures_stand_in_the_order_of_the_glossary_whatever_the_order_in_results() -> None:
    expected = (
        "dice",
        "auprc",
        "hd95",
        "lesion_recall_below_0.1ml",
        "lesion_recall_0.1_to_1ml",
        "lesion_recall_1_to_10ml",
        "lesion_recall_from_10ml",
        "dice_at_fpr_1pct",
        "dice_at_fpr_5pct",
        "dice_at_fpr_10pct",
    )
    measures: dict[str, float | None] = dict.fromkeys(sorted(expected), 0.5)
    assert table_of([FoldResult("m", "D", 0, [], measures)]).measures == expected


def test_shares_are_told_in_percent_and_other_numbers_in_their_unit() -> None:
    assert [in_percent(m) for m in ("dice", "auprc_pooled", "l1_ratio", "hd95", "volumes")] == [
        True,
        True,
        *[False] * 3,
    ]
    assert [shown_unit(m) for m in ("dice_at_fpr_5pct", "l1_ratio", "hd95")] == ["%", "", "mm"]


def test_the_csv_has_one_line_per_number_in_the_unit_that_it_names() -> None:
    results = [shifted(DDPM, 0, 0.0, "Brats21"), shifted("m", 0, 0.1, "Brats21")]
    lines = list(csv.DictReader(io.StringIO(csv_text(table_of(results, against=DDPM, datasets=["Brats21", "MSLUB"])))))
    assert [(line["method"], line["dataset"]) for line in lines] == [
        (method, dataset) for dataset in ("Brats21", "MSLUB") for method in (DDPM, "m")
    ]
    base, mine, absent = lines[0], lines[1], lines[2]
    assert (base["mean"], base["unit"], base["published"], base["published_std"]) == ("35.0", "%", "44.25", "")
    assert (mine["mean"], mine["difference"], mine["best"], mine["against"]) == ("45.0", "10.0", "1", DDPM)
    assert float(mine["p_holm"]) == pytest.approx(1 / 128)
    assert (base["rerun"], base["rerun_source"]) == ("", "")
    assert (absent["mean"], absent["published"], absent["folds"]) == ("", "4.8", "0")
    assert absent["note"].startswith("not run")


def test_what_others_got_has_columns_of_its_own() -> None:
    lines = list(csv.DictReader(io.StringIO(csv_text(table_of([shifted(CDDPM, 0, 0.0, "MSLUB")])))))
    assert [(line["published"], line["rerun"]) for line in lines] == [("10.71", "5.6")]
    assert "MCDDPM" in lines[0]["rerun_source"]
