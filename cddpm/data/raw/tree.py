"""What a folder of raw scans holds: its files, by name without ends, and the subjects that were found among them."""

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from cddpm.data.finding import Finding
from cddpm.data.pattern import SharedOut
from cddpm.data.raw.head import RawSubject
from cddpm.data.sheet import SheetError, read_sheet
from cddpm.data.split import number

_ENDS = re.compile(r"(\.nii|\.gz)+$", re.IGNORECASE)
_SKIPPED = {"__MACOSX"}


@dataclass(frozen=True)
class Found:
    """What was found of one data set: who, how they are shared out over the splits, and what is odd or missing."""

    dataset: str
    healthy: bool
    subjects: tuple[RawSubject, ...]
    findings: tuple[Finding, ...]
    shares: SharedOut
    left_out: tuple[str, ...] = ()
    """Names of subjects that findings may tell of, although they are not among the subjects."""


def scans(root: Path) -> Iterator[tuple[str, Path]]:
    """(path below ``root`` without ``.nii``, ``.nii.gz`` or both of them, file) of every NIfTI file, sorted.

    Hidden files and what a Mac adds to archives are left out; links to folders are followed.
    """
    for folder, folders, files in os.walk(root, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith(".") and name not in _SKIPPED)
        for name in sorted(files):
            stem = _ENDS.sub("", name)
            if stem != name and ".nii" in name.lower() and not name.startswith("."):
                path = Path(folder) / name
                yield (path.relative_to(root).parent / stem).as_posix(), path


def is_empty(path: Path) -> bool:
    """Whether a file holds no byte; of one that cannot be looked at, reading will tell."""
    try:
        return path.stat().st_size == 0
    except OSError:
        return False


def warning(code: str, file: Path | str, found: str, allowed: str, others: Iterable[Path | str] = ()) -> Finding:
    """A finding that stops nobody."""
    return Finding("warning", code, str(file), found, allowed, tuple(map(str, others)))


def ages(path: Path, name_column: str, age_column: str) -> tuple[dict[str, float], list[Finding]]:
    """Years by the text in ``name_column`` of a table; other columns are not looked at.

    A row without a name, or without a number of years, tells nothing. Somebody with two ages has the first one.
    """
    try:
        sheet = read_sheet(path, (name_column, age_column))
    except SheetError as error:
        return {}, [warning("ages", error.path, error.found, error.allowed)]
    missing = [column for column in (name_column, age_column) if column not in sheet.columns]
    if missing:
        return {}, [warning("ages", path, sheet.without(missing), "ages are left empty")]
    known: dict[str, float] = {}
    several: list[str] = []
    for _, record in sheet.records:
        name, age = (str(record.get(column) or "").strip() for column in (name_column, age_column))
        years = number(age)
        if name and years is not None and 0 < years < 130 and known.setdefault(name, years) != years:
            several.append(name)
    if several:
        found = f"{len(several)} subjects have two ages"
        return known, [warning("ages", path, found, "the first one is taken")]
    return known, []


def joined(
    findings: list[Finding], source: Path | str, subject: RawSubject, images: Mapping[str, Path | None]
) -> RawSubject | None:
    """``subject`` with those of ``images`` that are there; None, and a finding, if it cannot go without what is missing.

    A healthy one goes with one modality; one with an anomaly needs them all and its segmentation, as its tables serve each.
    """
    there = {modality: file for modality, file in images.items() if file is not None}
    missing = [modality for modality, file in images.items() if file is None]
    if subject.label and subject.segmentation is None:
        missing.append("segmentation")
    if missing:
        left_out = bool(subject.label) or not there
        advice = "left out; restore it, or ask for what is there (--modality)"
        allowed = advice if left_out else f"goes with {', '.join(there)} alone"
        findings.append(warning("missing", source, f"{subject.subject}: no {' and no '.join(missing)}", allowed))
        if left_out:
            return None
    on = subject.segmentation_on if subject.segmentation_on in there else ""
    return replace(subject, images=there, segmentation_on=on)


def first_of(findings: list[Finding], subject: str, role: str, files: list[Path]) -> Path | None:
    """The first of several files for one role, with a finding; None of none."""
    if len(files) > 1:
        found = f"{subject}: {len(files)} files for its {role}"
        findings.append(warning("twice", files[0], found, "the first one is taken", files[1:]))
    return files[0] if files else None


def first_session(
    findings: list[Finding],
    subject: str,
    sessions: Mapping[str, Mapping[str, list[Path]]],
    what: str = "sessions",
) -> str:
    """The first session: two of one person in two splits would be a leak.

    The finding tells sessions by their files alone, since their names may be dates.
    """
    first, *others = sorted(sessions)
    if others:
        taken, *left = (next(iter(sessions[one].values()))[0] for one in (first, *others))
        found = f"{subject}: {len(sessions)} {what}"
        findings.append(warning("sessions", taken, found, "that of this file is taken, the others are left out", left))
    return first
