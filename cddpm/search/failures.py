"""Failed trials that are alike: a fault of the data, the machine or the configuration meets every trial to come.

Two messages are alike if their first lines are, but for numbers, fingerprints and paths. What counts are failures in a row: a
trial that ends otherwise shows that the next one may, and the count begins anew. Each start of a sweep begins at zero, so
that one which was mended can be resumed.
"""

import re
from dataclasses import dataclass, field

_PATH = re.compile(r"(?:[\w.~-]*/)+[\w.~-]*")
_FINGERPRINT = re.compile(r"\b(?=[0-9a-f]*\d)[0-9a-f]{8,}\b")
_NUMBER = re.compile(r"[-+]?\d+(?:[.,]\d+)*(?:e[-+]?\d+)?", re.IGNORECASE)


def kind_of(message: str) -> str:
    """The first line of a message without what differs from trial to trial."""
    line = next(iter(message.strip().splitlines()), "")
    for pattern, word in ((_PATH, "PATH"), (_FINGERPRINT, "N"), (_NUMBER, "N")):
        line = pattern.sub(word, line)
    return line


@dataclass
class Failures:
    """Counts failures of one start of a sweep. Plain data: Ray's snapshots pickle it."""

    limit: int | None
    """So many alike in a row are enough; none: never."""
    _rows: dict[str, list[tuple[int, str]]] = field(default_factory=dict, init=False)

    def failed(self, number: int, message: str) -> None:
        """Trial ``number`` failed with ``message``."""
        if self.met is None:
            self._rows.setdefault(kind_of(message), []).append((number, message))

    def ended_well(self) -> None:
        """A trial finished, or was stopped early."""
        if self.met is None:
            self._rows.clear()

    @property
    def met(self) -> str | None:
        """The failures that are enough, in words; None while there are fewer."""
        enough = next((rows for rows in self._rows.values() if self.limit and len(rows) >= self.limit), None)
        if enough is None:
            return None
        names = ", ".join(f"{number:04d}" for number, _ in enough)
        return f"{len(enough)} trials in a row failed alike ({names}): {enough[0][1]}"
