"""What holds for every screen: no line is too long but for one word alone on it, and no word of the data is broken."""

import io
import re
from collections.abc import Collection, Iterable

from rich.cells import cell_len

from cddpm.text import Console


def printed(*drawn: object, width: int) -> str:
    """What a console of ``width`` columns makes of each."""
    text = io.StringIO()
    console = Console(file=text, width=width)
    for one in drawn:
        console.print(one)
    return text.getvalue()


def too_long(text: str, width: int, whole: Collection[str] = ()) -> list[str]:
    """Lines beyond ``width`` columns that hold more than one word, or more than one of ``whole``."""
    lines = [line for line in text.splitlines() if cell_len(line) > width]
    return [
        line
        for line in lines
        if len(line.removesuffix(" \\").split()) > 1 and line.strip().removesuffix(":") not in whole
    ]


def broken_words(words: Iterable[str], text: str) -> list[str]:
    """Those of ``words`` that no line holds whole; a dotted name may be broken after its dots."""
    lines = text.splitlines()
    return [word for word in words if not all(any(part in line for line in lines) for part in _parts(word, text))]


def _parts(word: str, text: str) -> list[str]:
    return [word] if word in text or not is_name(word) else re.findall(r"[^.]+\.?", word)


def is_name(word: str) -> bool:
    """Whether it is a dotted name, such as a setting's; a file's name with a directory is none."""
    return bool(re.fullmatch(r"\w+(\.\w+)+", word))


def words_of(text: str) -> set[str]:
    """Words but for lines that are drawn, and what marks a command's end of line."""
    return {word for word in text.split() if not set(word) <= set("─\\│├└")}


def lost(unbroken: str, text: str) -> list[str]:
    """Words of ``unbroken``, as a file would hold them, that are not in ``text`` or are broken there."""
    return sorted(broken_words(words_of(unbroken), text))
