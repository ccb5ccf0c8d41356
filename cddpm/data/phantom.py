"""The phantom: a synthetic DATA_DIR in the published layout, so that everything runs without a scan of any person.

Healthy and ill cartoon brains with T1 and T2 contrast (``phantom_anatomy``, ``phantom_lesions``, ``phantom_scan``), split
files of the published form (``phantom_splits``), and ``phantom.json`` that says what was made.
"""

import json
import logging
import multiprocessing
import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from pathlib import Path
from typing import Any

from cddpm.artifact import lock, storage_errors, write_json
from cddpm.config import PhantomConfig, to_dict
from cddpm.data.phantom_scan import CONTRASTS
from cddpm.data.phantom_splits import Cohort, cohort, write_splits
from cddpm.data.phantom_subject import Subject, files_of, write
from cddpm.errors import DataError

logger = logging.getLogger(__name__)

GENERATOR_VERSION = 2
"""Raised whenever the same configuration would give other bytes."""
LABEL = "phantom.json"
SUBJECTS_PER_PROCESS = 4
"""Fewer than these are drawn faster than a process starts."""
Job = tuple[Subject, tuple[str, ...]]


def make_phantom(
    out: Path,
    config: PhantomConfig,
    modalities: tuple[str, ...] = CONTRASTS,
    parallel: int | None = None,
) -> Path:
    """Write the phantom as DATA_DIR ``out`` and return ``out``; it appears whole or not at all.

    ``parallel`` processes draw the subjects (empty: one per CPU that this process may use); their number never changes a
    byte. One IXI training subject more than ``config`` asks for has T1 only. ATLAS_v2 and WMH are T1 only.
    A complete phantom of the same configuration, modalities and generator is left as it is.

    Raises ``DataError`` if ``out`` holds anything else or a modality is unknown, ``StorageError`` if the disk refuses.
    """
    out = out.absolute()
    label = _label(config, modalities)
    members = cohort(config, tuple(label["modalities"]))
    processes = _processes(parallel)
    if _is_there(out, label, members):
        return out
    with lock(out.with_name(f".{out.name}.lock")):
        if not _is_there(out, label, members):
            _make(out, label, members, processes)
    return out


def _label(config: PhantomConfig, modalities: tuple[str, ...]) -> dict[str, Any]:
    unknown = sorted(set(modalities) - set(CONTRASTS))
    if unknown or not modalities:
        raise DataError(
            f"phantom: modality {', '.join(unknown) or '(none)'} cannot be drawn; allowed are {', '.join(CONTRASTS)}"
        )
    return {"config": to_dict(config), "generator_version": GENERATOR_VERSION, "modalities": sorted(set(modalities))}


def _is_there(out: Path, label: dict[str, Any], members: Cohort) -> bool:
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return False
    try:
        found = json.loads((out / LABEL).read_text())
    except (OSError, ValueError):
        raise DataError(
            f"{out}: holds something that is not a phantom (no readable {LABEL}); name an empty or a new folder"
        ) from None
    if found != label:
        raise DataError(
            f"{out}: holds another phantom ({_difference(found, label)}); name a new folder, or delete this one"
        )
    for subject, contrasts in _jobs(members):
        for path in files_of(subject, out, contrasts).values():
            if not path.is_file():
                raise DataError(f"{path}: missing from the phantom in {out}; delete that folder to have it made again")
    return True


def _difference(found: Any, wanted: dict[str, Any]) -> str:
    old, new = (_flat(label) if isinstance(label, dict) else {} for label in (found, wanted))
    parts = [
        f"{key}: there {old.get(key)}, asked {new.get(key)}"
        for key in sorted({*old, *new})
        if old.get(key) != new.get(key)
    ]
    return "; ".join(parts) or "its label has another form"


def _flat(label: dict[str, Any]) -> dict[str, Any]:
    section = label.get("config")
    return {**{k: v for k, v in label.items() if k != "config"}, **(section if isinstance(section, dict) else {})}


def _make(out: Path, label: dict[str, Any], members: Cohort, processes: int) -> None:
    temporary = out.with_name(f".{out.name}.{uuid.uuid4().hex[:8]}.partial")
    logger.info("drawing a phantom of %d subjects with %d processes", len(members.subjects), processes)
    with storage_errors(out):
        try:
            temporary.mkdir(parents=True)
            _spread(partial(_write_subject, temporary), list(_jobs(members)), processes)
            write_splits(temporary / "splits", members)
            write_json(temporary / LABEL, label)
            temporary.rename(out)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def _jobs(members: Cohort) -> Iterator[Job]:
    for subject in members.subjects:
        yield subject, members.contrasts_of(subject)


def _write_subject(root: Path, job: Job) -> None:
    subject, contrasts = job
    write(subject, root, contrasts)


def _spread(work: Callable[[Job], None], jobs: list[Job], processes: int) -> None:
    processes = min(processes, 1 + len(jobs) // SUBJECTS_PER_PROCESS)
    if processes == 1:
        for job in jobs:
            work(job)
        return
    context = multiprocessing.get_context("spawn")  # forking a process that has threads (torch, Ray) can hang
    try:
        with ProcessPoolExecutor(processes, mp_context=context) as pool:
            for _ in pool.map(work, jobs, chunksize=2):
                pass
    except BrokenProcessPool as error:
        raise DataError(
            "phantom: a drawing process was killed, probably for lack of memory; ask for fewer processes"
        ) from error


def _processes(parallel: int | None) -> int:
    if parallel is None:
        return len(os.sched_getaffinity(0))
    if parallel < 1:
        raise DataError(f"phantom: {parallel} processes asked for; allowed is 1 or more")
    return parallel
