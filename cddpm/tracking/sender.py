"""The sender: a background thread that drains journals into MLflow, with patience, and never lets a fault out."""

import logging
import shutil
import threading
import time
from pathlib import Path
from typing import Any

from cddpm.errors import StorageError, TrackingError
from cddpm.tracking import connection
from cddpm.tracking.delivery import Delivery, is_refusal
from cddpm.tracking.journal import Journal

logger = logging.getLogger(__name__)

_FIRST_PAUSE_SECONDS = 0.25
_LONGEST_PAUSE_SECONDS = 15.0


class Sender:
    """Delivers the oldest entry of each journal in turn. Start with ``start``; ``flush`` waits, ``stop`` ends it."""

    def __init__(self, delivery: Delivery) -> None:
        self._delivery = delivery
        self._journals: list[Journal] = []
        self._passing: set[Journal] = set()
        self._changed = threading.Condition()
        self._stopping = False
        self._hurry = False
        self._pause_seconds = 0.0
        self._silent_since: float | None = None
        self._thread = threading.Thread(target=self._run, name="cddpm-lab-book", daemon=True)
        self.last_fault: str | None = None
        self.refused = 0
        """Entries that MLflow will never take; they lie in ``<sweep>.refused`` beside the journal."""

    def start(self) -> None:
        """Begin to deliver."""
        self._thread.start()

    def add(self, journal: Journal, until_empty: bool = False) -> None:
        """Drain this journal too; with ``until_empty`` close it then, so that another process may take it over."""
        with self._changed:
            self._journals.append(journal)
            if until_empty:
                self._passing.add(journal)
            self._changed.notify_all()

    def keep(self, journal: Journal) -> bool:
        """Do not close this journal when it is empty; False if that has happened already."""
        with self._changed:
            self._passing.discard(journal)
            return journal in self._journals

    def wake(self) -> None:
        """Say that a journal has grown."""
        with self._changed:
            self._changed.notify_all()

    def undelivered(self) -> int:
        """Entries that MLflow does not have yet."""
        return sum(len(journal) for journal in list(self._journals))

    def flush(self, timeout_seconds: float, patience_seconds: float | None = None) -> int:
        """Try again at once and wait until all is delivered or the time is over; returns how many entries are left.

        With ``patience_seconds`` also end when MLflow has not answered for so long: it does not come back for our sake.
        """
        begin = time.monotonic()
        end, patience = begin + timeout_seconds, timeout_seconds if patience_seconds is None else patience_seconds
        with self._changed:
            self._hurry = True
            self._changed.notify_all()
            while self.undelivered() and self._thread.is_alive():
                silent = self._silent_since
                until = end if silent is None else min(end, max(silent, begin) + patience)
                if (left := until - time.monotonic()) <= 0:
                    break
                self._changed.wait(min(left, 1.0))
        return self.undelivered()

    def stop(self, timeout_seconds: float) -> None:
        """End the thread; an entry under way may outlive the timeout (it is delivered again next time, to no effect)."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        self._thread.join(timeout_seconds)

    def _run(self) -> None:
        while self._wait_for_work():
            for journal in list(self._journals):
                if len(journal) and not self._stopping and not self._send_first(journal):
                    break

    def _wait_for_work(self) -> bool:
        with self._changed:
            if self._pause_seconds:
                self._changed.wait_for(lambda: self._stopping or self._hurry, self._pause_seconds)
            else:
                self._changed.wait_for(lambda: self._stopping or self.undelivered() > 0)
            self._hurry = False
            return not self._stopping

    def _send_first(self, journal: Journal) -> bool:
        """Whether to go on at once."""
        entry = journal.first()
        if entry is None:
            return True
        try:
            self._delivery.deliver(entry)
        except Exception as error:  # noqa: BLE001 - whatever MLflow raises, training goes on and the journal keeps the entry
            if isinstance(error, TrackingError) or not is_refusal(error):
                self._postpone(error)
                return False
            self._refuse(journal, entry, error)
        self._settle(journal, entry)
        return True

    def _settle(self, journal: Journal, entry: dict[str, Any]) -> None:
        try:
            journal.delivered()
            if entry.get("copied"):
                shutil.rmtree(Path(entry["path"]).parent, ignore_errors=True)
        except (StorageError, OSError) as error:
            self._postpone(error)
            return
        if self._silent_since is not None:
            logger.warning("MLflow answers again after %.0f s", time.monotonic() - self._silent_since)
        self._silent_since, self._pause_seconds = None, 0.0
        with self._changed:
            if journal in self._passing and not len(journal):
                self._passing.remove(journal)
                self._journals.remove(journal)
                journal.close()
            self._changed.notify_all()

    def _postpone(self, error: Exception) -> None:
        self.last_fault = connection.one_line(error)
        if self._silent_since is None:
            self._silent_since = time.monotonic()
            logger.warning("MLflow does not take entries (%s); they wait in the journal", self.last_fault)
        self._pause_seconds = min(max(2 * self._pause_seconds, _FIRST_PAUSE_SECONDS), _LONGEST_PAUSE_SECONDS)

    def _refuse(self, journal: Journal, entry: dict[str, Any], error: Exception) -> None:
        self.last_fault = connection.one_line(error)
        self.refused += 1
        try:
            kept = journal.refused(entry, self.last_fault)
        except (StorageError, OSError) as fault:
            kept = journal.path
            logger.error("a refused entry cannot be kept: %s", fault)
        logger.error("MLflow refuses '%s' of run %s: %s (kept in %s)", entry["op"], entry["run"], self.last_fault, kept)
