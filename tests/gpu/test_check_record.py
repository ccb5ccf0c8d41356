"""Records, time shares and the table of the GPU check: nothing that is entered is lost, nothing wrong passes."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
from gpu_check import record, table
from gpu_check.assignment import PARTS, SHARES, Assignment, allowance
from gpu_check.record import Record, held
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

NAMES = st.text(st.characters(min_codepoint=32, max_codepoint=126), min_size=1, max_size=120)


def entered(folder: Path) -> Record:
    """A record of everything."""
    made = Record(folder, "train")
    made.facts(device="CPU", torch="2.13.0")
    made.figure("forward pass", 149.0, "GFLOP", better="neither")
    for batch, rate in ((32, 100.0), (64, 180.0)):
        made.figure("loop", rate, "slices/s", f"batch {batch}")
        made.figure("memory", 10.0, "GB", f"batch {batch}", better="less")
    made.compare("gradient", 1e-6, 1e-4, "unet.out")
    made.curve("loss", [(64.0, 0.5), (128.0, 0.25)])
    made.table("kernels", [{"name": "conv", "ms": 1.5}])
    return made


@given(st.floats(), st.one_of(st.none(), st.floats(0, 1)))
def test_an_error_holds_only_if_it_is_a_number_within_its_limit(error: float, limit: float | None) -> None:
    assert held(error, limit) == (math.isfinite(error) and (limit is None or error <= limit))


def test_a_number_that_is_none_never_passes(tmp_path: Path) -> None:
    made = Record(tmp_path, "correct")
    made.compare("gradient", math.nan, None)
    assert not made.finish()
    (told,) = table.all_told(made.content, "faults")
    assert "gradient" in told


def test_a_step_that_fails_is_a_fault_with_its_name_and_the_next_one_runs(tmp_path: Path) -> None:
    made, after = Record(tmp_path, "train"), []
    with made.step("around"):
        with made.step("batch 64"):
            raise ValueError("no such batch\nmore")
        after.append(made.content["step"])
    assert after == ["around"]
    assert made.content["faults"] == ["batch 64: ValueError: no such batch"]
    assert not made.finish()
    assert record.read(made.path) == made.content


def test_what_was_entered_lies_on_the_disk_before_the_end(tmp_path: Path) -> None:
    made = entered(tmp_path)
    assert record.read(made.path) == made.content
    assert made.content["status"] == record.RUNNING
    assert [path.name for path in tmp_path.iterdir()] == ["train.json"]


def test_a_process_that_could_not_say_so_is_closed_with_the_step_it_was_in(tmp_path: Path) -> None:
    made = entered(tmp_path)
    with made.step("batch 128"):
        record.close(tmp_path, "train", record.OUT_OF_TIME, "ended after 9 s", "Thread 0x1")
        content = record.read(made.path)
    assert content is not None
    assert content["faults"] == ["ended after 9 s while: batch 128"]
    assert content["status"] == record.OUT_OF_TIME
    assert content["figures"] == made.content["figures"]
    assert content["errors"] == "Thread 0x1"


def test_a_process_that_wrote_nothing_is_told_too(tmp_path: Path) -> None:
    record.close(tmp_path, "learn", record.FAILED, "its process ended with code 1: ImportError", "")
    content = record.read(tmp_path / "learn.json")
    assert content is not None
    assert content["status"] == record.FAILED


@pytest.mark.slow
@given(st.floats(1, 1e5), st.lists(st.floats(0, 1), min_size=len(PARTS), max_size=len(PARTS)))
def test_parts_never_take_more_than_all_and_get_what_others_left(total: float, uses: list[float]) -> None:
    left = total
    for number, (part, use) in enumerate(zip(PARTS, uses, strict=True)):
        seconds = allowance(part, PARTS[number + 1 :], left)
        assert total * SHARES[part] / sum(SHARES.values()) <= seconds * (1 + 1e-9)
        left -= use * seconds
    assert left >= -1e-9 * total
    assert allowance(PARTS[-1], (), 60.0) == 60.0


def test_an_assignment_travels_whole(tmp_path: Path) -> None:
    sent = Assignment("train", "cpu", True, 12.5, str(tmp_path), "scratch", "hang")
    arrived = Assignment.from_json(sent.to_json())
    assert {**vars(arrived), "began": 0} == {**vars(sent), "began": 0}
    assert 12.0 < arrived.left() <= 12.5


FIGURES = st.fixed_dictionaries(
    {
        "name": NAMES,
        "at": st.one_of(st.just(""), NAMES),
        "value": st.one_of(st.none(), st.floats(-1e9, 1e9)),
        "unit": st.text(st.characters(min_codepoint=33, max_codepoint=126), max_size=8),
        "better": st.sampled_from(["more", "less", "neither"]),
    }
)
COMPARISONS = st.fixed_dictionaries(
    {
        "name": NAMES,
        "error": st.one_of(st.none(), st.floats(0, 1e9)),
        "limit": st.one_of(st.none(), st.floats(0, 1)),
        "note": NAMES,
        "held": st.booleans(),
    }
)
GAPS = st.fixed_dictionaries({"ms": st.floats(0, 1e6), "after": NAMES, "before": NAMES})
CONTENTS = st.builds(
    lambda **found: record.blank("reconstruct") | found,
    facts=st.fixed_dictionaries({"device": NAMES, "processor": NAMES}),
    figures=st.lists(FIGURES, max_size=5),
    comparisons=st.lists(COMPARISONS, max_size=3),
    findings=st.lists(NAMES, max_size=2),
    faults=st.lists(NAMES, max_size=2),
    curves=st.dictionaries(NAMES, st.lists(st.tuples(st.floats(0, 1e9), st.floats(0, 1e9)), min_size=1), max_size=1),
    tables=st.dictionaries(NAMES, st.lists(GAPS, max_size=2), max_size=1),
)


@pytest.mark.slow
@settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(CONTENTS, CONTENTS)
def test_no_line_of_the_table_is_wider_than_a_terminal(now: Any, then: Any) -> None:
    lines = [*table.lines([now]), *table.moves([now], [then])]
    assert [line for line in lines if len(line) > table.WIDTH] == []
    for told in (*now["findings"], *now["faults"]):
        assert "".join(told.split()) in "".join("".join(lines).split())


def test_rows_with_the_same_columns_are_one_grid(tmp_path: Path) -> None:
    lines = list(table.lines([entered(tmp_path).content]))
    assert sum("loop" in line for line in lines) == 1
    (row,) = [line for line in lines if "batch 64" in line]
    assert row.split() == ["batch", "64", "180.0", "10.00"]


def test_what_moved_is_told_and_what_did_not_is_counted(tmp_path: Path) -> None:
    then = entered(tmp_path).content
    now = json.loads(json.dumps(then))
    values = {("batch 32", "loop"): 120.0, ("batch 64", "loop"): 175.0, ("batch 64", "memory"): 12.0}
    for figure in now["figures"]:
        figure["value"] = values.get((figure["at"], figure["name"]), figure["value"])
    now["comparisons"][0].update(error=2e-3, held=False)
    now["status"] = record.FAILED
    text = "\n".join(table.moves([now], [then]))
    assert "train: running, now failed" in text
    assert "gradient: 1.0e-06 -> 2.0e-03 WRONG" in text
    told = [line.split() for line in text.splitlines() if "->" in line and "%" in line]
    assert [line[-3:] for line in told] == [["+20", "%", "better"], ["+20", "%", "worse"]]
    assert "3 figures moved by at most 5 %" in text


def test_another_device_and_figures_that_went_are_told(tmp_path: Path) -> None:
    then = entered(tmp_path).content
    now = json.loads(json.dumps(then))
    now["facts"]["device"] = "a GPU"
    del now["figures"][0]
    text = "\n".join(table.moves([now], [then]))
    assert "another device" in text
    assert "train: forward pass: gone" in text


def test_all_passed_only_if_every_part_is_there(tmp_path: Path) -> None:
    made = entered(tmp_path)
    assert made.finish()
    assert table.passed([made.content], ("train",))
    assert not table.passed([made.content], ("train", "learn"))
