"""Charts as plotly figures: data, names and tooltips are given here, the look (colours of the page) in ``chart.js``.

Colours of data can be read on a light and on a dark ground. Optuna's own figures are drawn from a study: a sweep's folder holds
none, and they know neither data sets nor trials with a search of their own.
"""

import html
import random
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import compress
from typing import Any

import numpy as np
import plotly.graph_objects as go
import plotly.io
from numpy.typing import ArrayLike

from cddpm.text import printable

SERIES = ("#4a8fd6", "#d08038", "#45a06c", "#9a6bd0")
MARK, GREY = "#e0457b", "#7d8896"
MOST_DOTS = 1000
"""Of one chart; more make browsers slow."""
HEIGHT = 330
"""Pixels."""
_TIP_WIDTH = 40
"""Characters of a line of a tooltip, so that it fits a narrow window."""


@dataclass(frozen=True)
class Chart:
    """A figure with what it shows, in one line and in full; the line stands for it where it cannot be seen."""

    figure: go.Figure
    title: str
    caption: str
    height: int = HEIGHT

    @property
    def json(self) -> str:
        """Data and layout, as they may stand inside a script element; the page has the template."""
        drawn = self.figure.to_dict()
        drawn["layout"].pop("template", None)
        return plotly.io.to_json(drawn, validate=False).replace("<", "\\u003c")


def chart(
    traces: Iterable[Any], title: str, caption: str, x: str, y: str, height: int = HEIGHT, **layout: Any
) -> Chart:
    """``traces`` that have data, over the axes ``x`` and ``y``; ``layout`` in plotly's words."""
    axes = go.Layout(template={}, xaxis_title_text=told(x), yaxis_title_text=told(y), **layout)
    return Chart(go.Figure([trace for trace in traces if len(trace.x)], axes), title, caption, height)


def told(text: str) -> str:
    """Text for plotly, which takes some HTML."""
    return html.escape(printable(text), quote=False)


def tip(text: str) -> str:
    """Text as a tooltip of several lines."""
    return "<br>".join(told(line) for line in textwrap.wrap(text, _TIP_WIDTH))


def a_part(count: int, series: int = 1) -> list[int]:
    """Which of ``count`` points are drawn where a chart has so many ``series`` of them; always the same."""
    return sorted(random.Random(0).sample(range(count), min(count, MOST_DOTS // series)))


def dots(x: ArrayLike, y: ArrayLike, tips: Iterable[str], name: str, colour: str, **look: Any) -> go.Scatter:
    """Dots with a tooltip each; a point that is not finite has neither. ``look`` is that of plotly's markers."""
    across, up = np.asarray(x, float), np.asarray(y, float)
    seen = np.isfinite(across) & np.isfinite(up)
    size, opacity = (5, 0.5) if across.size > 100 else (7, 0.8)
    return go.Scatter(
        x=across[seen],
        y=up[seen],
        mode="markers",
        marker={"color": colour, "size": size, "opacity": opacity, **look},
        hovertext=[tip(text) for text in compress(tips, seen)],
        hoverinfo="text",
        name=told(name),
        legendgroup=told(name),
        showlegend=True,
    )


def mark(x: ArrayLike, y: ArrayLike, tips: Iterable[str], name: str) -> go.Scatter:
    """Points that matter most, as diamonds."""
    return dots(x, y, tips, name, MARK, symbol="diamond", size=11, opacity=1)


def line(x: ArrayLike, y: ArrayLike, name: str, colour: str, hover: str = "", **look: Any) -> go.Scatter:
    """A line, with gaps where a value is not finite.

    ``hover`` is plotly's template of a tooltip; without it there is none. ``look``: as plotly has it, such as
    ``line_shape="hv"`` for steps.
    """
    return go.Scatter(
        x=np.asarray(x, float),
        y=np.asarray(y, float),
        **{"mode": "lines", "line_color": colour, "line_width": 2, "showlegend": True, **look},
        **({"hovertemplate": f"{hover}<extra></extra>"} if hover else {"hoverinfo": "skip"}),
        name=told(name),
        legendgroup=told(name),
    )


def bars(
    names: Sequence[str], values: Sequence[float], texts: Sequence[str], title: str, caption: str, x: str
) -> Chart:
    """One bar per name, downwards, with its text at the end."""
    room = 1.05 + 0.05 * max(map(len, texts))
    shown = [f"{name}: {text}" for name, text in zip(names, texts, strict=True)]
    return chart(
        [
            go.Bar(
                x=list(values),
                y=[told(name).replace(", ", ",<br>", 1) for name in names],
                orientation="h",
                marker_color=SERIES[0],
                text=[told(text) for text in texts],
                textposition="outside",
                cliponaxis=False,
                hovertext=[tip(text) for text in shown],
                hoverinfo="text",
            )
        ],
        title,
        caption,
        x,
        "",
        height=90 + 34 * len(names),
        xaxis_range=[0, room * max(*values, 1e-9)],
        yaxis_autorange="reversed",
        yaxis_showgrid=False,
    )
