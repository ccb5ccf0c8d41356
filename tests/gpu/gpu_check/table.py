"""The readable end of a check, 80 columns wide: figures, comparisons, findings, faults; and what moved since a former run."""

import textwrap
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any

from gpu_check.record import PASSED, Content

WIDTH = 80
COLUMN = 9
MOVED = 0.05
"""Relative change of a figure that is told."""
Figure = dict[str, Any]


def lines(contents: Sequence[Content]) -> Iterator[str]:
    """The table of all parts."""
    if not contents:
        yield "nothing was measured"
        return
    yield from _wrapped(_heading(contents))
    for content in contents:
        yield ""
        yield f"{content['part']:<56}{content['status']:>13}{content['seconds']:>9.1f} s"
        yield from _figures(content["figures"])
        yield from _comparisons(content["comparisons"])
        for name, rows in content["tables"].items():
            yield from _table(name, rows)
        for name, points in content["curves"].items():
            yield from _curve(name, points)
    yield from _told("findings", "Found, to be made faster", contents)
    yield from _told("faults", "Wrong", contents)


def _heading(contents: Sequence[Content]) -> str:
    facts = next((content["facts"] for content in contents if content["facts"]), {})
    names = ("device", "driver", "processor", "cores", "torch", "cuda", "cudnn", "python", "measured")
    return ", ".join(f"{name} {facts[name]}" for name in names if facts.get(name))


def _figures(figures: Sequence[Figure]) -> Iterator[str]:
    """Single figures line by line; those of rows with the same columns as one grid."""
    rows = [(at, list(group)) for at, group in groupby(figures, key=lambda figure: figure["at"])]
    for columns, grid in groupby(rows, key=lambda row: tuple((f["name"], f["unit"]) for f in row[1]) if row[0] else ()):
        found = list(grid)
        if not columns:
            for figure in (figure for _, group in found for figure in group):
                yield f"  {_cut(figure['name'], 50):<50}{_number(figure['value']):>13} {figure['unit']}".rstrip()
        else:
            yield from _grid(columns, found)


def _grid(columns: Sequence[tuple[str, str]], rows: Sequence[tuple[str, list[Figure]]]) -> Iterator[str]:
    label = WIDTH - 2 - COLUMN * len(columns)
    for part in (0, 1):
        yield "  " + " " * label + "".join(f"{_cut(column[part], COLUMN - 1):>{COLUMN}}" for column in columns)
    for at, group in rows:
        yield f"  {_cut(at, label - 1):<{label}}" + "".join(f"{_number(f['value']):>{COLUMN}}" for f in group)


def _comparisons(comparisons: Sequence[Content]) -> Iterator[str]:
    for row in comparisons:
        limit = "listed" if row["limit"] is None else f"of {row['limit']:.0e}"
        verdict = "" if row["held"] else " WRONG"
        yield f"  {_cut(row['name'], 50):<50}{_error(row['error']):>9} {limit:<9}{verdict}".rstrip()


def _table(name: str, rows: Sequence[Content]) -> Iterator[str]:
    if not rows:
        return
    numbers = [key for key in rows[0] if not isinstance(rows[0][key], str)]
    words = [key for key in rows[0] if isinstance(rows[0][key], str)]
    each = (WIDTH - 3 - COLUMN * len(numbers)) // len(words)
    yield "  " + name
    yield "  " + "".join(f"{key:>{COLUMN}}" for key in numbers) + "".join(f" {key:<{each}}" for key in words).rstrip()
    for row in rows:
        told = "".join(f" {_cut(row[key], each - 1):<{each - 1}}" for key in words).rstrip()
        yield "  " + "".join(f"{_number(row[key]):>{COLUMN}}" for key in numbers) + told


def _curve(name: str, points: Sequence[Sequence[float]]) -> Iterator[str]:
    few = points if len(points) <= 8 else [points[round(i * (len(points) - 1) / 7)] for i in range(8)]
    course = "  ".join(f"{images:.0f}: {value:.4g}" for images, value in few)
    yield from textwrap.wrap(f"{name}, by images: {course}", WIDTH, initial_indent="  ", subsequent_indent="    ")


def _told(key: str, title: str, contents: Sequence[Content]) -> Iterator[str]:
    told = [f"{content['part']}: {text}" for content in contents for text in all_told(content, key)]
    if told:
        yield ""
        yield title
        for text in told:
            yield from _wrapped(text, "  ")


def all_told(content: Content, key: str) -> list[str]:
    """Findings, or faults with the comparisons that do not hold."""
    if key != "faults":
        return list(content[key])
    wrong = [
        f"{row['name']}: error {_error(row['error'])}, allowed {row['limit'] if row['limit'] is not None else 'finite'}"
        + (f" ({row['note']})" if row["note"] else "")
        for row in content["comparisons"]
        if not row["held"]
    ]
    return [*content["faults"], *wrong]


def moves(contents: Sequence[Content], former: Sequence[Content]) -> Iterator[str]:
    """What is not as it was in a former run: figures by more than 5 %, comparisons that hold or do not, parts."""
    yield ""
    yield "Moved since the former run"
    before, after = _heading(former), _heading(contents)
    if _device(former) != _device(contents):
        yield from _wrapped(f"another device: then {before}; now {after}", "  ")
    old = {content["part"]: content for content in former}
    still = 0
    for content in contents:
        then = old.get(content["part"])
        if then is None:
            yield f"  {content['part']}: not in the former run"
            continue
        told = [*_status_moves(content, then), *_comparison_moves(content, then)]
        moved, unmoved = _figure_moves(content, then)
        still += unmoved
        yield from told
        yield from (_cut(line, WIDTH) for line in moved)
    yield f"  {still} figures moved by at most {100 * MOVED:.0f} %"


def _device(contents: Sequence[Content]) -> Any:
    return next((content["facts"].get("device") for content in contents if content["facts"]), None)


def _status_moves(now: Content, then: Content) -> Iterator[str]:
    if now["status"] != then["status"]:
        yield f"  {now['part']}: {then['status']}, now {now['status']}"


def _comparison_moves(now: Content, then: Content) -> Iterator[str]:
    old = {row["name"]: row for row in then["comparisons"]}
    for row in now["comparisons"]:
        was = old.get(row["name"])
        if was is not None and was["held"] != row["held"]:
            errors = f"{_error(was['error'])} -> {_error(row['error'])}"
            yield from _wrapped(f"{row['name']}: {errors} {'holds again' if row['held'] else 'WRONG'}", "  ")


def _figure_moves(now: Content, then: Content) -> tuple[list[str], int]:
    old = {(f["at"], f["name"]): f["value"] for f in then["figures"]}
    moved, still = [], 0
    for figure in now["figures"]:
        was, value = old.pop((figure["at"], figure["name"]), None), figure["value"]
        name = f"{now['part']}: {figure['at']}{', ' if figure['at'] else ''}{figure['name']}"
        if was is None or value is None:
            moved.append(f"  {_cut(name, 50):<50}{_number(was):>10} -> {_number(value)}")
        elif abs(value - was) > MOVED * abs(was):
            change = _change(value / was) if was else "from 0"
            verdict = _verdict(figure["better"], value > was)
            moved.append(
                f"  {_cut(name, 42):<42}{_number(was):>9} ->{_number(value):>9} {change:>7} {verdict}".rstrip()
            )
        else:
            still += 1
    gone = [f"  {now['part']}: {at}{', ' if at else ''}{name}: gone" for at, name in old]
    return [*moved, *gone], still


def _change(ratio: float) -> str:
    return f"{100 * (ratio - 1):+.0f} %" if abs(ratio) < 10 else f"x {_number(ratio)}"


def _verdict(better: str, grew: bool) -> str:
    if better == "neither":
        return ""
    return "better" if grew == (better == "more") else "worse"


def passed(contents: Sequence[Content], parts: Sequence[str]) -> bool:
    """Whether every part is there and passed."""
    return len(contents) == len(parts) and all(content["status"] == PASSED for content in contents)


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    if value != 0 and not 0.001 <= abs(value) < 1e6:
        return f"{value:.1e}"
    digits = 0 if abs(value) >= 1000 else 1 if abs(value) >= 100 else 2 if abs(value) >= 10 else 3
    return f"{value:.{digits}f}"


def _error(value: float | None) -> str:
    return "no number" if value is None else f"{value:.1e}"


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 2] + ".."


def _wrapped(text: str, indent: str = "") -> list[str]:
    return textwrap.wrap(text, WIDTH, initial_indent=indent, subsequent_indent=indent + "  ", break_on_hyphens=False)
