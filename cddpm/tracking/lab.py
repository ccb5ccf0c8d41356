"""The lab book of a sweep or an evaluation, as its driver keeps it: events into the folder, which MLflow is kept like."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from cddpm import events
from cddpm.config import ExperimentConfig
from cddpm.errors import StoppedError
from cddpm.tracking.address import kept
from cddpm.tracking.mirror import MirroredRun
from cddpm.tracking.publish import Mirror
from cddpm.tracking.publisher import Publisher

_SECONDS_AT_END = 60.0
"""How long the last runs of a sweep may take to get into MLflow; what is left then waits."""


@dataclass
class Lab:
    """Used by the driver alone; a context manager."""

    folder: Path
    output_dir: Path
    publisher: Publisher
    left: int = 0
    """After ``close``: runs that MLflow does not show whole yet."""

    @classmethod
    def open(cls, config: ExperimentConfig, folder: Path, runs: Callable[[], Iterable[MirroredRun]]) -> Self:
        """Begin to publish what ``runs`` reads from ``folder``. Raises as ``Publisher.start``."""
        publisher = Publisher(folder, Mirror.of(config.tracking, config.output_dir), runs)
        publisher.start(config.tracking.when_away == "refuse")
        return cls(folder, config.output_dir, publisher)

    @property
    def uri(self) -> str:
        """MLflow's tracking URI."""
        return self.publisher.mirror.uri

    @property
    def away(self) -> str | None:
        """What to tell the person if MLflow did not answer at the start."""
        return kept(self.publisher.away, self.folder, self.output_dir)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        if kind is not None:
            self.enter("end", status="KILLED" if kind is StoppedError else "FAILED")
        self.publisher.end(5.0 if kind is not None else 0.0)

    def enter(self, kind: events.Kind, **what: Any) -> None:
        """Write an event down. Raises ``StorageError`` if the disk refuses."""
        events.append(self.folder, kind, **what)
        self.publisher.wake()

    def wake(self) -> None:
        """The folder has changed: a start, a new point of a curve."""
        self.publisher.wake()

    def started(self, number: int, params: dict[str, Any], store: str = "") -> None:
        """A trial starts, or is continued, on the slice store of this fingerprint."""
        self.enter("trial started", number=number, params=params, store=store)

    def ended(self, number: int, how: str, error: str | None = None) -> None:
        """How a trial ended; what it found is in its folder."""
        self.enter("trial ended", number=number, how=how, **({"error": error} if error else {}))

    def close(self) -> int:
        """All is over; returns how many runs MLflow does not show whole yet."""
        self.enter("end", status="FINISHED")
        self.left = self.publisher.flush(_SECONDS_AT_END)
        return self.left
