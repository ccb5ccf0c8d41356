"""The lab book of one evaluation, as its driver keeps it: events into the folder, which MLflow is kept like."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from cddpm import events
from cddpm.config import ExperimentConfig
from cddpm.errors import StoppedError
from cddpm.evaluation import mirror
from cddpm.evaluation.fold import FoldRun
from cddpm.tracking.address import kept
from cddpm.tracking.publish import Mirror
from cddpm.tracking.publisher import Publisher


@dataclass
class Notebook:
    """Used by the driver alone; a context manager."""

    folder: Path
    output_dir: Path
    publisher: Publisher

    @classmethod
    def open(cls, config: ExperimentConfig, kind: str, name: str, folder: Path, runs: Sequence[FoldRun]) -> Self:
        """Begin to publish. Raises as ``Publisher.start``."""
        publisher = Publisher(
            folder, Mirror.of(config.tracking, config.output_dir), mirror.EvaluationMirror(folder).runs
        )
        publisher.start(config.tracking.when_away == "refuse")
        mirror.keep(folder, kind, name, config, runs)
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
            self._enter("end", status="KILLED" if kind is StoppedError else "FAILED")
        self.publisher.end(5.0 if kind is not None else 0.0)

    def _enter(self, kind: events.Kind, **what: Any) -> None:
        events.append(self.folder, kind, **what)
        self.publisher.wake()

    def started(self, number: int) -> None:
        """A run starts, or is continued."""
        self._enter("trial started", number=number)

    def ended(self, number: int, error: str | None = None) -> None:
        """A run is over; what it found is in its folder."""
        self._enter("trial ended", number=number, **({"error": error} if error else {}))

    def finish(self) -> int:
        """The tables are there; returns how many of its runs MLflow does not show whole yet."""
        self._enter("end", status="FINISHED")
        return self.publisher.flush(60.0)
