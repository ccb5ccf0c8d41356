"""What happened to a sweep or an evaluation, in order: ``events.jsonl`` in its folder, one JSON object per line, only appended.

Results, curves and costs have files of their own; here stands what no other file says: when its drivers and trials started
and ended, and what was decided to be registered.
"""

import json
import os
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from cddpm import artifact
from cddpm.errors import SearchError

FILE = "events.jsonl"

Kind = Literal["start", "trial started", "trial ended", "register", "end"]


@dataclass(frozen=True)
class Event:
    """One line. ``time``: seconds since 1970."""

    kind: Kind
    time: float
    what: Mapping[str, Any]

    @property
    def number(self) -> int | None:
        """Of the trial that it is about."""
        return self.what.get("number")


def append(folder: Path, kind: Kind, **what: Any) -> None:
    """Write an event down, now, on the disk. Used by the process that holds the folder, alone.

    Raises ``StorageError`` if the disk refuses, ``ValueError`` for what is no JSON.
    """
    path = folder / FILE
    line = json.dumps({"kind": kind, "time": round(time.time(), 3), **what}, allow_nan=False).encode() + b"\n"
    with artifact.storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab+") as stream:
            _drop_cut_line(stream)
            stream.write(line)
            stream.flush()
            os.fsync(stream.fileno())


def _drop_cut_line(stream: Any) -> None:
    """A crash may have cut the last line: it is as if that had not happened."""
    size = stream.seek(0, os.SEEK_END)
    if size:
        stream.seek(size - 1)
        if stream.read(1) != b"\n":
            stream.seek(0)
            stream.truncate(stream.read().rfind(b"\n") + 1)
    stream.seek(0, os.SEEK_END)


def read(folder: Path) -> list[Event]:
    """All events, oldest first; none if nothing happened. A last line that is being written is left out.

    Raises ``SearchError`` for a damaged line.
    """
    path = folder / FILE
    try:
        lines = path.read_bytes().split(b"\n")[:-1]
    except FileNotFoundError:
        return []
    found = []
    for number, line in enumerate(lines, 1):
        try:
            raw = json.loads(line)
            found.append(Event(raw.pop("kind"), float(raw.pop("time")), raw))
        except (ValueError, TypeError, KeyError, AttributeError):
            raise SearchError(
                f"{path}: line {number} is damaged; remove that line, the others are still good"
            ) from None
    return found


def identity(folder: Path) -> str:
    """What tells this folder's work from that of the same name elsewhere: given at the first start, and moved with it."""
    first = next((event for event in read(folder) if event.kind == "start"), None)
    return str(first.what["identity"]) if first else ""


def new_identity() -> str:
    """A name that nothing else has."""
    return uuid.uuid4().hex[:16]


def start(folder: Path, **what: Any) -> None:
    """A driver starts. Raises as ``append``."""
    append(folder, "start", identity=identity(folder) or new_identity(), **what)


@dataclass(frozen=True)
class Span:
    """When something began and ended, in seconds since 1970. ``what``: of its last start and its end."""

    began: float
    ended: float | None
    """None: it goes on."""
    what: Mapping[str, Any]


@dataclass(frozen=True)
class Life:
    """A sweep or an evaluation and its trials in time."""

    identity: str
    whole: Span
    status: Literal["RUNNING", "FINISHED", "FAILED", "KILLED"]
    trials: Mapping[int, Span]
    registrations: Mapping[int, Event]
    """By trial, the last one."""


def life(folder: Path, running: bool) -> Life | None:
    """What the events of a folder say; None if nothing has begun. ``running``: whether a driver holds it now.

    What nobody has ended, and nobody works on, ended with the last event of its start: a killed driver tells nothing.
    """
    events = read(folder)
    starts = [index for index, event in enumerate(events) if event.kind == "start"]
    if not starts:
        return None
    first, last, final = events[starts[0]], events[starts[-1]], events[-1]
    over = next((event for event in events[starts[-1] :] if event.kind == "end"), None)
    alive = running and over is None
    trials: dict[int, Span] = {}
    for index, event in enumerate(events):
        number = event.number
        if number is None or event.kind == "register":
            continue
        known = trials.get(number)
        began = known.began if known else event.time
        started = event.kind == "trial started"
        what = dict(event.what) if started else {**(known.what if known else {}), **event.what}
        goes_on = started and alive and index > starts[-1]
        over_at = _cut_off(events, index) if started else event.time
        trials[number] = Span(began, None if goes_on else over_at, what)
    return Life(
        str(first.what.get("identity", "")),
        Span(first.time, None if alive else (over or final).time, last.what),
        "RUNNING" if alive else over.what["status"] if over else "KILLED",
        trials,
        {int(e.what["number"]): e for e in events if e.kind == "register"},
    )


def _cut_off(events: list[Event], index: int) -> float:
    """When a trial ended of which nobody said so: with the last event of that start."""
    later = next((i for i, event in enumerate(events) if i > index and event.kind == "start"), len(events))
    return events[later - 1].time
