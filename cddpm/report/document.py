"""HTML pieces of a page: text escaped once, tables that sort and scroll, figures with captions, one file in the end.

A page is self-contained: style, script, charts and pictures are inside, nothing is loaded from anywhere.
"""

import base64
import html
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from cddpm.text import printable

_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<link rel="icon" href="data:,">
<title>{title}</title>
<style>
{style}</style>
</head>
<body>
<header>
{header}
<nav aria-label="Sections">{links}</nav>
</header>
<main>
{main}
</main>
<script>
{script}</script>
</body>
</html>
"""


PAGE = "report.html"
"""Where a page goes that was not told where."""
NOTHING = "-"
"""What stands for a missing value; a sorted table has it last."""
_NUMBER = ' class="number"'


@dataclass(frozen=True)
class Section:
    """A part of a page with a heading. ``body`` is HTML."""

    anchor: str
    title: str
    body: str


def escape(text: object) -> str:
    """Text as HTML, safe between tags and in quoted attributes."""
    return html.escape(printable(str(text), but="\n\t"), quote=True)


def number(value: Any) -> str:
    """A value as a person reads it: three significant digits, thousands apart, lists by commas, a dash for nothing."""
    if value is None:
        return NOTHING
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    if isinstance(value, list | tuple):
        return ", ".join(number(part) for part in value) or "none"
    return str(value)


def score(value: float | None) -> str:
    """A metric in [0, 1]: three decimals."""
    return NOTHING if value is None else f"{value:.3f}"


def duration(seconds: float | None) -> str:
    """``42 s``, ``3.5 min``, ``1.2 h``; a dash for nothing."""
    if seconds is None:
        return NOTHING
    for limit, unit, size in ((120.0, "s", 1.0), (7200.0, "min", 60.0)):
        if seconds < limit:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds / 3600:,.1f} h"


def paragraph(text: str, kind: str = "") -> str:
    """A paragraph of plain text; ``kind`` is a class of the style sheet."""
    mark = f' class="{kind}"' if kind else ""
    return f"<p{mark}>{escape(text)}</p>\n"


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


def table(caption: str, columns: Sequence[str], rows: Iterable[Sequence[Cell]], sortable: bool = True) -> str:
    """A table that scrolls by itself; a click on a heading sorts it. The first column names the row."""
    lines = list(rows)
    kind = ' class="sortable"' if sortable else ""
    head = "".join(_heading(name, _is_number(index, lines), sortable) for index, name in enumerate(columns))
    body = "".join(f"<tr>{_first(row[0])}{''.join(map(_plain, row[1:]))}</tr>\n" for row in lines)
    label = caption.split(". ")[0].removesuffix(".")
    return (
        f'<p class="caption">{escape(caption)}</p>\n'
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(label)}">\n<table{kind}>'
        f"<thead><tr>{head}</tr></thead>\n<tbody>\n{body}</tbody></table></div>\n"
    )


def _is_number(column: int, rows: Sequence[Sequence[Cell]]) -> bool:
    return column > 0 and any(row[column].value is not None for row in rows)


def _heading(name: str, numeric: bool, sortable: bool) -> str:
    inner = f'<button type="button">{escape(name)}</button>' if sortable else escape(name)
    return f'<th scope="col"{_NUMBER if numeric else ""}>{inner}</th>'


def _first(part: Cell) -> str:
    return f'<th scope="row"{_sort_value(part)}>{_content(part)}</th>'


def _plain(part: Cell) -> str:
    kind = _NUMBER if part.value is not None or part.text == NOTHING else ""
    return f"<td{kind}{_sort_value(part)}>{_content(part)}</td>"


def _content(part: Cell) -> str:
    return f"<strong>{escape(part.text)}</strong>" if part.strong else escape(part.text)


def _sort_value(part: Cell) -> str:
    return "" if part.value is None else f' data-value="{part.value!r}"'


def facts(pairs: Mapping[str, str]) -> str:
    """Names and values in two columns."""
    lines = "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>\n" for name, value in pairs.items())
    return f"<dl>\n{lines}</dl>\n"


def figure(content: str, caption: str, wide: bool = False) -> str:
    """A chart or picture (HTML) with what it shows, and on which split."""
    kind = ' class="wide"' if wide else ""
    return f"<figure{kind}>{content}<figcaption>{escape(caption)}</figcaption></figure>\n"


def charts(figures: Iterable[str]) -> str:
    """Figures side by side as far as the window is wide."""
    return f'<div class="charts">\n{"".join(figures)}</div>\n'


def picture(path: Path, alternative: str) -> str:
    """A PNG file inside the page; it scrolls where the window is narrow."""
    data = base64.b64encode(path.read_bytes()).decode()
    return (
        f'<div class="scroll" tabindex="0"><img alt="{escape(alternative)}" src="data:image/png;base64,{data}"></div>'
    )


def details(summary: str, text: str) -> str:
    """Plain text (a YAML file, say) behind a line that opens it."""
    return f"<details><summary>{escape(summary)}</summary><pre>{escape(text)}</pre></details>\n"


def page(title: str, header: str, sections: Sequence[Section], parts: Sequence[str] = ("page",)) -> str:
    """The whole page. ``header`` is HTML; ``parts`` names the style sheets and scripts that are needed."""
    links = " ".join(f'<a href="#{s.anchor}">{escape(s.title)}</a>' for s in sections)
    main = "".join(
        f'<section id="{s.anchor}"><h2>{escape(s.title)}</h2>\n{s.body}</section>\n' for s in sections if s.body
    )
    own = files("cddpm.report")
    return _PAGE.format(
        title=escape(title),
        header=header,
        links=links,
        main=main,
        style="".join((own / f"{part}.css").read_text() for part in parts),
        script="".join((own / f"{part}.js").read_text() for part in parts),
    )
