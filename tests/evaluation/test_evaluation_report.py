"""Markdown that GitHub draws and a terminal shows aligned; the table in terminals of different width."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fold_results import full_table, shifted, table_of

from cddpm.config import DataConfig, load
from cddpm.evaluation.plan import Plan
from cddpm.evaluation.report import document, show, summary, window_of, write
from cddpm.published.numbers import CDDPM_ENSEMBLE
from cddpm.text import Console
from cddpm.tracking.provenance import Provenance


def blocks(text: str) -> list[list[str]]:
    """Every table as its lines."""
    return [part.splitlines() for part in text.split("\n\n") if part.startswith("|")]


def test_every_line_of_a_table_has_the_same_cells_and_the_same_length() -> None:
    for block in blocks(document(full_table(), "Benchmark")):
        assert len({len(line) for line in block}) == 1
        assert len({line.count("|") for line in block}) == 1
        assert re.fullmatch(r"(\|-+:?)+\|", block[1])


def test_no_line_is_wider_than_asked_for() -> None:
    for width in (100, 140):
        assert max(map(len, document(full_table(), "Benchmark", width=width).splitlines())) <= width
    assert [len(blocks(summary(full_table(), width=w))) for w in (None, 100)] == [1, 2]


def test_the_best_is_bold_and_the_published_number_stands_below() -> None:
    lines = blocks(summary(full_table(), width=None))[0]
    cells = {line.split("|")[1].strip(): [c.strip() for c in line.split("|")[2:-1]] for line in lines[-3:]}
    assert cells[CDDPM_ENSEMBLE] == ["**45.5±0.7**"] * 8
    assert cells["↳ published"] == ["53.37", "58.84", "11.51", "11.13", "19.99", "22.21", "9.88", "9.33"]


def test_the_header_says_what_the_numbers_are_of() -> None:
    real = Provenance("the published data sets", True, "8 x H200", "abc123", {"torch": "2.13"})
    phantom, own = summary(full_table()), summary(replace(full_table(), provenance=real))
    assert "- **Data:** phantom\n- **Beware:** these volumes are synthetic." in phantom
    assert "synthetic" not in own
    for text in ("the published data sets", "8 x H200", "abc123", "torch 2.13", "**Folds:** 0, 1"):
        assert text in own


@pytest.mark.parametrize(
    ("settings", "window"),
    [
        (
            {},
            "the published window of 192x192x100 voxels of 1 mm around the middle of the brain (96x96x50 after rescaling)",
        ),
        (
            {"volume_shape": (192, 192, None), "rescale_factor": 3},
            "all of each brain: every axial slice, through windows of 192x192 voxels of 1 mm around the middle of the brain "
            "(64x64 after rescaling), blended where a plane needs several",
        ),
        (
            {"centre": "scan", "voxel_size_mm": None},
            "the published window of 192x192x100 voxels as stored around the middle of the scan (96x96x50 after rescaling)",
        ),
        (
            {"voxel_size_mm": 2.0},
            "a window of 192x192x100 voxels of 2 mm around the middle of the brain (96x96x50 after rescaling)",
        ),
        (
            {"volume_shape": (96, 96, 48), "voxel_size_mm": 2.0, "rescale_factor": 1},
            "a window of 96x96x48 voxels of 2 mm around the middle of the brain (96x96x48 after rescaling)",
        ),
    ],
)
def test_the_window_is_told(settings: dict[str, Any], window: str) -> None:
    assert window_of(DataConfig.model_validate(settings)) == window


@pytest.mark.parametrize("where", ["data_dir", "table", "phantom"])
def test_tables_of_every_data_set_tell_their_window(where: str, tmp_path: Path) -> None:
    (tmp_path / "study.csv").touch()
    named = {
        "data_dir": {"data.data_dir": str(tmp_path)},
        "table": {"data.table": str(tmp_path / "study.csv")},
        "phantom": {},
    }[where]
    file = Path(__file__).parents[2] / "tune_configs" / "ddpm.yaml"
    for shape, told in (
        ([192, 192, 100], "the published window of 192x192x100"),
        ([192, 192, None], "all of each brain"),
    ):
        config = load(file, {**named, "data.volume_shape": shape, "output_dir": str(tmp_path / "out")})
        written = write(Plan("evaluation", "one", {"one": [config]}, "one"), []).markdown.read_text()
        (line,) = re.findall(r"^- \*\*Window:\*\* (.*(?:\n  .*)*)", written, re.MULTILINE)
        assert told in " ".join(line.split())


def test_the_source_of_published_numbers_is_named() -> None:
    text = " ".join(summary(full_table()).split())
    assert "published: Behrendt et al., preprint arXiv 2312.04215 v1; real data" in text


def test_wrapped_lines_begin_no_list_of_their_own() -> None:
    """The name of a method has a plus sign between spaces; a line that began with it would become a list."""
    for width in range(60, 130):
        for line in summary(full_table(), width=width).splitlines():
            assert not re.match(r"  ([-+*#>]|\d+[.)]) ", line), (width, line)


def test_a_pipe_in_a_name_does_not_cut_its_cell() -> None:
    text = summary(table_of([shifted("a|b", 0, 0.1)]), ["dice"])
    block = blocks(text)[0]
    assert block[2].startswith("| a\\|b ")
    assert len({line.replace("\\|", "").count("|") for line in block}) == 1


def test_a_table_without_numbers_says_so() -> None:
    assert summary(table_of([])).endswith("No method has a number here.")


def shown(width: int) -> str:
    console = Console(width=width, color_system=None)
    with console.capture() as capture:
        show(full_table(), console)
    return capture.get()


@pytest.mark.parametrize("width", [100, 140])
def test_nothing_is_cut_and_no_line_is_too_wide(width: int) -> None:
    text = shown(width)
    assert max(map(len, text.splitlines())) <= width
    assert "…" not in text
    for part in ("Beware: these volumes are synthetic", CDDPM_ENSEMBLE, "ATLAS_v2 Dice", "53.37"):
        assert part in text


def test_brackets_are_no_markup() -> None:
    assert "[low, high]: 95 % bootstrap interval" in shown(140)
