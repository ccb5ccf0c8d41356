"""The lab book of a sweep or an evaluation: its driver writes events into the folder, a thread keeps MLflow like it.

The thread has patience, and never lets a fault out.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Self

from cddpm import artifact, events
from cddpm.config import ExperimentConfig
from cddpm.errors import AwayError, CddpmError, StoppedError, TrackingError
from cddpm.tracking import connection
from cddpm.tracking.address import kept
from cddpm.tracking.mirror import MirroredRun
from cddpm.tracking.publish import Mirror

logger = logging.getLogger(__name__)

LOCK = ".publishing"
"""Held while a folder is published: two processes at once would make a run twice."""
_FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 0.25, 15.0
_REST_SECONDS = 1.0
"""Between two looks at a folder that changes all the time."""
_PATIENCE_SECONDS = 10.0
_SECONDS_AT_END, _SECONDS_AT_FAULT = 60.0, 5.0
"""How long the last runs may take to get into MLflow; what is left then waits."""


class Lab:
    """Used by the driver alone; a context manager. Publishes what ``runs`` reads from ``folder`` whenever it is woken."""

    def __init__(self, folder: Path, mirror: Mirror, runs: Callable[[], Iterable[MirroredRun]]) -> None:
        self.folder, self.mirror, self._runs = folder, mirror, runs
        self._changed = threading.Condition()
        self._wanted, self._reached = 0, 0
        """Numbers of looks: how many were asked for, and up to which one MLflow is like the folder."""
        self._hurry = self._stopping = False
        self._pause_seconds = 0.0
        self._silent_since: float | None = None
        self._seen: list[MirroredRun] = []
        """What the last look found."""
        self._thread = threading.Thread(target=self._run, name="cddpm-lab", daemon=True)
        self._closed = False
        self.last_fault: str | None = None
        self.away: str | None = None
        """Why MLflow did not answer at the start, and what comes of it, for the person; None if it did."""
        self.left = 0
        """After ``close``: runs that MLflow does not show whole yet."""

    @classmethod
    def open(cls, config: ExperimentConfig, folder: Path, runs: Callable[[], Iterable[MirroredRun]]) -> Self:
        """Begin to publish into the MLflow of a configuration. Raises as ``start``."""
        found = cls(folder, Mirror.of(config.tracking, config.output_dir), runs)
        found.start(config.tracking.when_away == "refuse")
        found.away = kept(found.away, folder, config.output_dir)
        return found

    def start(self, must_answer: bool) -> None:
        """Connect and begin. A server that is away is no error, unless ``must_answer``: ``away`` says why.

        Raises ``AwayError`` if it is one, ``TrackingError`` for what no waiting mends.
        """
        try:
            with connection.told(self.mirror.uri):
                self.mirror.connect()
        except AwayError as error:
            if must_answer:
                raise
            self.away = str(error)
        self._thread.start()

    @property
    def uri(self) -> str:
        """MLflow's tracking URI."""
        return self.mirror.uri

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        if kind is not None:
            self.enter("end", status="KILLED" if kind is StoppedError else "FAILED")
        self.end(0.0 if self._closed and kind is None else _SECONDS_AT_FAULT)

    # What the driver says

    def enter(self, kind: events.Kind, **what: Any) -> None:
        """Write an event down. Raises ``StorageError`` if the disk refuses."""
        events.append(self.folder, kind, **what)
        self.wake()

    def started(self, number: int, params: dict[str, Any], store: str = "") -> None:
        """A trial starts, or is continued, on the slice store of this fingerprint."""
        self.enter("trial started", number=number, params=params, store=store)

    def ended(self, number: int, how: str, error: str | None = None) -> None:
        """How a trial ended; what it found is in its folder."""
        self.enter("trial ended", number=number, how=how, **({"error": error} if error else {}))

    def close(self) -> int:
        """All is over; returns how many runs MLflow does not show whole yet."""
        self.enter("end", status="FINISHED")
        self.left, self._closed = self.flush(_SECONDS_AT_END), True
        return self.left

    def wake(self) -> None:
        """Say that the folder has changed: a start, an event, a new point of a curve."""
        with self._changed:
            self._wanted += 1
            self._changed.notify_all()

    def flush(self, timeout_seconds: float) -> int:
        """Publish what the folder says now; returns how many runs MLflow does not show whole yet (0: all is there).

        For a server that does not answer at all it waits no longer than 10 s.
        """
        begin = time.monotonic()
        with self._changed:
            self._wanted += 1
            goal, self._hurry = self._wanted, True
            self._changed.notify_all()
            while self._reached < goal and self._thread.is_alive():
                end = begin + timeout_seconds
                if self._silent_since is not None:
                    end = min(end, max(self._silent_since, begin) + _PATIENCE_SECONDS)
                if (left := end - time.monotonic()) <= 0:
                    break
                self._changed.wait(min(left, 1.0))
            there = self._reached >= goal and not self.mirror.refusals
        return 0 if there else max(1, self.mirror.missing(self._seen))

    def end(self, timeout_seconds: float) -> int:
        """Flush, if there is time, and stop; returns what ``flush`` does. A request under way may outlive it, to no harm."""
        left = self.flush(timeout_seconds) if timeout_seconds and self._thread.is_alive() else 0
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        self._thread.join(5.0)
        return left

    # The thread

    def _run(self) -> None:
        while (goal := self._wait_for_work()) is not None:
            begun = time.monotonic()
            try:
                self._look()
            except Exception as error:  # noqa: BLE001 - whatever MLflow raises, training goes on: the folder has it all
                self._postpone(error)
                continue
            self._settle(goal)
            with self._changed:
                rest = max(_REST_SECONDS, time.monotonic() - begun)
                self._changed.wait_for(lambda: self._stopping or self._hurry, rest)

    def _look(self) -> None:
        with artifact.lock(self.folder / LOCK, wait=False):
            self._seen = list(self._runs())
            self.mirror.publish(self._seen)

    def _wait_for_work(self) -> int | None:
        """The number of the look that is to be reached; None: the end."""
        with self._changed:
            if self._pause_seconds:
                self._changed.wait_for(lambda: self._stopping or self._hurry, self._pause_seconds)
            else:
                self._changed.wait_for(lambda: self._stopping or self._reached < self._wanted)
            self._hurry = False
            return None if self._stopping else self._wanted

    def _settle(self, goal: int) -> None:
        if self._silent_since is not None:
            logger.warning("MLflow answers again after %.0f s", time.monotonic() - self._silent_since)
        with self._changed:
            self._silent_since, self._pause_seconds, self._reached = None, 0.0, goal
            self._changed.notify_all()

    def _postpone(self, error: Exception) -> None:
        self.last_fault = connection.one_line(error)
        if isinstance(error, BlockingIOError):
            self.last_fault = f"{self.folder}: another process is publishing it"
        elif self._silent_since is None:
            self._silent_since = time.monotonic()
            mine = isinstance(error, CddpmError) and not isinstance(error, TrackingError)
            what = "what happens cannot be read for MLflow" if mine else "MLflow does not take what happens"
            logger.warning("%s (%s); the folder keeps it", what, self.last_fault)
        self._pause_seconds = min(max(2 * self._pause_seconds, _FIRST_PAUSE_SECONDS), _LONGEST_PAUSE_SECONDS)
