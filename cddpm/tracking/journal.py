"""The journal of one sweep: what the lab book is to be told, on disk before anybody is told.

``<sweep>.jsonl`` holds one numbered JSON object per line, appended and flushed to the disk. ``<sweep>.delivered`` holds the
number of the last one that MLflow has. A process that dies loses nothing that was appended; the next one goes on from there.

Places in the project are kept as relative to its output folder, in which the journals' folder lies: both may be moved or
copied, the output folder alone too.
"""

import contextlib
import json
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from cddpm import artifact
from cddpm.errors import TrackingError
from cddpm.tracking import address

SUFFIX = ".jsonl"
_PLACES = ("path", "package")
"""Fields of entries that hold a path; ``uri`` may hold one too."""


class Journal:
    """An append-only file with a bookmark. One process holds it at a time; ``append`` and the reading side may be two threads."""

    def __init__(self, path: Path) -> None:
        """Take over the journal ``path`` (made if absent); a last line that a crash cut is dropped.

        Raises ``TrackingError`` if another process holds it or a line is not JSON, ``StorageError`` if the disk refuses.
        """
        self.path = path
        self._bookmark = path.with_suffix(".delivered")
        self._held = contextlib.ExitStack()
        try:
            self._held.enter_context(artifact.lock(path.with_suffix(".lock"), wait=False))
        except BlockingIOError:
            raise TrackingError(
                f"{path}: another process is writing this sweep's journal; wait for it, or stop it and run again"
            ) from None
        try:
            _drop_cut_line(path)
            with artifact.storage_errors(path):
                self._stream = self._held.enter_context(path.open("ab"))
            done = self._read_bookmark()
            self._last = done
            self._pending: deque[dict[str, Any]] = deque()
            for entry in _lines(path):
                self._last = max(self._last, entry["n"])
                if entry["n"] > done:
                    self._pending.append(entry)
        except BaseException:
            self._held.close()
            raise

    def __len__(self) -> int:
        """Entries that MLflow does not have yet."""
        return len(self._pending)

    def append(self, entry: dict[str, Any]) -> None:
        """Put an entry on the disk. Raises ``StorageError`` if the disk is full or read-only."""
        numbered = {"n": self._last + 1, **entry}
        line = json.dumps(self._kept(numbered), separators=(",", ":"), allow_nan=False).encode() + b"\n"
        with artifact.storage_errors(self.path):
            self._stream.write(line)
            self._stream.flush()
            os.fsync(self._stream.fileno())
        self._last += 1
        self._pending.append(numbered)

    def first(self) -> dict[str, Any] | None:
        """The oldest entry that is not delivered."""
        return self._pending[0] if self._pending else None

    def delivered(self) -> None:
        """Move the bookmark past the oldest entry."""
        artifact.write_text(self._bookmark, f"{self._pending[0]['n']}\n")
        self._pending.popleft()

    def refused(self, entry: dict[str, Any], reason: str) -> Path:
        """Keep an entry that MLflow will never take beside the journal; returns that file."""
        path = self.path.with_suffix(".refused")
        with artifact.storage_errors(path), path.open("a") as stream:
            stream.write(json.dumps({"reason": reason, "entry": self._kept(entry)}) + "\n")
        return path

    def entries(self) -> Iterator[dict[str, Any]]:
        """All entries, delivered or not."""
        return _lines(self.path)

    @property
    def home(self) -> dict[str, str]:
        """Where its entries were last meant to go: ``uri`` and ``experiment``, as far as they were kept."""
        return _home(self.entries())

    def written_for(self, home: Mapping[str, str]) -> str | None:
        """The lab book that it was last written for, if that is another than ``home``."""
        last = self.home
        return f"{last['uri']} (experiment {last.get('experiment')})" if last and last != home else None

    @property
    def begun(self) -> bool:
        """Whether MLflow has any of it."""
        return self._read_bookmark() > 0

    def close(self) -> None:
        """Let another process take it over."""
        self._held.close()

    def _kept(self, entry: dict[str, Any]) -> dict[str, Any]:
        base = _base(self.path)
        project = base.parent if base.parent != base.parent.parent else base
        return _with_places(entry, lambda p: Path(os.path.relpath(p, base)) if p.is_relative_to(project) else p)

    def _read_bookmark(self) -> int:
        return _bookmarked(self._bookmark)


def waiting_in(path: Path) -> tuple[int, dict[str, str]]:
    """How many entries of the journal ``path`` wait, and for whom (as ``Journal.home``); it may be in use.

    Raises ``TrackingError`` for a damaged one.
    """
    done = _bookmarked(path.with_suffix(".delivered"))
    entries = list(_lines(path, cut_is_damage=False))
    return sum(entry["n"] > done for entry in entries), _home(entries)


def _home(entries: Iterable[dict[str, Any]]) -> dict[str, str]:
    found = [entry for entry in entries if entry.get("uri")]
    return {key: found[-1][key] for key in ("uri", "experiment") if found[-1].get(key)} if found else {}


def _base(path: Path) -> Path:
    """The output folder."""
    return path.parent.resolve().parent


def _with_places(entry: dict[str, Any], change: Callable[[Path], Path]) -> dict[str, Any]:
    changed = {name: str(change(Path(entry[name]))) for name in _PLACES if isinstance(entry.get(name), str)}
    file = address.plain_file(entry["uri"]) if isinstance(entry.get("uri"), str) else None
    return {**entry, **changed, **({"uri": address.file_uri(change(file))} if file else {})}


def _bookmarked(bookmark: Path) -> int:
    try:
        return int(bookmark.read_text())
    except FileNotFoundError:
        return 0
    except ValueError:
        raise TrackingError(
            f"{bookmark}: not a number; remove it, and the whole journal is sent again (nothing is entered twice)"
        ) from None


def _drop_cut_line(path: Path) -> None:
    if not path.is_file():
        return
    data = path.read_bytes()
    whole = data.rfind(b"\n") + 1
    if whole != len(data):
        os.truncate(path, whole)


def _lines(path: Path, cut_is_damage: bool = True) -> Iterator[dict[str, Any]]:
    base = _base(path)
    with path.open("rb") as stream:
        for number, line in enumerate(stream, start=1):
            if not cut_is_damage and not line.endswith(b"\n"):
                return  # it is being written
            try:
                entry = _with_places(json.loads(line), lambda p: Path(os.path.normpath(base / p)))
                int(entry["n"])
            except (ValueError, TypeError, KeyError, AttributeError):
                raise TrackingError(
                    f"{path}: line {number} is damaged; remove that line, the others are still good"
                ) from None
            yield entry
