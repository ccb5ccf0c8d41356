"""Charts: each mark has its tooltip, text is shown and never run, a figure in a page is what was drawn."""

import json

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from cddpm.report import chart as charts
from cddpm.report.chart import Chart, bars, chart, dots, line, mark, tip, told

VALUES = st.sampled_from([0.0, 1.0, -1.0, 0.25, 1e-9, 3e6, float("nan"), float("inf"), float("-inf")])


def drawn(*traces: object) -> Chart:
    return chart(traces, "title", "caption", "x", "y")


@pytest.mark.slow
@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(VALUES, VALUES), max_size=12), st.booleans())
@example([(0.0, 1.0)], False)
@example([(1.0, 1.0)] * 2, True)
def test_every_mark_has_its_own_tooltip_whatever_is_drawn(points: list[tuple[float, float]], marks: bool) -> None:
    """None, one or many; equal, constant and missing values; what cannot be shown has neither mark nor tooltip."""
    x, y = np.array(points, float).reshape(-1, 2).T
    tips = [f"{i}" for i in range(len(points))]
    made = mark(x, y, tips, "marks") if marks else dots(x, y, tips, "dots", charts.GREY)
    seen = np.isfinite(x) & np.isfinite(y)
    assert list(made.hovertext) == [t for t, there in zip(tips, seen, strict=True) if there]
    np.testing.assert_array_equal(made.x, x[seen])
    np.testing.assert_array_equal(made.y, y[seen])
    assert len(drawn(made).figure.data) == int(seen.any())


def test_a_line_keeps_its_gaps() -> None:
    made = line([1.0, 2.0, 3.0], [0.1, np.nan, 0.3], "line", charts.GREY)
    assert len(made.x) == 3
    assert made.hoverinfo == "skip"
    assert "%{y}" in line([1.0], [2.0], "line", charts.GREY, "%{y}").hovertemplate


def test_a_figure_in_a_page_is_what_was_drawn() -> None:
    text = drawn(line([1, 2], [3, 4], "a", charts.GREY), dots([], [], [], "none", charts.GREY)).json
    found = json.loads(text)
    assert [trace["name"] for trace in found["data"]] == ["a"]
    assert found["layout"]["xaxis"]["title"]["text"] == "x"
    assert "template" not in found["layout"]  # the page has one for all
    assert drawn(line([1, 2], [3, 4], "a", charts.GREY)).json == text


def test_text_is_shown_and_never_run() -> None:
    evil = "</script><b>&"
    text = drawn(dots([1], [1], [evil], evil, charts.GREY)).json
    assert "<" not in text
    assert json.loads(text)["data"][0]["name"] == "&lt;/script&gt;&lt;b&gt;&amp;"
    assert told("a\x00") == "a\\x00"


def test_a_long_tooltip_has_lines() -> None:
    lines = tip("several words & more " * 10).split("<br>")
    assert len(lines) > 3
    assert max(map(len, lines)) <= 60


def test_bars_go_downwards_with_their_texts() -> None:
    made = bars(["one", "two"], [0.0, 2.0], ["0 s", "2 s"], "title", "caption", "seconds").figure
    assert list(made.data[0].y) == ["one", "two"]
    assert list(made.data[0].text) == ["0 s", "2 s"]
    assert list(made.data[0].hovertext) == ["one: 0 s", "two: 2 s"]
    assert made.layout.yaxis.autorange == "reversed"
    assert made.layout.xaxis.range[1] > 2.0


@pytest.mark.parametrize("sums", [[0.0], [0.0, 0.0], [1.0]])
def test_bars_of_whatever_length(sums: list[float]) -> None:
    names = [str(index) for index, _ in enumerate(sums)]
    assert bars(names, sums, names, "title", "caption", "x").figure.layout.xaxis.range[1] > 0


def test_of_many_points_a_part_and_always_the_same() -> None:
    assert charts.a_part(5) == [0, 1, 2, 3, 4]
    some = charts.a_part(10 * charts.MOST_DOTS, 4)
    assert len(set(some)) == charts.MOST_DOTS // 4
    assert some == charts.a_part(10 * charts.MOST_DOTS, 4)
