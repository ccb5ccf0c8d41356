"""What a page is made of, as data: words, tables that sort, charts, pictures; templates make one HTML file of it.

A page is self-contained: style, scripts, figures and pictures are inside, nothing is loaded from anywhere.
"""

import base64
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from plotly.offline import get_plotlyjs

from cddpm.report.chart import Chart
from cddpm.text import printable
from cddpm.text.numbers import number

PAGE = "report.html"
"""Where a page goes that was not told where."""


@dataclass(frozen=True)
class Words:
    """A paragraph; ``kind`` is a class of the style sheet."""

    text: str
    kind: str = ""


@dataclass(frozen=True)
class Heading:
    """Below that of the section."""

    text: str


@dataclass(frozen=True)
class Tiles:
    """What matters most: names, and values in large type."""

    pairs: Mapping[str, str]


@dataclass(frozen=True)
class Facts:
    """Names and values in two columns."""

    pairs: Mapping[str, str]


@dataclass(frozen=True)
class Details:
    """Plain text (a YAML file, say) behind a line that opens it."""

    summary: str
    text: str


@dataclass(frozen=True)
class Cell:
    """A cell of a table: what is shown, and the value it is sorted by (the text itself if there is none)."""

    text: str
    value: float | None = None
    strong: bool = False


def cell(value: Any, show: Any = number) -> Cell:
    """``value`` as ``show`` writes it, sorted as a number if it is one."""
    sortable = isinstance(value, int | float) and not isinstance(value, bool)
    return Cell(show(value), float(value) if sortable else None)


@dataclass(frozen=True)
class Table:
    """A table that scrolls by itself; a click on a heading sorts it. The first column names the row."""

    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    sortable: bool = True

    @property
    def label(self) -> str:
        """The first sentence of the caption."""
        return self.caption.split(". ")[0].removesuffix(".")

    def is_number(self, column: int) -> bool:
        """Whether a column stands to the right."""
        return column > 0 and any(row[column].value is not None for row in self.rows)


@dataclass(frozen=True)
class Charts:
    """Charts side by side as far as the window is wide."""

    charts: Sequence[Chart]


@dataclass(frozen=True)
class Picture:
    """A PNG file with what it shows; it scrolls where the window is narrow."""

    png: bytes
    words: str

    @property
    def base64(self) -> str:
        """The file as text."""
        return base64.b64encode(self.png).decode()


@dataclass(frozen=True)
class Viewer:
    """Volumes to look through, packed (``viewer.packed``); once per page."""

    packs: Sequence[str]


@dataclass(frozen=True)
class LineupCell:
    """One figure of a row: its value as text and for sorting, its z, and in words what is usual."""

    key: str
    name: str
    text: str
    value: float | None
    z: float | None
    usual: str

    @property
    def kind(self) -> str:
        """A class of the style sheet: whether it is higher or lower than usual."""
        return "" if self.z is None else "high" if self.z > 0 else "low"

    @property
    def shade(self) -> int:
        """How strong its colour is, 0 to 100: nothing up to a z of 1.5, all of it from 10."""
        return 0 if self.z is None else round(100 * min(max((abs(self.z) - 1.5) / 8.5, 0.0), 1.0))


@dataclass(frozen=True)
class LineupRow:
    """One scan: pictures (base64; empty if there are none), figures, what is odd of it and what is wrong."""

    dataset: str
    subject: str
    modality: str
    splits: Sequence[str]
    scan: str
    marks: str
    cells: Sequence[LineupCell]
    score: float
    """What rows are sorted by at first: the largest |z|, more for one that cannot be used."""
    odd: bool
    """Whether it is an outlier."""
    reasons: Sequence[str]
    findings: Mapping[str, Sequence[str]]
    """Sentences by code."""
    faulty: bool
    """Whether one of them forbids training."""


@dataclass(frozen=True)
class Lineup:
    """Scans to look through, sort, filter and take out of a study; once per page."""

    rows: Sequence[LineupRow]
    place: str
    """What the browser keeps the ticks under."""
    list_file: str
    """Where the list of those who are taken out belongs."""
    listed: Sequence[tuple[str, str, str]]
    """What that list holds already: data set, subject, reason."""
    figures: Mapping[str, str]
    """Names by key, to sort by."""

    @property
    def listed_json(self) -> str:
        """As a script element may hold it."""
        return json.dumps([list(one) for one in self.listed]).replace("<", "\\u003c")

    def values(self, name: str) -> list[str]:
        """All values that rows have under ``name``, sorted: a choice of a filter."""
        found = (getattr(row, name) for row in self.rows)
        return sorted({value for one in found for value in ([one] if isinstance(one, str) else one)})


Block = Words | Heading | Tiles | Facts | Details | Table | Charts | Picture | Viewer | Lineup


@dataclass(frozen=True)
class Section:
    """A part of a page with a heading."""

    anchor: str
    title: str
    blocks: Sequence[Block]

    @property
    def body(self) -> str:
        """All but the heading, as HTML."""
        return html(self.blocks)

    @property
    def charts(self) -> list[Chart]:
        """Those of all blocks."""
        return [chart for block in self.blocks if isinstance(block, Charts) for chart in block.charts]


def html(blocks: Iterable[Block]) -> str:
    """Each block by the macro of its name in ``blocks.html.j2``."""
    macros = _templates().get_template("blocks.html.j2").module
    return "".join(getattr(macros, type(block).__name__.lower())(block) for block in blocks)


def page(title: str, head: Sequence[Block], sections: Sequence[Section]) -> str:
    """The whole page; ``head`` stands below its title. Plotly, the viewer's and the lineup's scripts are in it where needed."""
    kinds = {type(block) for section in sections for block in section.blocks}
    more = {Charts: "chart", Viewer: "viewer", Lineup: "cohort"}
    parts = ["page", *(part for kind, part in more.items() if kind in kinds)]
    own = files("cddpm.report")
    return (
        _templates()
        .get_template("page.html.j2")
        .render(
            title=title,
            head=html(head),
            sections=sections,
            styles=[(own / f"{part}.css").read_text() for part in parts if part != "chart"],
            scripts=[
                *([get_plotlyjs()] if Charts in kinds else []),
                *((own / f"{part}.js").read_text() for part in parts),
            ],
        )
    )


@cache
def _templates() -> Environment:
    return Environment(
        loader=PackageLoader("cddpm.report", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: printable(value, but="\n\t") if type(value) is str else value,
    )


def short_names(paths: Iterable[str]) -> dict[str, str]:
    """The last part of each dotted path where that is enough to tell it from the others."""
    listed = list(paths)
    count = Counter(path.rsplit(".", 1)[-1] for path in listed)
    return {path: last if count[last := path.rsplit(".", 1)[-1]] == 1 else path for path in listed}


def shown(path: str, value: Any) -> str:
    """A setting's value in words: an empty choice of noise levels means all of them."""
    if value is None:
        return "all" if path.endswith("noise_levels") else "none"
    return number(value)


def described(settings: dict[str, Any]) -> str:
    """Settings in one line: ``guidance_scale 1.3, residual l1``."""
    names = short_names(settings)
    return ", ".join(f"{names[path]} {shown(path, value)}" for path, value in settings.items()) or "as configured"
