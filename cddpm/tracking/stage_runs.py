"""Runs of stages: what a sweep or an evaluation really computed, each a child run; who finds it ready is linked to that run."""

from collections.abc import Mapping
from pathlib import Path

from cddpm.tracking import names
from cddpm.tracking.runs import LabBook
from cddpm.training import checkpoint, ledger
from cddpm.training.ledger import Entry
from cddpm.training.watch import Sample, StageRecord

_SYSTEM = {
    "cpu_percent": names.CPU_USED,
    "memory_mb": names.MEMORY_USED,
    "memory_percent": names.MEMORY_USED_PERCENT,
    "process_mb": names.PROCESS_MEMORY,
    "gpu_memory_mb": names.gpu_metric(0, "memory_usage_megabytes"),
    "gpu_percent": names.gpu_metric(0, "utilization_percentage"),
}


class StageRuns:
    """The stages of one sweep or evaluation, entered as they are found in its ledger; used by the driver alone."""

    def __init__(self, book: LabBook, parent: str, campaign: Path, artifacts: Path) -> None:
        """``parent``: key of the campaign's run; ``campaign``: its folder; ``artifacts``: where curves lie."""
        self._book, self._parent, self._campaign, self._artifacts = book, parent, campaign, artifacts
        self._entries: dict[str, Entry] = {}

    def enter(self) -> None:
        """Enter what was computed since the last call. Raises as ``ledger.read``."""
        for name, entry in ledger.read(self._campaign, frozenset(self._entries)):
            self._entries[name] = entry
            self._enter(entry)

    def link(self, run: str, trial: int, used: Mapping[str, str | None]) -> None:
        """Say what a trial's ``run`` is made of: ``used`` has the fingerprint of each stage, None where there is none.

        Tags tell which of them this trial computed and which it found; each is linked to the run that made it, which may
        be of an earlier sweep.
        """
        self.enter()
        there = {stage: fingerprint for stage, fingerprint in used.items() if fingerprint}
        made = [stage for stage, fingerprint in there.items() if self._maker(stage, fingerprint) == trial]
        reused = [stage for stage in there if stage not in made]
        self._book.set_tags(run, {names.MADE: ", ".join(made) or "-", names.REUSED: ", ".join(reused) or "-"})
        for stage, fingerprint in there.items():
            self._book.link(run, stage, fingerprint)

    def gpu_seconds(self, trial: int) -> float:
        """Booked by the stages that a trial has computed."""
        return sum(entry.record.gpu_seconds for entry in self._entries.values() if entry.trial == trial)

    def _maker(self, stage: str, fingerprint: str) -> int | None:
        entry = self._entries.get(f"{stage}-{fingerprint}")
        return entry.trial if entry else None

    def _enter(self, entry: Entry) -> None:
        record = entry.record
        by = "" if entry.trial is None else f" of {entry.trial:04d}"
        name = f"{record.stage}{by} {record.fingerprint[:8]}"
        slug = f"{record.stage}-{record.fingerprint}"
        run = self._book.child(self._parent, slug, names.KIND_STAGE, name, {}, _tags(entry), began=record.began)
        if history := self._history(record):
            self._book.log_history(run, history)
        self._book.log_metrics(run, {names.SECONDS: record.seconds, names.GPU_SECONDS: record.gpu_seconds}, 0)
        self._book.log_samples(run, [_named(sample) for sample in record.samples])
        self._book.close(run, "FINISHED", ended=record.began + record.seconds)

    def _history(self, record: StageRecord) -> list[dict[str, float]]:
        kind = "checkpoint" if record.stage == "guide" else record.stage
        file = self._artifacts / kind / record.fingerprint / checkpoint.HISTORY
        return checkpoint.read_history(file) if file.exists() else []


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
