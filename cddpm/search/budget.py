"""What a sweep may spend, and what it has spent: over all its starts, by a clock that nobody can set.

Spent amounts lie in ``<sweep>/budget.json``. A driver that dies loses at most the last few seconds of them.
"""

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from cddpm import artifact
from cddpm.config import SearchConfig
from cddpm.errors import SearchError, StorageError
from cddpm.training.worker import SPENT

logger = logging.getLogger(__name__)

FILE = "budget.json"
TICK_SECONDS = 5.0


@dataclass(frozen=True)
class Spent:
    """Amounts over all starts of a sweep. Hours are booked ones: what a trial holds counts, whether it is used or not."""

    seconds: float = 0.0
    """Wall-clock time in which a driver was running trials."""
    cpu_hours: float = 0.0
    gpu_hours: float = 0.0

    def exceeded(self, search: SearchConfig) -> str | None:
        """Which limit of ``search`` is reached, in words; None if none is."""
        for name, spent, limit in (
            ("search.maximum_seconds", self.seconds, search.maximum_seconds),
            ("search.maximum_cpu_hours", self.cpu_hours, search.maximum_cpu_hours),
            ("search.maximum_gpu_hours", self.gpu_hours, search.maximum_gpu_hours),
        ):
            if limit is not None and spent >= limit:
                return f"{name}: {spent:.4g} of {limit:.4g} are spent"
        return None


def read(sweep: Path) -> Spent:
    """What the sweep has spent so far. Raises ``SearchError`` for a damaged file."""
    path = sweep / FILE
    if not path.exists():
        return Spent()
    return artifact.read_json(path, Spent, "a record of what was spent", "delete it to begin at zero", SearchError)


@dataclass
class Meter:
    """Counts while a driver runs trials: ``hold`` when one starts, ``release`` when it ends."""

    sweep: Path
    per_trial: Mapping[str, float]
    """CPUs and GPUs that one trial books, by Ray's names ``CPU`` and ``GPU``."""
    clock: Callable[[], float] = time.monotonic
    limits: SearchConfig | None = None
    """When they are reached, running trials are asked to save their state and end."""
    _spent: Spent = field(default_factory=Spent, init=False)
    _trials: set[int] = field(default_factory=set, init=False)
    _last: float | None = field(default=None, init=False)
    _lock: threading.RLock = field(default_factory=threading.RLock, init=False)

    @contextlib.contextmanager
    def running(self, every_seconds: float = TICK_SECONDS) -> Iterator[None]:
        """Count until the block ends, and keep what was counted every few seconds."""
        with self._lock:
            self._spent, self._last = read(self.sweep), self.clock()
        (self.sweep / SPENT).unlink(missing_ok=True)  # a higher limit goes on
        over = threading.Event()
        thread = threading.Thread(target=self._count, args=(over, every_seconds), name="budget", daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join(timeout=every_seconds)
            self.tick()

    def _count(self, over: threading.Event, every_seconds: float) -> None:
        while not over.wait(every_seconds):
            self.tick()

    def hold(self, number: int) -> None:
        """A trial starts."""
        self.tick()
        self._trials.add(number)

    def release(self, number: int) -> None:
        """A trial has ended."""
        self.tick()
        self._trials.discard(number)

    def tick(self) -> Spent:
        """Add the time since the last look, and keep it; where the disk refuses, it is counted on in memory."""
        with self._lock:
            now = self.clock()
            passed, self._last = max(0.0, now - (now if self._last is None else self._last)), now
            hours = passed * len(self._trials) / 3600
            self._spent = Spent(
                self._spent.seconds + passed,
                self._spent.cpu_hours + hours * self.per_trial.get("CPU", 0.0),
                self._spent.gpu_hours + hours * self.per_trial.get("GPU", 0.0),
            )
            try:
                artifact.write_json(self.sweep / FILE, asdict(self._spent))
                if self.limits is not None and self._spent.exceeded(self.limits):
                    (self.sweep / SPENT).touch()
            except (StorageError, OSError) as error:
                logger.warning("what was spent is not kept now: %s", error)
            return self._spent
