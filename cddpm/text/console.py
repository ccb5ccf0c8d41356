"""The console that all programs of this project print to."""

import os
import re
from pathlib import Path
from typing import IO, Any

import rich.console
from rich.text import Text

from cddpm.text.words import HANG, WHOLE, near, printable, rows, whole

UNBROKEN = 100_000
"""Columns of what is no terminal."""
_SHELL_WORD = re.compile(r"""(?:[^\s'"\\]|\\.|'[^']*'|"(?:[^"\\]|\\.)*")+""")


class Console(rich.console.Console):
    """Breaks lines between words, in a terminal; in a file or a pipe no line at all, unless COLUMNS says how wide it is."""

    def __init__(
        self, *, stderr: bool = False, file: IO[str] | None = None, width: int | None = None, **options: Any
    ) -> None:
        """``options``: those of Rich's console."""
        super().__init__(stderr=stderr, file=file, width=width, highlight=False, emoji=False, **options)
        if width is None and not self.is_terminal and not os.environ.get("COLUMNS", "").isdigit():
            self.width = UNBROKEN

    def print(self, *objects: Any, hang: int = HANG, **options: Any) -> None:
        """Print lines of markup, broken where they may be (``hang``: indentation of what follows), or something drawn.

        ``options`` are Rich's; with ``soft_wrap`` nothing is broken.
        """
        if options.get("soft_wrap") or not all(isinstance(one, str | Text) for one in objects):
            super().print(*objects, **{"crop": False, **options})
            return
        markup, sep = options.pop("markup", None), options.pop("sep", " ")
        safe = [printable(one, but="\n\t") if isinstance(one, str) else one for one in objects]
        text = Text(sep).join(self.render_str(one, markup=markup) if isinstance(one, str) else one for one in safe)
        super().print(Text("\n").join(rows(text, self.width, hang)), soft_wrap=True, **options)

    def path(self, place: str | Path) -> str:
        """``place`` as markup that no line breaks: in a terminal as seen from here, else as it is, for who reads on."""
        return whole(near(place) if self.is_terminal else printable(str(place)))

    def command(self, text: str, indent: int = 4) -> None:
        """Print a shell command that can be copied: broken between words, with a backslash, an option with its value."""
        line = Text(" " * indent + text)
        words = [word.span() for word in _SHELL_WORD.finditer(line.plain)]
        for (start, end), (_, value_end) in zip(words, [*words[1:], words[-1]], strict=True):
            is_pair = line.plain[start : start + 2] == "--" and line.plain[end + 1 : end + 2] != "-"
            line.stylize(WHOLE, start, value_end if is_pair and value_end - start < self.width - 10 else end)
        lines = rows(line, self.width)
        if len(lines) > 1:
            lines = rows(line, self.width - len(" \\"))
        super().print(Text(" \\\n").join(lines), soft_wrap=True)
