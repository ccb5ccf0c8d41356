"""Charts as SVG inside a page: drawn by Matplotlib, coloured by the page's style sheet (light or dark), with tooltips.

Colours are stand-ins that become CSS variables. Dots of large tables are kept as a picture inside the chart, in tones that
can be read on both grounds.
"""

import io
import re
import warnings
from collections.abc import Sequence
from typing import Any
from xml.etree import ElementTree

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.collections import PathCollection
from matplotlib.figure import Figure
from numpy.typing import ArrayLike, NDArray

INK, SOFT, LINE, GROUND, MARK = "#010101", "#020202", "#030303", "#040404", "#050505"
SERIES = ("#060606", "#070707", "#080808", "#090909")
_VARIABLES = dict(
    zip(
        (INK, SOFT, LINE, GROUND, MARK, *SERIES),
        ("ink", "soft", "line", "ground", "mark", "series1", "series2", "series3", "series4"),
        strict=True,
    )
)
_TONES = ("#4a8fd6", "#d08038", "#45a06c", "#9a6bd0")
"""As ``SERIES``, where dots become a picture."""
MOST_DOTS = 400
"""More dots than this become a picture."""
_EDGE = 1e-6
"""Part of the axes' size by which rounding may put a mark outside."""
WIDTH, HEIGHT = 4.6, 2.9
"""Inches of 72 units, as the page scales them."""

_SVG, _XLINK = "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"
_NEEDLESS = re.compile(r"font-family: [^;\"]*; | transform=\"rotate\(-0 [^)]*\)\"")
_GENERATED = re.compile(r"^[A-Za-z0-9.]+_\d+$")
_STYLE = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.labelsize": 9,
    "xtick.labelsize": 8.5,
    "ytick.labelsize": 8.5,
    "legend.fontsize": 8.5,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "xtick.color": LINE,
    "ytick.color": LINE,
    "xtick.labelcolor": SOFT,
    "ytick.labelcolor": SOFT,
    "axes.edgecolor": LINE,
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "grid.color": LINE,
    "grid.linewidth": 0.5,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "legend.labelcolor": INK,
    "lines.linewidth": 1.6,
    "axes.unicode_minus": True,
}


class Chart:
    """One chart; a context manager while it is drawn on ``axes``, then ``svg``.

    ``name`` must be the only one of its page; ``label`` says in words what is seen, for those who cannot.
    """

    def __init__(self, name: str, label: str, height: float = HEIGHT) -> None:
        self.name, self.label = name, label
        self._style = rc_context({**_STYLE, "svg.hashsalt": name})
        self._height = height
        self._tips: list[tuple[PathCollection, Sequence[str]]] = []

    def __enter__(self) -> "Chart":
        self._style.__enter__()
        self.figure = Figure(figsize=(WIDTH, self._height), layout="constrained")
        self.axes: Axes = self.figure.add_subplot()
        return self

    def __exit__(self, *error: Any) -> None:
        if error[0] is None:
            with warnings.catch_warnings():  # a chart without a value that its scale can show is an empty one
                warnings.filterwarnings("ignore", "Data has no positive values", UserWarning)
                self._drawn = self._save()
        self._style.__exit__(*error)

    def dots(
        self,
        x: ArrayLike,
        y: ArrayLike,
        tips: Sequence[str] = (),
        series: int = 0,
        label: str | None = None,
        marker: str = "o",
        hollow: bool = False,
    ) -> None:
        """Dots with a tooltip each; of many dots a picture without."""
        across, up = np.asarray(x, float), np.asarray(y, float)
        many = across.size > MOST_DOTS
        colour = (_TONES if many else SERIES)[series % len(SERIES)]
        look = {"facecolors": "none", "edgecolors": colour} if hollow else {"color": colour, "linewidths": 0.0}
        size, alpha = (5, 0.45) if many else (20, 0.85)
        drawn = self.axes.scatter(across, up, s=size, alpha=alpha, label=label, marker=marker, zorder=3, **look)
        drawn.set_rasterized(many)
        if tips and not many:
            self._tip(drawn, tips)

    def mark(self, x: ArrayLike, y: ArrayLike, label: str, tips: Sequence[str] = ()) -> None:
        """Points that matter most, as diamonds over everything else."""
        drawn = self.axes.scatter(
            x, y, s=48, marker="D", color=MARK, edgecolors=GROUND, linewidths=1, zorder=5, label=label
        )
        if tips:
            self._tip(drawn, tips)

    def legend(self) -> None:
        """What is what, above the chart, where it hides nothing."""
        made = self.figure.legend(loc="outside upper left", ncols=3, columnspacing=1.2, handletextpad=0.5)
        for handle in made.legend_handles:
            if isinstance(handle, PathCollection):
                handle.set_sizes([24])
                handle.set_alpha(1.0)

    def _tip(self, drawn: PathCollection, tips: Sequence[str]) -> None:
        drawn.set_gid(f"tips-{len(self._tips)}")
        self._tips.append((drawn, tips))

    def svg(self) -> str:
        """The chart as an ``<svg>`` element."""
        return self._drawn

    def _save(self) -> str:
        FigureCanvasSVG(self.figure)
        tips = [self._seen(*tipped) for tipped in self._tips]
        text = io.StringIO()
        self.figure.savefig(text, format="svg", dpi=160, metadata={"Date": None, "Creator": None})
        root = ElementTree.fromstring(text.getvalue())
        _add_tips(root, tips)
        _bare(root)
        del root.attrib["width"], root.attrib["height"]
        root.set("role", "img")
        root.set("aria-label", self.label)
        ElementTree.register_namespace("", _SVG)
        ElementTree.register_namespace("xlink", _XLINK)
        drawn = _NEEDLESS.sub("", ElementTree.tostring(root, encoding="unicode"))
        for stand_in, name in _VARIABLES.items():
            drawn = drawn.replace(stand_in, f"var(--{name})")
        return drawn

    def _seen(self, drawn: PathCollection, tips: Sequence[str]) -> list[str]:
        """Tooltips of the marks that lie inside the axes; the others, which Matplotlib draws or leaves out, are taken away."""
        self.axes.autoscale_view()
        points: NDArray[np.float64] = np.ma.filled(np.ma.asarray(drawn.get_offsets(), float), np.nan)
        with np.errstate(all="ignore"):
            places = (self.axes.transScale + self.axes.transLimits).transform(points)
            shown = np.isfinite(points) & (places >= -_EDGE) & (places <= 1 + _EDGE)
        inside: NDArray[np.bool_] = np.all(shown, axis=1)
        drawn.set_offsets(points[inside])
        return [tip for tip, there in zip(tips, inside, strict=True) if there]


def _add_tips(root: ElementTree.Element, tips: Sequence[Sequence[str]]) -> None:
    """Matplotlib refers to one path for each of several marks (``use``), or draws each one's path where it stands."""
    for index, texts in enumerate(tips):
        group = root.find(f".//*[@id='tips-{index}']")
        within = [] if group is None else list(group.iter())
        defined = {element for defs in within if defs.tag == f"{{{_SVG}}}defs" for element in defs.iter()}
        drawn = [e for e in within if e.tag in (f"{{{_SVG}}}use", f"{{{_SVG}}}path") and e not in defined]
        for mark, text in zip(drawn, texts, strict=True):
            ElementTree.SubElement(mark, f"{{{_SVG}}}title").text = text
        if group is not None:
            del group.attrib["id"]


def _bare(root: ElementTree.Element) -> None:
    """Take out metadata, a style that would reach the whole page, and names that every chart would repeat."""
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag in (f"{{{_SVG}}}metadata", f"{{{_SVG}}}style"):
                parent.remove(child)
        if _GENERATED.match(parent.get("id", "")):
            del parent.attrib["id"]
