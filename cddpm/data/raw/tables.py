"""Split files of prepared data sets, in the published form and clean: every scan once, nobody in two splits.

Subjects are shared out by the hash of their name alone, or as split files that the user has say. Of those only who is in which
split is taken: their other columns (sex, weight, dates) stay where they are.
"""

import csv
import io
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from cddpm.artifact import fingerprint
from cddpm.config import DataConfig
from cddpm.data.finding import Finding, refuse_errors
from cddpm.data.layout import clean_rows, read_parts
from cddpm.data.pattern import SharedOut, share_out
from cddpm.data.raw import manifest
from cddpm.data.raw.depot import Depot
from cddpm.data.raw.tree import warning
from cddpm.data.split import Split, names, subject_name

COLUMNS = ("", "img_name", "age", "label", "img_path", "mask_path", "seg_path")
AVAILABLE = "splits/avail_"
Place = tuple[Split, int | None]
Membership = Mapping[str, list[Place]]
"""By subject: every split and fold that it is in."""
Shared = SharedOut | Membership


@dataclass(frozen=True)
class Row:
    """A prepared subject, as the tables tell of it."""

    subject: str
    modalities: tuple[str, ...]
    label: int
    age: float | None
    segmented: bool


def published(dataset: str, healthy: bool, folder: Path) -> tuple[Membership, list[Finding]]:
    """Who is in which split by the split files in ``folder`` (or its ``splits``), cleaned.

    Raises ``DataError`` listing every fault of them.
    """
    root = folder.parent if folder.name == "splits" else folder
    ours = {"healthy": dataset, "unhealthy": ()} if healthy else {"unhealthy": (dataset,)}
    data = DataConfig.model_validate({"modality": "t1", **ours})
    parts, findings = read_parts(data, root)
    others = [finding for finding in findings if healthy or not Path(finding.file).name.startswith(f"{data.healthy}_")]
    refuse_errors(others)
    found: defaultdict[str, list[Place]] = defaultdict(list)
    for row in clean_rows(data, parts):
        if row.dataset == dataset:
            found[row.subject].append((row.split, row.fold))
    return found, [finding for finding in others if finding.severity == "warning"]


def write(
    depot: Depot,
    dataset: str,
    healthy: bool,
    rows: Iterable[Row],
    shares: Shared,
) -> list[Finding]:
    """Write the split files of one data set; a file that is as it should be is left alone, one of earlier settings goes.

    ``avail_<modality>.csv`` is one file for all healthy data sets of this DATA_DIR.

    Returns findings: empty splits, subjects that no split file names, and files that are not ours, which are kept.
    """
    rows = sorted(rows, key=lambda row: row.subject)
    parts: defaultdict[Place, list[Row]] = defaultdict(list)
    for row in rows:
        for place in _places(dataset, row.subject, healthy, shares):
            parts[place].append(row)
    findings = list(_odd(dataset, healthy, rows, parts, shares))
    texts = {
        f"splits/{_file(dataset, place)}": _text(dataset, healthy, parts[place])
        for place in _wanted(healthy, parts, shares)
    }
    summary = depot.read_json(manifest.summary_name(dataset))
    have = _by_modality(rows) if healthy else {}
    others = _other_healthy(depot, dataset) if healthy or summary.get("healthy") else []
    texts |= _available_files([have, *(other.get("available", {}) for other in others)])
    ours = _noted([summary, *others])
    written = {}
    for name, text in texts.items():
        before = depot.read(name)
        if before is not None and before != text.encode() and _digest(before) not in ours.get(name, ()):
            findings.append(
                Finding("error", "foreign-file", name, "is there already and is not ours", "name a new DATA_DIR")
            )
            continue
        if healthy or not name.startswith(AVAILABLE):
            written[name] = _digest(text.encode())
        if before != text.encode():
            depot.write(name, text.encode())
    for name in sorted(ours.keys() - texts.keys()):
        before = depot.read(name)
        if before is not None and _digest(before) in ours[name]:
            depot.delete(name)
    fresh = {
        "dataset": dataset,
        "healthy": healthy,
        "splits": written,
        "subjects": [row.subject for row in rows],
        "available": have,
    }
    if fresh != summary:
        depot.write_json(manifest.summary_name(dataset), fresh)
    return findings


def _other_healthy(depot: Depot, dataset: str) -> list[dict[str, Any]]:
    """What is said of the other healthy data sets that were prepared into this DATA_DIR."""
    said = (depot.read_json(manifest.summary_name(name)) for name in prepared_in(depot) if name != dataset)
    return [one for one in said if one.get("healthy")]


def _noted(summaries: Sequence[Mapping[str, Any]]) -> dict[str, set[str]]:
    """Digests by file: those of the first data set, and of the files that it shares with the others."""
    noted: defaultdict[str, set[str]] = defaultdict(set)
    for place, summary in enumerate(summaries):
        for name, digest in summary.get("splits", {}).items():
            if place == 0 or name.startswith(AVAILABLE):
                noted[name].add(digest)
    return noted


def _by_modality(rows: Iterable[Row]) -> dict[str, list[str]]:
    """Subjects by modality."""
    found: defaultdict[str, list[str]] = defaultdict(list)
    for row in rows:
        for modality in row.modalities:
            found[modality].append(row.subject)
    return dict(found)


def _available_files(having: Sequence[Mapping[str, list[str]]]) -> dict[str, str]:
    """``avail_<modality>.csv`` by name: who has that modality in any of the data sets."""
    modalities = sorted({modality for one in having for modality in one})
    return {
        f"{AVAILABLE}{modality}.csv": _available(
            sorted({subject for one in having for subject in one.get(modality, ())}), modality
        )
        for modality in modalities
    }


def _places(dataset: str, subject: str, healthy: bool, shares: Shared) -> list[Place]:
    if not isinstance(shares, SharedOut):
        return shares.get(subject, [])
    # without folds there is one, as split files of healthy data sets have it
    return [
        (split, 0 if healthy and split != "test" and fold is None else fold)
        for split, fold in share_out(dataset, subject, shares)
    ]


def _wanted(healthy: bool, parts: Mapping[Place, list[Row]], shares: Shared) -> list[Place]:
    """Every split that the published layout has, whether somebody is in it or not."""
    folds = {fold for _, fold in parts if fold is not None}
    if isinstance(shares, SharedOut):
        folds |= set(range(shares.folds or 1))
    if not healthy:
        return [("val", None), ("test", None)]
    pairs: list[Place] = [(split, fold) for fold in sorted(folds or {0}) for split in ("train", "val")]
    return [*pairs, ("test", None)]


def _file(dataset: str, place: Place) -> str:
    split, fold = place
    return f"{dataset}_{split}.csv" if fold is None else f"{dataset}_{split}_fold{fold}.csv"


def _text(dataset: str, healthy: bool, rows: Iterable[Row]) -> str:
    return _csv([COLUMNS, *([number, *_cells(dataset, healthy, row)] for number, row in enumerate(rows))])


def _cells(dataset: str, healthy: bool, row: Row) -> list[object]:
    def path(kind: str) -> str:
        return f"/{manifest.file_name(dataset, healthy, kind, row.subject)}"

    image = path("t1" if "t1" in row.modalities else row.modalities[0])
    age = "" if row.age is None else f"{row.age:g}"
    return [f"{row.subject}_t1.nii.gz", age, row.label, image, path("mask"), path("seg") if row.segmented else ""]


def _available(subjects: Iterable[str], modality: str) -> str:
    named = ((subject, f"{subject}_{modality}.nii.gz") for subject in subjects)
    known = [name if subject_name(name) == subject else f"{subject}_t1.nii.gz" for subject, name in named]
    return _csv([["", "0"], *([number, name] for number, name in enumerate(known))])


def _csv(rows: Iterable[Iterable[object]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


def _digest(data: bytes) -> str:
    return fingerprint(data.decode())


def _odd(
    dataset: str,
    healthy: bool,
    rows: list[Row],
    parts: Mapping[Place, list[Row]],
    shares: Shared,
) -> Iterable[Finding]:
    empty = [f"splits/{_file(dataset, place)}" for place in _wanted(healthy, parts, shares) if not parts.get(place)]
    if rows and empty:
        found = f"nobody of {len(rows)} subjects is in it"
        yield warning("empty-split", empty[0], found, "a training needs somebody in each split", empty[1:])
    unnamed = [] if isinstance(shares, SharedOut) else [row.subject for row in rows if row.subject not in shares]
    if unnamed:
        found = f"{len(unnamed)} subjects stand in no split file, or were dropped as leaks ({names(unnamed)})"
        yield warning("no-split", f"splits/{dataset}", found, "prepared, but in no split")


def other_steps(depot: Depot, dataset: str) -> list[Finding]:
    """A warning if data sets in this DATA_DIR went through other steps: a model would take the difference for an anomaly."""
    made = {name: _recipe(depot, name) for name in prepared_in(depot)}
    own = made.get(dataset)
    differing = [name for name, recipe in made.items() if own is not None and recipe is not None and recipe != own]
    if not differing:
        return []
    found = f"{', '.join(differing)} went through other steps or parameters than {dataset}"
    allowed = "prepare all data sets alike: a model takes a step that is missing for an anomaly"
    return [warning("other-steps", manifest.FOLDER, found, allowed)]


def prepared_in(depot: Depot) -> list[str]:
    """Data sets that a DATA_DIR has."""
    if depot.bucket is not None:
        named = (PurePosixPath(name) for name in depot.bucket.names(manifest.FOLDER))
        return sorted(path.stem for path in named if path.suffix == ".json" and str(path.parent) == manifest.FOLDER)
    assert depot.folder is not None
    return sorted(path.stem for path in (depot.folder / manifest.FOLDER).glob("*.json"))


def _recipe(depot: Depot, dataset: str) -> list[object] | None:
    """Steps and parameters of one subject; who brings a brain mask needs none extracted, which is no difference."""
    subjects = depot.read_json(manifest.summary_name(dataset)).get("subjects", [])
    record = depot.read_json(manifest.name_of(dataset, subjects[0])) if subjects else {}
    steps = record.get("steps")
    return steps and [[one["name"], one["version"], one["parameters"]] for one in steps if one["name"] != "extract"]
