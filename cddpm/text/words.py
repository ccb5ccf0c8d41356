"""Where a line may be broken: between words, and a dotted name after its dots; nowhere else."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

from rich.cells import cell_len
from rich.markup import escape
from rich.text import Text

WHOLE, NAME = "whole", "name"
"""Styles without a look, which mark parts of a text."""
_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
HANG = 2
"""Columns by which the second and further lines of a broken line stand further in."""


def printable(text: str, but: str = "") -> str:
    """``text`` with what no terminal and no file of UTF-8 takes as a backslash escape.

    That is control characters, other than those in ``but``, and the bytes of a file's name in another encoding.
    """
    return _UNPRINTABLE.sub(lambda found: found[0] if found[0] in but else _escaped(ord(found[0])), text)


def _escaped(code: int) -> str:
    byte = code - 0xDC00 if 0xDC80 <= code <= 0xDCFF else code  # as os.fsdecode keeps a byte that it cannot read
    return f"\\x{byte:02x}" if byte < 0x100 else f"\\u{code:04x}"


def whole(text: object) -> str:
    """``text``, as it is, as markup that no line breaks, not even at its spaces."""
    return _marked(str(text), WHOLE)


def name(dotted: str) -> str:
    """A dotted name, as markup: broken, after a dot, only where it does not fit a line of its own."""
    return _marked(dotted, NAME)


def path(place: str | Path) -> str:
    """``place`` as seen from here, as markup that no line breaks."""
    return whole(near(place))


def near(place: str | Path) -> str:
    """``place`` counted from the working directory where it lies in there, which is shorter; else as it is."""
    here = Path.cwd()
    return printable(str(Path(place).relative_to(here) if Path(place).is_relative_to(here) else place))


def command(*words: str | Path) -> str:
    """A shell command that has exactly these ``words`` when it is copied; paths as seen from here, never taken for options."""
    return shlex.join(_argument(word) if isinstance(word, Path) else word for word in words)


def _argument(place: Path) -> str:
    seen = near(place)
    return str(place.absolute()) if seen.startswith(("-", "~")) or ":/" in seen else seen


def _marked(text: str, mark: str) -> str:
    return f"[{mark}]{escape(text)}[/{mark}]"


def broken(line: Text, width: int, hang: int = HANG) -> list[Text]:
    """``line``, without line feeds, in lines of at most ``width`` columns but for words that are longer: alone on theirs.

    Its own indentation stays; further lines stand ``hang`` columns further in, less where a word would not fit otherwise.
    """
    plain = line.plain
    lead = len(plain) - len(plain.lstrip(" "))
    inner, start, end, lines = lead, lead, lead, []
    for first, last in _words(line, max(1, width - lead - hang)):
        if end > start and inner + cell_len(plain[start:last]) > width:
            lines.append(_indented(line[start:end], inner, width))
            inner, start = lead + hang, first
        end = last
    return [*lines, _indented(line[start:end], inner, width)]


def rows(text: Text, width: int, hang: int = HANG) -> list[Text]:
    """Every line of ``text``, ``broken``."""
    return [part for line in text.split("\n", allow_blank=True) for part in broken(line, width, hang)]


def widest_word(text: Text, after_dots: bool = False) -> int:
    """Columns of what cannot be broken; ``after_dots``: if dotted names are."""
    room = 1 if after_dots else None
    spans = ((line.plain, _words(line, room)) for line in text.split("\n"))
    return max((cell_len(plain[a:b]) for plain, words in spans for a, b in words), default=0)


def widest_line(text: Text) -> int:
    """Columns without a break."""
    return max((cell_len(line.plain) for line in text.split("\n")), default=0)


def _indented(line: Text, columns: int, width: int) -> Text:
    line.rstrip()
    return Text(" " * max(0, min(columns, width - cell_len(line.plain)))) + line


def _words(line: Text, room: int | None) -> Iterator[tuple[int, int]]:
    """Start and stop of each word; of a dotted name that is longer than ``room`` columns, of each of its parts."""
    text, names = list(line.plain), set[int]()
    for start, stop, style in line.spans:
        if style == WHOLE:
            text[start:stop] = "x" * len(text[start:stop])
        elif style == NAME:
            names.update(range(start, stop))
    for word in re.finditer("[^ ]+", "".join(text)):
        start, stop = word.span()
        ends = [
            i + 1 for i in range(start, stop - 1) if i in names and line.plain[i] == "." and line.plain[i + 1] != "."
        ]
        if room is None or cell_len(line.plain[start:stop]) <= room or not ends:
            yield start, stop
        else:
            yield from zip([start, *ends], [*ends, stop], strict=True)
