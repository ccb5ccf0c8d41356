"""The score book: what any trial of any sweep has found out about a cohort under some settings is looked up, not run again.

A book belongs to one reconstruction and cohort (``score/<fingerprint>``). Every process that writes has a file of its own in
it, one JSON line per setting with its own digest, and reads those of the others: no lock is needed, on no file system, and
a line that a killed process left half written counts as absent.
"""

import json
import logging
import os
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Self

from cddpm import artifact
from cddpm.config import ScoringConfig, to_dict
from cddpm.scoring.score import HEALTHY, SECONDS, Objective, Score, Scorer

logger = logging.getLogger(__name__)

KIND = "score"
MADE_FROM = "made_from.json"
SCORING_VERSION = 2
"""Part of every fingerprint; raised when the same settings would give other scores."""
REFRESH_SECONDS = 2.0
"""Between looks at what others have written."""


class ScoreBook:
    """A scorer that remembers. Looking up a setting takes less than a millisecond."""

    def __init__(self, scorer: Scorer, folder: Path) -> None:
        self.scorer, self.folder = scorer, folder
        self.found = 0
        """How often a score was looked up instead of run."""
        self._own = folder / f"{uuid.uuid4().hex[:12]}.jsonl"
        self._scores: dict[str, Score] = {}
        self._read: dict[Path, int] = {}
        self._looked = -REFRESH_SECONDS
        self._refresh()

    def __reduce__(self) -> tuple[Any, ...]:
        """Another process gets a file of its own."""
        return ScoreBook, (self.scorer, self.folder)

    @classmethod
    def open(cls, scorer: Scorer, artifacts: Path, reconstruction: str | None, store: str) -> Self:
        """The book of ``scorer``'s cohort: volumes of the slice store ``store``, as ``reconstruction`` (fingerprints) has them.

        Raises ``StorageError`` if the disk refuses.
        """
        made_from = _made_from(scorer, reconstruction, store)
        folder = book_folder(scorer, artifacts, reconstruction, store)
        if not (folder / MADE_FROM).is_file():
            artifact.write_json(folder / MADE_FROM, made_from)
        return cls(scorer, folder)

    @property
    def files(self) -> list[Path]:
        """All that is known on this node."""
        return [self.folder / MADE_FROM, *self.folder.glob("*.jsonl")]

    def score(
        self, scoring: ScoringConfig, objective: Objective = "dice", datasets: Sequence[str] | None = None
    ) -> Score:
        """As ``Scorer.score``, and kept. A score that was found says how long it took when it was run.

        Raises ``StorageError`` if the disk refuses.
        """
        asked = {"scoring": to_dict(scoring), "objective": objective, "datasets": list(datasets or ())}
        key = artifact.fingerprint(asked)
        if key not in self._scores:
            self._refresh()
        if key in self._scores:
            self.found += 1
            return self._timed(self._scores[key], scoring)
        score = self.scorer.score(scoring, objective, datasets)
        self._scores[key] = score
        self._append({"key": key, **asked, "score": asdict(score)})
        return score

    def _timed(self, score: Score, scoring: ScoringConfig) -> Score:
        """With the forward passes' time here and now, not where the score was run."""
        values = {name: value for name, value in score.values.items() if name != SECONDS}
        seconds = self.scorer.seconds_per_volume(scoring)
        return replace(score, values=values if seconds is None else {**values, SECONDS: seconds})

    def _append(self, entry: dict[str, Any]) -> None:
        line = memoryview(json.dumps({**entry, "sha256": _digest(entry)}, separators=(",", ":")).encode() + b"\n")
        with artifact.storage_errors(self._own), self._own.open("ab", buffering=0) as stream:
            size = os.fstat(stream.fileno()).st_size
            try:
                while line:
                    line = line[stream.write(line) :]
            except OSError:
                stream.truncate(size)  # the next line must not begin behind half of this one
                raise

    def _refresh(self) -> None:
        if time.monotonic() - self._looked < REFRESH_SECONDS:
            return
        self._looked = time.monotonic()
        for file in self.folder.glob("*.jsonl"):
            if file != self._own:
                for entry in self._new_entries(file):
                    self._take(entry)

    def _new_entries(self, file: Path) -> Iterator[dict[str, Any]]:
        """The sound entries of a file that were not read yet; a last line without its end waits for the next look."""
        with file.open("rb") as stream:
            stream.seek(self._read.get(file, 0))
            data = stream.read()
        end = data.rfind(b"\n") + 1
        self._read[file] = self._read.get(file, 0) + end
        entries = [_entry(line) for line in data[:end].splitlines()]
        if None in entries:
            logger.warning("%s: %d damaged lines; their scores are worked out again", file, entries.count(None))
        yield from (entry for entry in entries if entry is not None)

    def _take(self, entry: Mapping[str, Any]) -> None:
        try:
            self._scores.setdefault(entry["key"], Score(**entry["score"]))
        except (KeyError, TypeError):  # of a version that knew other numbers
            logger.debug("%s: a score with other fields is left out", self.folder)


def _made_from(scorer: Scorer, reconstruction: str | None, store: str) -> dict[str, Any]:
    return {
        "version": SCORING_VERSION,
        "reconstruction": reconstruction,
        "store": store,
        "unhealthy": {name: [case.id for case in scorer.cases(name)] for name in scorer.datasets},
        "healthy": [case.id for case in scorer.cases(HEALTHY)],
    }


def book_folder(scorer: Scorer, artifacts: Path, reconstruction: str | None, store: str) -> Path:
    """Where the book of ``scorer``'s cohort lies, or will lie; see ``ScoreBook.open``."""
    return artifacts / KIND / artifact.fingerprint(KIND, _made_from(scorer, reconstruction, store))


def _entry(line: bytes) -> dict[str, Any] | None:
    try:
        entry: dict[str, Any] = json.loads(line)
        return entry if entry.pop("sha256") == _digest(entry) else None
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


def _digest(entry: Mapping[str, Any]) -> str:
    return artifact.fingerprint(json.dumps(entry, sort_keys=True))


def damaged_lines(file: Path) -> int:
    """How many lines of a file of a score book are damaged; one that is being written, the last, is not."""
    data = file.read_bytes()
    return sum(_entry(line) is None for line in data[: data.rfind(b"\n") + 1].splitlines())
