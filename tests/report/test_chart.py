"""Charts: the page colours them, tooltips stand at their dots, two charts on a page do not meet."""

import re
import warnings
from xml.etree import ElementTree

import matplotlib as mpl
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from cddpm.report import chart as charts
from cddpm.report.chart import Chart

SVG = "{http://www.w3.org/2000/svg}"


def drawn(name: str, count: int = 3) -> str:
    with Chart(name, "three <dots>") as chart:
        x = np.arange(count)
        chart.axes.plot(x, x, color=charts.INK, label="line")
        chart.dots(x, x[::-1], [f"dot {i} & more" for i in x], 1, "dots")
        chart.mark([1.0], [1.0], "best", ["the best"])
        chart.legend()
    return chart.svg()


def test_all_colours_come_from_the_page() -> None:
    text = drawn("a")
    assert not re.findall(r"#[0-9a-f]{6}\b(?!\d)", re.sub(r'(id|href)="[^"]*"|url\([^)]*\)', "", text))
    assert {"var(--ink)", "var(--series2)", "var(--mark)", "var(--line)", "var(--soft)"} <= set(
        re.findall(r"var\(--\w+\)", text)
    )


def test_each_dot_has_its_tooltip() -> None:
    root = ElementTree.fromstring(drawn("a"))
    tips = {use: use.find(f"{SVG}title") for use in root.iter(f"{SVG}use")}
    told = [(float(use.get("x", "0")), title.text) for use, title in tips.items() if title is not None]
    assert [text for _, text in sorted(told)[:1] + sorted(told)[-1:]] == ["dot 0 & more", "dot 2 & more"]
    assert sorted(text for _, text in told) == ["dot 0 & more", "dot 1 & more", "dot 2 & more", "the best"]


VALUES = st.sampled_from([0.0, 1.0, -1.0, 0.25, 1e-9, 3e6, float("nan"), float("inf"), float("-inf")])


@pytest.mark.slow
@settings(max_examples=10, deadline=None)
@given(
    st.lists(st.tuples(VALUES, VALUES), max_size=12),
    st.sampled_from(["linear", "log"]),
    st.sampled_from(["dots", "hollow", "mark"]),
    st.booleans(),
)
@example([(0.0, 1.0)], "linear", "hollow", False)
@example([(1.0, 1.0)] * 2, "linear", "mark", True)
@example([(0.0, 0.0)], "log", "dots", False)
def test_every_mark_has_its_own_tooltip_whatever_is_drawn(
    points: list[tuple[float, float]], scale: str, way: str, beside: bool
) -> None:
    """None, one or many; equal, constant and missing values; what a scale cannot show has neither mark nor tooltip."""
    x, y = np.array(points, float).reshape(-1, 2).T
    tips = [f"{i}" for i in range(len(points))]
    with Chart("any", "any") as chart:
        if beside:
            chart.dots([1.0], [1.0], ["beside"], 1, hollow=True)
        if way == "mark":
            chart.mark(x, y, "marks", tips)
        else:
            chart.dots(x, y, tips, 0, "dots", hollow=way == "hollow")
        with warnings.catch_warnings(action="ignore"):
            chart.axes.set_xscale(scale)
        chart.legend()
    root = ElementTree.fromstring(chart.svg())
    told = [title.text for title in root.iter(f"{SVG}title")]
    seen = np.isfinite(x) & np.isfinite(y) & ((x > 0) | (scale == "linear"))
    assert told == ["beside"] * beside + [tip for tip, there in zip(tips, seen, strict=True) if there]


@pytest.mark.slow
def test_of_many_dots_a_picture() -> None:
    text = drawn("a", charts.MOST_DOTS + 1)
    assert "data:image/png;base64," in text
    assert "dot 7" not in text
    assert "data:image" not in drawn("a", charts.MOST_DOTS)


@pytest.mark.slow
def test_no_name_twice_on_a_page() -> None:
    names = re.findall(r'id="([^"]+)"', drawn("a") + drawn("b"))
    assert names
    assert len(set(names)) == len(names)


@pytest.mark.slow
def test_the_same_chart_every_time() -> None:
    assert drawn("a") == drawn("a")


def test_it_can_be_read_aloud_and_loads_nothing() -> None:
    root = ElementTree.fromstring(drawn("a"))
    assert (root.get("role"), root.get("aria-label")) == ("img", "three <dots>")
    assert root.get("viewBox")
    assert root.get("width") is None
    assert not [use for use in root.iter() if use.get("{http://www.w3.org/1999/xlink}href", "#")[0] not in "#d"]


def test_a_failure_while_drawing_leaves_no_style_behind() -> None:
    before = mpl.rcParams["font.size"]
    with pytest.raises(ZeroDivisionError), Chart("a", "b"):
        1 / (mpl.rcParams["font.size"] - 9)  # the size of charts
    assert mpl.rcParams["font.size"] == before
