"""What a sweep may spend, and what it has spent: over all its starts, by a clock that nobody can set.

Spent amounts lie in ``<sweep>/budget.json``. A driver that dies loses at most the last few seconds of them.
Beside them stand the trials that were added to a finished sweep, whose configuration stays what it was.

Failed trials that are alike end a sweep before its budget does: a fault of the data, the machine or the configuration meets
every trial to come. Two messages are alike if their first lines are, but for numbers, fingerprints and paths. What counts are
failures in a row: a trial that ends otherwise shows that the next one may, and the count begins anew. Each start of a sweep
begins at zero, so that one which was mended can be resumed.
"""

import contextlib
import logging
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from cddpm import artifact
from cddpm.config import ExperimentConfig, SearchConfig, with_values
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


EXTENSIONS = "extensions.json"
TRIALS = "search.training.trials"


def extended(sweep: Path, config: ExperimentConfig, more: int = 0) -> ExperimentConfig:
    """``config`` with the trials that were added to the sweep so far, and ``more``.

    Raises ``SearchError`` for a damaged record, ``ConfigError`` if the space does not hold so many.
    """
    added = sum(_read(sweep)) + more
    total = config.search.training.trials + added
    return with_values(config, {TRIALS: total}, f"--extend {more}") if added else config


def extend(sweep: Path, config: ExperimentConfig, more: int, ended: int) -> None:
    """Keep that ``more`` trials were added; ``ended``: trials of the sweep that have ended.

    Raises ``SearchError`` unless the sweep is finished: one that was interrupted while it was extended is resumed.
    """
    if more < 1:
        raise SearchError(f"--extend {more}: allowed is 1 or more")
    total = extended(sweep, config).search.training.trials
    if ended < total:
        raise SearchError(
            f"--extend {more}: {total - ended} of the {total} trials of sweep '{config.name}' are still missing; "
            "finish them with --resume first"
        )
    extended(sweep, config, more)
    artifact.write_json(sweep / EXTENSIONS, [*_read(sweep), more])


def _read(sweep: Path) -> list[int]:
    path = sweep / EXTENSIONS
    if not path.exists():
        return []
    return artifact.read_json(path, list[int], "a record of extensions", "restore it, or use another name", SearchError)
