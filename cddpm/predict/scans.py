"""Which scans are asked for: files, folders and CSV tables become jobs, one per scan.

A **folder** is searched to its depth for ``.nii`` and ``.nii.gz`` files, in letters of any case; links to files and folders are
followed, each folder once. Every such file becomes a job or is named as left out, with the reason:

- it is no scan by its own name: a word of it is one of ``NO_SCAN`` (``p1_seg.nii.gz``, ``T2LesionMask2.nii``; what BIDS calls a
  subject or session has no words);
- it is the result of an earlier prediction (``anomaly_map.nii.gz``, ...) or lies in the folder of results;
- it is hidden, or lies in a hidden folder (names that begin with a dot);
- it is a volume in a format that is not read (``OTHER_FORMATS``).

A **table** has one row per scan and the columns ``COLUMNS``, of which only ``scan`` is needed; relative paths start at the
table's folder, an empty cell says nothing.
"""

import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cddpm.data.sheet import read_sheet
from cddpm.errors import DataError
from cddpm.place import ON_DISK, address
from cddpm.text import printable
from cddpm.text.likeness import did_you_mean

COLUMNS = {
    "scan": "path of the scan",
    "mask": "path of its brain mask; empty: one is estimated",
    "volume_id": "seeds the noise; empty: the scan's name",
    "dataset": "data set whose threshold is used; empty: that of --dataset",
    "name": "folder of the results below OUT; empty: the scan's name",
}
NO_SCAN = frozenset(
    {
        *("mask", "masks", "brainmask", "seg", "segs", "segm", "segmentation", "segmentations", "dseg"),
        *("probseg", "aseg", "aparc", "parcellation", "label", "labels", "labelmap", "lesion", "lesions"),
        *("gt", "groundtruth", "truth", "consensus", "roi", "rois", "annotation", "annotations"),
    }
)
"""Words of a mask's or a segmentation's name."""
RESULTS = frozenset({"anomaly_map", "reconstruction", "segmentation", "coverage"})
OTHER_FORMATS = (".hdr", ".img", ".img.gz", ".mgh", ".mgz", ".mha", ".mhd", ".mnc", ".nrrd")
_ENDINGS = (".nii", ".nii.gz")
_LETTERS = re.compile(r"[A-Za-z]+")
_WORDS = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])")
_BIDS_PERSON = re.compile(r"(?:^|_)(?:sub|ses)-[A-Za-z0-9]+")


@dataclass(frozen=True)
class Job:
    """One scan to look at."""

    scan: Path
    folder: Path
    """Where its results go."""
    mask: Path | None = None
    """None: one is estimated."""
    volume_id: str | None = None
    """None: the scan's name."""
    dataset: str = "all"
    source: str = "the command line"
    """Who asks for it: a folder, or a row of a table."""

    @property
    def key(self) -> str:
        """What seeds the noise."""
        return printable(stem(self.scan) if self.volume_id is None else self.volume_id)


@dataclass(frozen=True)
class LeftOut:
    """A file of a folder that is no scan, or a folder below it with some."""

    path: Path
    reason: str
    files: int = 1


@dataclass(frozen=True)
class Asked:
    """What places ask for: one job per scan, and what else lies there."""

    jobs: list[Job]
    left_out: list[LeftOut]


def stem(path: Path) -> str:
    """A NIfTI file's name without its endings."""
    return re.sub(r"(\.nii)?(\.gz)?$", "", path.name, flags=re.IGNORECASE)


def collect(places: Sequence[Path], out: Path, dataset: str = "all") -> Asked:
    """The jobs of files, folders and ``.csv`` tables, in their order; results go below ``out``.

    Raises ``DataError`` for a folder without scans or one that cannot be looked into, a faulty table (all faults at once),
    or two scans with one folder of results. Whether a scan can be used is not looked at.
    """
    asked = asked_for(places, out, dataset)
    check_apart(asked.jobs)
    return asked


def asked_for(places: Sequence[Path], out: Path, dataset: str = "all") -> Asked:
    """As ``collect``, where two jobs may have one folder of results: nothing is written there."""
    found = [one for place in places for one in _found(place, out, dataset)]
    return Asked([one for one in found if isinstance(one, Job)], [one for one in found if isinstance(one, LeftOut)])


def check_apart(jobs: Sequence[Job]) -> None:
    """Raises ``DataError`` if two jobs have one folder of results."""
    taken: dict[Path, Job] = {}
    for job in jobs:
        other = taken.setdefault(job.folder, job)
        if other is not job:
            raise DataError(
                f"{other.scan} and {job.scan}: both would go to {job.folder}; run them apart, with another --out, or give them "
                "names in a table (column 'name')"
            )


def is_many(place: Path) -> bool:
    """Whether ``place`` is a folder or a table, not one scan."""
    return place.is_dir() or place.suffix.lower() == ".csv"


def _found(place: Path, out: Path, dataset: str) -> Iterable[Job | LeftOut]:
    if place.is_dir():
        return _of_folder(place, out, dataset)
    if is_many(place):
        return _of_table(place, out, dataset)
    return [Job(place, out / stem(place), dataset=dataset)]


def _of_folder(place: Path, out: Path, dataset: str) -> list[Job | LeftOut]:
    found: list[Job | LeftOut] = []
    for file in sorted(_files(place, out), key=lambda one: str(one.path if isinstance(one, LeftOut) else one)):
        if isinstance(file, LeftOut) or (reason := _reason_against(file)):
            found.append(file if isinstance(file, LeftOut) else LeftOut(file, str(reason)))
        else:
            results = out / file.relative_to(place).with_name(stem(file))
            found.append(Job(file, results, dataset=dataset, source=str(place)))
    if not any(isinstance(one, Job) for one in found):
        left = [f"{one.path}: {one.reason}" for one in found if isinstance(one, LeftOut)]
        counted = f"; {len(left)} left out, the first {left[0]}" if left else ""
        raise DataError(
            f"{place}: no scan (.nii, .nii.gz) in this folder or below{counted}. Give files, or a CSV table"
        )
    return found


def _files(place: Path, out: Path) -> Iterator[Path | LeftOut]:
    """Volume files below ``place``, and folders with some that are not looked through."""
    seen, tops, results = set[Path](), [place], out.resolve()
    closed: list[tuple[Path, str]] = []
    while tops:  # links last, so that a folder goes by its own name rather than by a link's
        for folder, below, names in _walk(tops.pop(0), seen, follow=False):
            yield from (folder / name for name in names if _is_volume(name))
            for name in list(below):
                path = folder / name
                if name.startswith(".") or path.resolve() == results:
                    closed.append((path, "hidden" if name.startswith(".") else "the folder of results"))
                elif path.is_symlink():
                    tops.append(path)
                else:
                    continue
                below.remove(name)
    for path, reason in closed:
        files = sum(_is_volume(name) for _, _, names in _walk(path, seen, follow=True) for name in names)
        if files:
            yield LeftOut(path, reason, files)


def _walk(top: Path, seen: set[Path], follow: bool) -> Iterator[tuple[Path, list[str], list[str]]]:
    """As ``os.walk``, but for folders that were ``seen``, through whatever links. Raises ``DataError`` if one is locked."""
    for folder, below, names in os.walk(top, onerror=_refuse, followlinks=follow):
        real = Path(folder).resolve()
        if real in seen:
            below.clear()
        else:
            seen.add(real)
            below.sort()
            yield Path(folder), below, names


def _refuse(error: OSError) -> None:
    raise DataError(
        f"{error.filename}: cannot be looked into ({error.strerror}); make it readable, or give the folders beside it"
    ) from None


def _is_volume(name: str) -> bool:
    return name.lower().endswith((*_ENDINGS, *OTHER_FORMATS))


def _reason_against(file: Path) -> str | None:
    """Why a volume file is no scan by its name; None for a scan."""
    name = stem(file)
    if file.name.startswith("."):
        return "hidden"
    if not file.name.lower().endswith(_ENDINGS):
        return "only .nii and .nii.gz are read; convert it first"
    if name in RESULTS:
        return "a result of an earlier prediction"
    person_aside = _BIDS_PERSON.sub("", name)
    words = [word.lower() for word in (*_LETTERS.findall(person_aside), *_WORDS.findall(person_aside))]
    no_scan = next((word for word in words if word in NO_SCAN), None)
    return f"no scan by its name ('{no_scan}')" if no_scan else None


def _of_table(table: Path, out: Path, dataset: str) -> list[Job]:
    sheet = read_sheet(table, tuple(COLUMNS))
    return of_rows(str(table), sheet.columns, sheet.records, table.parent, out, dataset)


def of_rows(
    source: str,
    columns: Sequence[str],
    rows: Sequence[tuple[str, Mapping[str, str | None]]],
    base: Path,
    out: Path,
    dataset: str = "all",
) -> list[Job]:
    """The jobs of a table: ``rows`` are (where it stands, text by column), relative paths start at ``base``.

    Raises ``DataError`` with all faults of the table ``source``.
    """
    faults = [f"{source}: {fault}" for fault in _column_faults(columns)]
    jobs = []
    for where, record in rows if not faults else ():
        found = _of_row(where, record, base, out, dataset)
        if isinstance(found, Job):
            jobs.append(found)
        else:
            faults.append(f"{where}: {found}")
    if not faults and not jobs:
        faults.append(
            f"{source}: no rows; one per scan is needed, columns {', '.join(COLUMNS)} (only scan must be there)"
        )
    if faults:
        raise DataError("\n".join(faults))
    return jobs


def _column_faults(found: Sequence[str]) -> Iterator[str]:
    if "scan" not in found:
        there = ", ".join(f"'{name}'" for name in found if name) or "nothing"
        yield f"no column 'scan' (there are {there}); allowed are {', '.join(COLUMNS)}, separated by commas"
    for column in found:
        if column and column not in COLUMNS:  # an index column without a name is no harm
            hint = did_you_mean(column, COLUMNS)
            yield f"unknown column '{column}'; allowed are {', '.join(COLUMNS)}{hint}"
        if column and found.count(column) > 1:
            yield f"column '{column}' is there twice; keep one of them"


def _of_row(where: str, record: Mapping[str, str | None], base: Path, out: Path, dataset: str) -> Job | str:
    """The job of a row, or what is wrong with the row."""
    if None in record or None in record.values():
        return f"{'more' if None in record else 'fewer'} fields than the header names; quote texts with commas"
    cell = {column: (record.get(column) or "").strip() for column in COLUMNS}
    if not cell["scan"]:
        return "column 'scan' is empty; the path of a NIfTI file is needed"
    for column in ("scan", "mask"):
        if address(cell[column]):
            return f"{column} '{cell[column]}': an address; allowed is {ON_DISK}"
    scan = base / cell["scan"]
    name = Path(cell["name"] or stem(scan))
    if name.is_absolute() or ".." in name.parts or not name.parts:
        return f"name '{name}' is no folder below that of the results; allowed is a relative path without '..'"
    mask = base / cell["mask"] if cell["mask"] else None
    return Job(scan, out / name, mask, cell["volume_id"] or None, cell["dataset"] or dataset, where)
