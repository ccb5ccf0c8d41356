"""Runs of stages: what a sweep or an evaluation really computed, each a child run; who finds it ready is linked to that run."""

import math
from collections.abc import Mapping
from pathlib import Path

from cddpm.tracking import names
from cddpm.tracking.mirror import MirroredRun, Point, curve, samples
from cddpm.training import checkpoint
from cddpm.training.watch import Entry, Sample, StageRecord, kept_records

_SYSTEM = {
    "cpu_percent": names.CPU_USED,
    "memory_mb": names.MEMORY_USED,
    "memory_percent": names.MEMORY_USED_PERCENT,
    "process_mb": names.PROCESS_MEMORY,
    "gpu_memory_mb": names.gpu_metric(0, "memory_usage_megabytes"),
    "gpu_percent": names.gpu_metric(0, "utilization_percentage"),
}


class StageRuns:
    """The stages in the ledger of a sweep or an evaluation; each is read once."""

    def __init__(self, folder: Path, artifacts: Path) -> None:
        """``folder``: of the sweep or evaluation; ``artifacts``: where curves lie."""
        self._folder, self._artifacts = folder, artifacts
        self._entries: dict[str, Entry] = {}
        self._runs: dict[str, MirroredRun] = {}

    def runs(self, sweep: str, campaign: str) -> list[MirroredRun]:
        """A run per stage, under the key ``sweep`` of the folder with this identity. Raises as ``kept_records``."""
        for name, entry in kept_records(self._folder, frozenset(self._entries)):
            self._entries[name] = entry
            self._runs[name] = self._run(entry, sweep, campaign)
        return list(self._runs.values())

    def of(self, trial: int) -> list[Entry]:
        """What a trial has computed, as far as ``runs`` has read."""
        return [entry for entry in list(self._entries.values()) if entry.trial == trial]

    def shares(self, trial: int, used: Mapping[str, str]) -> dict[str, str]:
        """Tags that tell which of the stages ``used`` (stage -> fingerprint) a trial computed and which it found."""
        made = [stage for stage, fingerprint in used.items() if self._maker(stage, fingerprint) == trial]
        reused = [stage for stage in used if stage not in made]
        return {names.MADE: ", ".join(made) or "-", names.REUSED: ", ".join(reused) or "-"}

    def gpu_seconds(self, trial: int) -> float:
        """Booked by the stages that a trial has computed."""
        return math.fsum(entry.record.gpu_seconds for entry in self.of(trial))

    def _maker(self, stage: str, fingerprint: str) -> int | None:
        entry = self._entries.get(f"{stage}-{fingerprint}")
        return entry.trial if entry else None

    def _run(self, entry: Entry, sweep: str, campaign: str) -> MirroredRun:
        record = entry.record
        by = "" if entry.trial is None else f" of {entry.trial:04d}"
        points, flags = self._curves(record)
        return MirroredRun(
            key=names.child_key(sweep, f"{record.stage}-{record.fingerprint}"),
            kind=names.KIND_STAGE,
            name=f"{record.stage}{by} {record.fingerprint[:8]}",
            campaign=campaign,
            status="FINISHED",
            began=record.began,
            ended=record.began + record.seconds,
            tags={**_tags(entry), **flags},
            points=[*points, *samples(_named(sample) for sample in record.samples)],
            metrics={names.SECONDS: record.seconds, names.GPU_SECONDS: record.gpu_seconds},
        )

    def _curves(self, record: StageRecord) -> tuple[list[Point], dict[str, str]]:
        kind = "checkpoint" if record.stage == "guide" else record.stage
        file = self._artifacts / kind / record.fingerprint / checkpoint.HISTORY
        return curve(checkpoint.timed_history(file) if file.exists() else [], record.began)


def _tags(entry: Entry) -> dict[str, str]:
    record = entry.record
    found = {
        names.STAGE: record.stage,
        names.FINGERPRINT: record.fingerprint,
        names.HOST: record.host,
        names.PROCESSOR: record.processor,
        names.GPUS: record.gpu or "none",
    }
    return found if entry.trial is None else {**found, names.TRIAL: str(entry.trial)}


def _named(sample: Sample) -> dict[str, float]:
    return {_SYSTEM.get(name, name): value for name, value in sample.items()}
