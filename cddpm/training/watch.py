"""What a stage costs while it is made: seconds, GPU-seconds, and samples of the machine it runs on; and where that is kept.

A sweep or an evaluation has one JSON file per stage that it computed, in ``<folder>/stages``. A worker writes it when the stage
is there, so a trial that is killed afterwards has still told of it.
"""

import json
import platform
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil
import torch

from cddpm import artifact
from cddpm.errors import ArtifactError

Sample = dict[str, float]
"""``time`` (seconds since 1970), ``cpu_percent``, ``memory_mb``, ``memory_percent``, ``process_mb``; on a GPU also
``gpu_memory_mb`` and, where nvidia-ml-py is installed, ``gpu_percent``."""

_MOST_SAMPLES = 240
_MEGABYTE = 2**20


@dataclass(frozen=True)
class StageRecord:
    """A stage that was computed, not found. Its cost is that of the start that finished it."""

    stage: str
    fingerprint: str
    began: float
    """Seconds since 1970."""
    seconds: float
    workers: int
    gpu_seconds: float
    """Booked: GPUs of all workers, whether busy or not."""
    host: str
    processor: str
    gpu: str | None
    """Name of the first worker's GPU."""
    samples: list[Sample] = field(default_factory=list)


class Watch:
    """A context manager that samples this machine until it is left; then ``record`` says what it saw.

    Every ``every_seconds`` at first; a long stage is sampled more rarely, so that a few hundred samples tell all of it.
    """

    def __init__(self, device: torch.device, every_seconds: float = 5.0) -> None:
        self._device, self._every = device, every_seconds
        self._samples: list[Sample] = []
        self._process = psutil.Process()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="cddpm-watch", daemon=True)
        self._began, self._start, self._seconds = 0.0, 0.0, 0.0

    def __enter__(self) -> Self:
        self._began, self._start = time.time(), time.monotonic()
        psutil.cpu_percent()  # the first call only opens the interval
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._seconds = time.monotonic() - self._start
        self._over.set()
        self._thread.join()
        self._samples.append(self._sample())

    def record(self, stage: str, fingerprint: str, workers: int = 1, gpus: float = 0.0) -> StageRecord:
        """What was seen; ``gpus``: how many all workers booked."""
        cuda = self._device.type == "cuda"
        return StageRecord(
            stage=stage,
            fingerprint=fingerprint,
            began=self._began,
            seconds=self._seconds,
            workers=workers,
            gpu_seconds=self._seconds * gpus,
            host=platform.node(),
            processor=processor(),
            gpu=torch.cuda.get_device_name(self._device) if cuda else None,
            samples=list(self._samples),
        )

    def _run(self) -> None:
        while not self._over.wait(self._every):
            self._samples.append(self._sample())
            if len(self._samples) >= _MOST_SAMPLES:
                self._samples, self._every = self._samples[1::2], 2 * self._every

    def _sample(self) -> Sample:
        memory = psutil.virtual_memory()
        found = {
            "time": time.time(),
            "cpu_percent": psutil.cpu_percent(),
            "memory_mb": memory.used / _MEGABYTE,
            "memory_percent": memory.percent,
            "process_mb": self._process.memory_info().rss / _MEGABYTE,
        }
        return {**found, **self._gpu()} if self._device.type == "cuda" else found

    def _gpu(self) -> Sample:
        free, total = torch.cuda.mem_get_info(self._device)
        found = {"gpu_memory_mb": (total - free) / _MEGABYTE}
        try:
            found["gpu_percent"] = float(torch.cuda.utilization(self._device))
        except (ImportError, RuntimeError):  # no nvidia-ml-py, or a driver that does not tell
            return found
        return found


def processor() -> str:
    """Name of this machine's processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or platform.machine())


STAGES = "stages"


@dataclass(frozen=True)
class Entry:
    """A stage and the trial that computed it; None: the driver did, for all."""

    record: StageRecord
    trial: int | None


def keep_record(folder: Path, record: StageRecord, trial: int | None) -> None:
    """Write a stage down in ``folder`` (of the sweep or evaluation). Raises ``StorageError`` if the disk refuses."""
    path = folder / STAGES / f"{record.stage}-{record.fingerprint}.json"
    artifact.write_json(path, {**asdict(record), "trial": trial})


def kept_records(folder: Path, known: frozenset[str] = frozenset()) -> Iterator[tuple[str, Entry]]:
    """Name and contents of each stage that is not in ``known``. Raises ``ArtifactError`` for a damaged file."""
    for path in sorted((folder / STAGES).glob("*.json")):
        if path.stem not in known:
            yield path.stem, _read(path)


def _read(path: Path) -> Entry:
    try:
        row = json.loads(path.read_text())
        trial = row.pop("trial")
        return Entry(StageRecord(**row), trial)
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise ArtifactError(
            f"{path}: not a record of a stage ({error}); remove it: only what it cost is lost"
        ) from error
