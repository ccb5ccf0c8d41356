"""The publisher: a thread of the driver that keeps MLflow like the folder, with patience, and never lets a fault out."""

import logging
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from types import TracebackType
from typing import Self

from cddpm import artifact
from cddpm.errors import AwayError, CddpmError, TrackingError
from cddpm.tracking import connection
from cddpm.tracking.mirror import MirroredRun
from cddpm.tracking.publish import Mirror

logger = logging.getLogger(__name__)

LOCK = ".publishing"
"""Held while a folder is published: two processes at once would make a run twice."""
_FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 0.25, 15.0
_REST_SECONDS = 1.0
"""Between two looks at a folder that changes all the time."""
_PATIENCE_SECONDS = 10.0


class Publisher:
    """Publishes what ``runs`` gives whenever it is woken. A context manager: leaving it publishes for up to 5 s more."""

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
        self._thread = threading.Thread(target=self._run, name="cddpm-publisher", daemon=True)
        self.last_fault: str | None = None
        self.away: str | None = None
        """Why MLflow did not answer at the start; None if it did."""

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

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end(5.0)

    def wake(self) -> None:
        """Say that the folder has changed."""
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
