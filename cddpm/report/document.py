"""What a page is made of, as data: words, tables that sort, charts, pictures; templates make one HTML file of it.

A page is self-contained: style, scripts, figures and pictures are inside, nothing is loaded from anywhere.
"""

import base64
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


Block = Words | Heading | Tiles | Facts | Details | Table | Charts | Picture | Viewer


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
    """The whole page; ``head`` stands below its title. Plotly and the viewer's script are in it where they are needed."""
    kinds = {type(block) for section in sections for block in section.blocks}
    parts = ["page", *(["chart"] if Charts in kinds else []), *(["viewer"] if Viewer in kinds else [])]
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
