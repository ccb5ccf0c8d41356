"""The table in terminals of different width."""

import pytest
from fold_results import full_table

from cddpm.evaluation.terminal import show, show_details
from cddpm.published.numbers import CDDPM_ENSEMBLE
from cddpm.text import Console


def shown(width: int) -> str:
    console = Console(width=width, color_system=None)
    with console.capture() as capture:
        show(full_table(), console)
        show_details(full_table(), "WMH", console)
    return capture.get()


@pytest.mark.parametrize("width", [100, 140])
def test_nothing_is_cut_and_no_line_is_too_wide(width: int) -> None:
    text = shown(width)
    assert max(map(len, text.splitlines())) <= width
    assert "…" not in text
    for part in ("Beware: these volumes are synthetic", CDDPM_ENSEMBLE, "ATLAS_v2 Dice", "53.37", "WMH: all measures"):
        assert part in text


def test_brackets_are_no_markup() -> None:
    assert "[low, high]: 95 % bootstrap interval" in shown(140)
