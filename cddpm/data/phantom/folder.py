"""The phantom: a synthetic DATA_DIR in the published layout, so that everything runs without a scan of any person.

Healthy and ill cartoon brains with T1 and T2 contrast (``anatomy``, ``lesions``, ``subject``), split files in the published
form (columns, paths, bare index), and ``phantom.json`` that says what was made.
"""

import json
import logging
import multiprocessing
import os
import shutil
import uuid
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from cddpm.artifact import lock, storage_errors, write_json, write_text
from cddpm.config import PhantomConfig, to_dict
from cddpm.data.phantom.subject import CONTRASTS, DATASETS, T1_ONLY, Dataset, Subject, files_of, write
from cddpm.errors import DataError

FOLDS = 5
IXI_COLUMNS = (
    "img_name", "SEX_ID (1=m, 2=f)", "HEIGHT", "WEIGHT", "ETHNIC_ID", "MARITAL_ID", "OCCUPATION_ID", "QUALIFICATION_ID",
    "DATE_AVAILABLE", "STUDY_DATE", "age", "label", "img_path", "mask_path", "seg_path", "Agegroup",
)  # fmt: skip
BRATS_COLUMNS = (
    "img_name", "Cohort Name (if publicly available)", "Site No (represents the originating institution)", "Local ID\xa0",
    "age", "label", "img_path", "mask_path", "seg_path",
)  # fmt: skip
MSLUB_COLUMNS = ("img_name", "age", "sex", "ms_type", "label", "img_path", "mask_path", "seg_path", "Agegroup")
OTHER_COLUMNS = ("img_name", "age", "label", "img_path", "mask_path", "seg_path")
COLUMNS: dict[Dataset, tuple[str, ...]] = {
    "IXI": IXI_COLUMNS,
    "Brats21": BRATS_COLUMNS,
    "MSLUB": MSLUB_COLUMNS,
    "ATLAS_v2": OTHER_COLUMNS,
    "WMH": OTHER_COLUMNS,
}


@dataclass(frozen=True)
class Cohort:
    """All subjects of a phantom. ``healthy`` is rotated over the folds; ``t1_only`` are healthy ones without T2."""

    healthy: tuple[Subject, ...]
    t1_only: tuple[Subject, ...]
    healthy_test: tuple[Subject, ...]
    unhealthy_val: tuple[Subject, ...]
    unhealthy_test: tuple[Subject, ...]
    validation_size: int
    contrasts: tuple[str, ...]

    @property
    def subjects(self) -> tuple[Subject, ...]:
        """Everyone, each once."""
        return (*self.healthy, *self.t1_only, *self.healthy_test, *self.unhealthy_val, *self.unhealthy_test)

    @property
    def unhealthy(self) -> list[Dataset]:
        """Data sets of the ill, in their fixed order."""
        return list(dict.fromkeys(s.dataset for s in self.unhealthy_val))

    @property
    def with_t2(self) -> list[Subject]:
        """Healthy subjects whose T2 is drawn."""
        return [*self.healthy, *self.healthy_test] if "t2" in self.contrasts else []

    def contrasts_of(self, subject: Subject) -> tuple[str, ...]:
        """Which scans a subject has."""
        only_t1 = subject.dataset in T1_ONLY or subject in self.t1_only
        return tuple(c for c in self.contrasts if c == "t1" or not only_t1)

    def fold(self, number: int) -> tuple[list[Subject], list[Subject]]:
        """Training and validation subjects of fold 0 to 4: a window of validation that moves on, wrapping around.

        It moves by its own size as long as that leaves five different folds, else by a fifth of the subjects. Fewer than
        five subjects cannot make five folds; then some are alike.
        """
        count = len(self.healthy)
        start = number * self.validation_size if FOLDS * self.validation_size <= count else number * count // FOLDS
        chosen = {(start + i) % count for i in range(self.validation_size)}
        training = [s for i, s in enumerate(self.healthy) if i not in chosen]
        return [*training, *self.t1_only], [self.healthy[i] for i in sorted(chosen)]


def cohort(config: PhantomConfig, contrasts: tuple[str, ...]) -> Cohort:
    """The subjects that ``config`` asks for, with the scans ``contrasts`` ("t1", "t2").

    With both, one more training subject has T1 only, as in the published data; without T1, T1-only data sets are left out.
    """
    voxel_mm = 1.0 if config.size == "full" else 2.0

    def take(dataset: Dataset, start: int, count: int) -> tuple[Subject, ...]:
        return tuple(Subject(config.seed, dataset, start + i, voxel_mm) for i in range(count))

    pool = config.healthy_train + config.healthy_val
    ill = [d for d in DATASETS if d != "IXI" and ("t1" in contrasts or d not in T1_ONLY)]
    return Cohort(
        healthy=take("IXI", 0, pool),
        t1_only=take("IXI", pool, 1 if {"t1", "t2"} <= set(contrasts) else 0),
        healthy_test=take("IXI", pool + 1, config.healthy_test),
        unhealthy_val=tuple(s for d in ill for s in take(d, 0, config.unhealthy_val)),
        unhealthy_test=tuple(s for d in ill for s in take(d, config.unhealthy_val, config.unhealthy_test)),
        validation_size=config.healthy_val,
        contrasts=contrasts,
    )


def write_splits(folder: Path, members: Cohort) -> None:
    """Write ``folder``/*.csv: five folds and a test file of IXI, val and test of the others, and ``avail_t2.csv``."""
    for number in range(FOLDS):
        training, validation = members.fold(number)
        _write(folder / f"IXI_train_fold{number}.csv", "IXI", training)
        _write(folder / f"IXI_val_fold{number}.csv", "IXI", validation)
    _write(folder / "IXI_test.csv", "IXI", members.healthy_test)
    for dataset in members.unhealthy:
        _write(folder / f"{dataset}_val.csv", dataset, [s for s in members.unhealthy_val if s.dataset == dataset])
        _write(folder / f"{dataset}_test.csv", dataset, [s for s in members.unhealthy_test if s.dataset == dataset])
    names = [f"{s.name}_t2.nii.gz" for s in members.with_t2]
    write_text(folder / "avail_t2.csv", pd.DataFrame({"0": names}).to_csv())


def _write(path: Path, dataset: Dataset, subjects: Iterable[Subject]) -> None:
    chosen = list(subjects)
    frame = pd.DataFrame([_row(s) for s in chosen], index=[s.index for s in chosen], columns=list(COLUMNS[dataset]))
    write_text(path, frame.to_csv())


def _row(subject: Subject) -> dict[str, object]:
    age = subject.traits.age_years
    random = subject.random("questionnaire")
    healthy = subject.dataset == "IXI"
    home = "/Train/ixi" if healthy else f"/Test/{subject.dataset}"
    sex = int(random.integers(1, 3))
    return {
        "img_name": f"{subject.name}_t1.nii.gz" if healthy else subject.name,
        "SEX_ID (1=m, 2=f)": sex,
        "HEIGHT": int(random.integers(155, 190)),
        "WEIGHT": int(random.integers(52, 96)),
        "ETHNIC_ID": 1,
        "MARITAL_ID": 2,
        "OCCUPATION_ID": 1,
        "QUALIFICATION_ID": 4,
        "DATE_AVAILABLE": 1,
        "STUDY_DATE": f"2005-{1 + subject.index % 12:02d}-{1 + subject.index % 28:02d}",
        "Cohort Name (if publicly available)": "Phantom",
        "Site No (represents the originating institution)": 1,
        "sex": "MF"[sex - 1],
        "ms_type": "RR",
        "age": age,
        "label": 0 if healthy else 1,
        "img_path": f"{home}/t1/{subject.name}_t1.nii.gz",
        "mask_path": f"{home}/mask/{subject.name}_mask.nii.gz",
        "seg_path": "" if healthy else f"{home}/seg/{subject.name}_seg.nii.gz",
        "Agegroup": float(1 + (age > 40) + (age > 60) + (age > 80)),
    }


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
