"""What descends from what, with branches."""

from collections.abc import Iterator

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.text import Text

from cddpm.text.words import rows


class Tree:
    """A label of one or more lines of markup, and branches below it."""

    def __init__(self, label: str) -> None:
        self._label = Text.from_markup(label, emoji=False)
        self._branches: list[Tree] = []

    def add(self, label: str) -> "Tree":
        """A new branch."""
        self._branches.append(Tree(label))
        return self._branches[-1]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Its lines."""
        for line in self._lines("", "", options.max_width):
            line.no_wrap, line.overflow = True, "ignore"
            yield line

    def _lines(self, first: str, further: str, width: int) -> Iterator[Text]:
        for number, line in enumerate(rows(self._label, max(1, width - len(further)), hang=0)):
            before = further if number else first
            fits = len(before) + cell_len(line.plain) <= width  # else the lines of the tree give way to a long path
            yield Text(before, "dim").append_text(line) if fits else line
        for branch in self._branches:
            last = branch is self._branches[-1]
            yield from branch._lines(
                further + ("└── " if last else "├── "), further + ("    " if last else "│   "), width
            )
