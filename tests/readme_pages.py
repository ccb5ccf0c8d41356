"""The README files of the project as their parts: fenced blocks, commands, names in backticks, links."""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("cddpm", "launch", "tests", "tune_configs")
SHELL, SESSION = ("sh", "bash"), "console"
PROGRAMS = ("cddpm", "python", "bash", "mlflow", "ray", "pytest", "rm", "pip", "git")
"""A span in backticks that begins with one of these and says more is a command."""
_FENCE = re.compile(r"^```(\S*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_SPAN = re.compile(r"`([^`\n]+)`")
_LINK = re.compile(r"\]\(([^)\s]+)\)")
_HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)


@dataclass(frozen=True)
class Command:
    """One command as its words; ``whole`` if it stands in a block, where nothing may be missing."""

    page: str
    words: tuple[str, ...]
    whole: bool

    def __str__(self) -> str:
        return f"{self.page}: {shlex.join(self.words)}"


@dataclass(frozen=True)
class Page:
    """One README file."""

    path: Path
    text: str

    @property
    def name(self) -> str:
        """Its path in the project."""
        return str(self.path.relative_to(ROOT))

    @cached_property
    def fences(self) -> list[tuple[str, str]]:
        """Language and content of each block."""
        return _FENCE.findall(self.text)

    @cached_property
    def prose(self) -> str:
        """What is no block, comments and blocks taken out."""
        return re.sub(r"<!--.*?-->", "", _FENCE.sub("", self.text), flags=re.DOTALL)

    @cached_property
    def spans(self) -> list[str]:
        """What stands in backticks in the prose."""
        return _SPAN.findall(self.prose)

    @property
    def plain_spans(self) -> list[str]:
        """Those that are no text of a link."""
        return _SPAN.findall(re.sub(r"\[[^\]]*\]\([^)]*\)", "", self.prose))

    @property
    def links(self) -> list[str]:
        """Where the prose leads."""
        return _LINK.findall(self.prose)

    @cached_property
    def anchors(self) -> set[str]:
        """What a link may name behind ``#``, as the hosting page makes it of headings."""
        words = [re.sub(r"[^\w\- ]", "", heading.lower()) for heading in _HEADING.findall(_FENCE.sub("", self.text))]
        return {word.strip().replace(" ", "-") for word in words}

    def blocks(self, language: str) -> list[str]:
        """Contents of the blocks in ``language``."""
        return [content for own, content in self.fences if own == language]

    def commands(self) -> Iterator[Command]:
        """Every command of its blocks and of its prose."""
        for language, content in self.fences:
            if language in SHELL:
                yield from self._commands(content.replace("\\\n", " ").splitlines(), True)
                yield from self._commands(_SPAN.findall(content), False)
            elif language == SESSION:
                yield from self._commands([ln[2:] for ln in content.splitlines() if ln.startswith("$ ")], True)
        yield from self._commands([s for s in self.spans if s.split()[0] in PROGRAMS and len(s.split()) > 1], False)

    def _commands(self, lines: list[str], whole: bool) -> Iterator[Command]:
        for line in lines:
            words = shlex.split(line, comments=True)
            if words:
                yield Command(self.name, tuple(words), whole)


def read(path: Path) -> Page:
    """The page at ``path``."""
    return Page(path, path.read_text())


def pages() -> list[Page]:
    """All README files of the project."""
    files = [ROOT / "README.md", *(file for folder in FOLDERS for file in (ROOT / folder).rglob("README.md"))]
    return [read(file) for file in sorted(files)]
