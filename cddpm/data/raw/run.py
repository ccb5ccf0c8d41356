"""Prepare every subject: read its files, go through the steps, write what came of it with a manifest.

A subject is done where its manifest says so and every file of it is there: it is not looked at again. One that was stopped goes
on behind its last expensive step. Nothing of a run depends on how many work at once, so neither does a byte of a volume.
"""

import shutil
import time
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from cddpm.artifact import file_digest, lock
from cddpm.data.many import ParallelMap
from cddpm.data.raw import manifest, states
from cddpm.data.raw.depot import STATES, Depot
from cddpm.data.raw.head import Grid, Head, RawSubject, Step
from cddpm.data.raw.names import Names, Veil
from cddpm.data.raw.tables import Row
from cddpm.data.raw.tree import Found
from cddpm.errors import CddpmError, DataError

NOTHING = Veil("")
SHIFT_MM = 0.05
"""Grids that differ by less are one."""


@dataclass(frozen=True)
class Job:
    """One subject under its name in DATA_DIR, and what may be told of its files."""

    subject: RawSubject
    healthy: bool
    paths: Mapping[str, str]
    """By modality, ``mask`` or ``segmentation``: the path as the manifest has it."""
    veil: Veil = NOTHING


@dataclass(frozen=True)
class Work:
    """What is done to every subject, and where it goes."""

    depot: Depot
    steps: tuple[Step, ...]
    series: Mapping[str, str] = field(default_factory=dict)
    """DICOM series by modality; under an empty name for all."""
    masked_steps: tuple[Step, ...] | None = None
    """Of subjects that bring a brain mask; empty: the same."""

    def steps_of(self, subject: RawSubject) -> tuple[Step, ...]:
        """What is done to ``subject``."""
        return self.steps if subject.mask is None or self.masked_steps is None else self.masked_steps


@dataclass(frozen=True)
class Outcome:
    """What came of one subject."""

    job: Job
    state: Literal["made", "there", "failed"]
    seconds: float = 0.0
    warnings: tuple[str, ...] = ()
    error: str = ""

    @property
    def name(self) -> str:
        """``dataset/subject``."""
        return f"{self.job.subject.dataset}/{self.job.subject.subject}"

    @property
    def row(self) -> Row:
        """What the tables tell of it."""
        one = self.job.subject
        return Row(one.subject, tuple(one.images), one.label, one.age, one.segmentation is not None)


def jobs_of(found: Found, root: Path, names: Names) -> list[Job]:
    """A job for each subject, in order of their names in DATA_DIR. Raises ``DataError`` if two would have one name."""
    jobs = []
    for subject in found.subjects:
        files = files_of(subject)
        veil = names.veil(root, files.values(), [(subject.dataset, subject.subject)])
        own = RawSubject(**{**vars(subject), "subject": names.subject(subject.dataset, subject.subject)})
        jobs.append(Job(own, found.healthy, {role: names.path(path, root) for role, path in files.items()}, veil))
    # on a disk that takes capitals for small letters, two such would be one file
    folded = [job.subject.subject.casefold() for job in jobs]
    twice = sorted({job.subject.subject for job in jobs if folded.count(job.subject.subject.casefold()) > 1})
    if twice:
        raise DataError(
            f"{found.dataset}: subjects that cannot be told apart by name ({', '.join(twice[:3])}); rename one"
        )
    return sorted(jobs, key=lambda job: job.subject.subject)


def prepare(work: Work, jobs: Sequence[Job], parallel_map: ParallelMap) -> Iterator[Outcome]:
    """The outcome of every job, in their order, as ``parallel_map`` brings them; function and items pickle.

    Raises ``DataError`` if another process prepares into the same folder, ``StorageError`` if the disk refuses at once.
    """
    if work.depot.folder is None:
        yield from parallel_map(partial(prepare_subject, work), list(jobs))
        return
    folder = work.depot.folder.absolute()
    try:
        with lock(folder.with_name(f".{folder.name}.prepare.lock"), wait=False):
            yield from parallel_map(partial(prepare_subject, work), list(jobs))
            _sweep(work.depot.workplace)
    except BlockingIOError:
        raise DataError(f"{work.depot.place}: another process prepares scans into it; wait for it, or end it") from None


def prepare_subject(work: Work, job: Job) -> Outcome:
    """Bring one subject into DATA_DIR; what goes wrong is told in the outcome, with hidden names hidden."""
    import SimpleITK as sitk  # noqa: N813 - slow to import

    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)  # sums of several threads differ from run to run
    began = time.monotonic()
    try:
        state, warnings = _prepared(work, job)
        return Outcome(job, state, time.monotonic() - began, tuple(warnings))
    except CddpmError as error:
        said = job.veil.over(str(error))
    except Exception as error:  # noqa: BLE001 - a fault that nobody foresaw must not end the others' work
        # the veil first: half a name, or one with other blanks, it would not know
        said = f"{type(error).__name__}: {' '.join(job.veil.over(str(error)).split())[:300]}"
    return Outcome(job, "failed", time.monotonic() - began, error=said)


def _prepared(work: Work, job: Job) -> tuple[Literal["made", "there"], list[str]]:
    from cddpm.data.raw.reading import read_head, source_digest  # SimpleITK and nibabel, where the work is done

    one, depot, steps = job.subject, work.depot, work.steps_of(job.subject)
    digests = {role: source_digest(path) for role, path in files_of(one).items()}
    keys = manifest.chain(one, digests, dict(work.series), steps)
    before = depot.read_json(manifest.name_of(one.dataset, one.subject))
    targets = _targets(job)
    if _is_done(depot, before, keys[-1], one.label, targets):
        return "there", list(before.get("warnings", []))
    ours = {*before.get("outputs", {}), *depot.read_json(_claim(job)).get("files", [])}
    _refuse_foreign(depot, ours, targets)
    folder = depot.workplace / one.dataset / one.subject
    reached = states.last(folder, keys[1:])
    if reached is None:
        read = read_head(one, work.series)
        reached = 0, read.head, [{"notes": list(read.notes), "defaced": read.defaced}]
    done, head, entries = reached
    for place, step in enumerate(steps[done:], start=done + 1):
        step_began = time.monotonic()
        head, figures = step.run(head)
        seconds = time.monotonic() - step_began
        entries.append(manifest.entry(step, seconds, dict(figures)))
        if seconds >= states.EXPENSIVE_SECONDS and place < len(steps):
            states.keep(folder, keys[place], head, entries)
    warnings = _write(work, job, head, entries, keys[-1], digests, ours, targets)
    shutil.rmtree(folder, ignore_errors=True)
    return "made", warnings


def _write(
    work: Work,
    job: Job,
    head: Head,
    entries: list[dict[str, Any]],
    key: str,
    digests: Mapping[str, str],
    ours: Set[str],
    targets: Mapping[str, str],
) -> list[str]:
    """Files, then the manifest; those ``ours`` from before that are none of this one's go."""
    from cddpm.data.raw.verdict import told, verdict
    from cddpm.data.volume import write_volume

    one, depot = job.subject, work.depot
    _check_result(one, head)
    name, claim = manifest.name_of(one.dataset, one.subject), _claim(job)
    depot.delete(name)
    depot.write_json(claim, {"files": sorted({*targets.values(), *ours})})
    scratch = depot.workplace / one.dataset / one.subject / "out"
    outputs = {}
    grids: dict[str, Grid | None] = {**head.images, "mask": head.mask, "seg": head.segmentation}
    for kind, target in targets.items():
        grid = grids[kind]
        assert grid is not None
        file = scratch / Path(target).name
        write_volume(file, grid.data, grid.affine, dtype=np.float32 if kind in head.images else grid.data.dtype)
        outputs[target] = {"sha256": file_digest(file), "bytes": file.stat().st_size}
        depot.put(file, target)
    first, *steps = entries
    figures, doubts = verdict(head)
    warnings = [*told(first["notes"], steps), *doubts]
    depot.write_json(
        name,
        {
            "version": manifest.VERSION,
            "dataset": one.dataset,
            "subject": one.subject,
            "key": key,
            "label": one.label,
            "modalities": list(one.images),
            "sources": {role: {"path": job.paths[role], "sha256": digest} for role, digest in digests.items()},
            "series": manifest.series_told(work.series),
            **first,
            "steps": steps,
            "figures": figures,
            "warnings": warnings,
            "outputs": outputs,
            "versions": manifest.versions(),
        },
    )
    for old in ours - set(outputs):
        depot.delete(old)
    depot.delete(claim)
    return warnings


def files_of(subject: RawSubject) -> dict[str, Path]:
    """By modality, ``mask`` or ``segmentation``."""
    others = {"mask": subject.mask, "segmentation": subject.segmentation}
    return {**subject.images, **{role: path for role, path in others.items() if path is not None}}


def _targets(job: Job) -> dict[str, str]:
    """Files of DATA_DIR by modality, ``mask`` and ``seg``."""
    one = job.subject
    kinds = [*one.images, "mask", *(["seg"] if one.segmentation else [])]
    return {kind: manifest.file_name(one.dataset, job.healthy, kind, one.subject) for kind in kinds}


def _is_done(depot: Depot, record: Mapping[str, Any], key: str, label: int, targets: Mapping[str, str]) -> bool:
    outputs = record.get("outputs", {})
    as_asked = record.get("key") == key and record.get("label") == label and set(outputs) == set(targets.values())
    return as_asked and all(depot.has(name, one["sha256"], one["bytes"]) for name, one in outputs.items())


def _claim(job: Job) -> str:
    """A record of files that are being written: what is there without a manifest is ours then."""
    return f"{STATES}/{job.subject.dataset}/{job.subject.subject}.json"


def _refuse_foreign(depot: Depot, ours: Set[str], targets: Mapping[str, str]) -> None:
    foreign = [name for name in targets.values() if name not in ours and depot.is_there(name)]
    if foreign:
        raise DataError(
            f"{foreign[0]}: is there already and has no manifest of ours; name a new DATA_DIR, or remove it"
        )


def _check_result(subject: RawSubject, head: Head) -> None:
    """What DATA_DIR needs: a brain mask, and all of a subject on one grid."""
    if head.mask is None:
        raise DataError(
            f"{subject.subject}: no brain mask after all steps; add a step that extracts the brain, or give masks"
        )
    if not (head.mask.data > 0).any():
        raise DataError(f"{subject.subject}: the brain mask is empty after all steps; look at this scan")
    if subject.segmentation and head.segmentation is None:
        raise DataError(f"{subject.subject}: a step lost the segmentation; leave that step out")
    reference = head.reference
    grids = {**head.images, "mask": head.mask, **({"segmentation": head.segmentation} if head.segmentation else {})}
    for name, grid in grids.items():
        if grid.data.shape != reference.data.shape or np.abs(grid.affine - reference.affine).max() > SHIFT_MM:
            raise DataError(
                f"{subject.subject}: after all steps the {name} lies on another grid; add a step that resamples"
            )
        if not np.isfinite(grid.data).all():
            raise DataError(
                f"{subject.subject}: after all steps the {name} holds NaN or infinite voxels; look at this scan"
            )


def _sweep(workplace: Path) -> None:
    """Folders of unfinished work that are empty now."""
    for folder in sorted(workplace.rglob("*"), reverse=True) if workplace.is_dir() else ():
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()
    if workplace.is_dir() and not any(workplace.iterdir()):
        workplace.rmdir()
