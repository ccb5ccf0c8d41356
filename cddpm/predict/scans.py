"""Which scans are asked for: files, folders and CSV tables become jobs, one per scan.

A **folder** is searched to its depth for ``.nii`` and ``.nii.gz`` files, in the order of their names. Left out are

- hidden files and folders (their names begin with a dot), and the folder of results if it lies within;
- files that are no scans by their names: a word of the file's name, or of a folder's below the given one, is one of
  ``NO_SCAN`` (words are what stands between characters that are no letters or digits: ``p1_seg.nii.gz``, ``mask/p1.nii``);
- results of an earlier prediction (``anomaly_map.nii.gz``, ...).

Links to folders are not followed. A **table** has one row per scan and the columns ``COLUMNS``, of which only ``scan`` is
needed; relative paths start at the table's folder, an empty cell says nothing.
"""

import difflib
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cddpm.data.sheet import read_sheet
from cddpm.errors import DataError
from cddpm.place import ON_DISK, address

COLUMNS = {
    "scan": "path of the scan",
    "mask": "path of its brain mask; empty: one is estimated",
    "volume_id": "seeds the noise; empty: the scan's name",
    "dataset": "data set whose threshold is used; empty: that of --dataset",
    "name": "folder of the results below OUT; empty: the scan's name",
}
NO_SCAN = frozenset(
    {
        "mask",
        "masks",
        "brainmask",
        "seg",
        "segs",
        "segmentation",
        "segmentations",
        "label",
        "labels",
        "lesion",
        "lesions",
    }
)
RESULTS = frozenset({"anomaly_map", "reconstruction", "segmentation"})
_ENDINGS = (".nii", ".nii.gz")
_WORDS = re.compile(r"[^\W_]+")


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
        return stem(self.scan) if self.volume_id is None else self.volume_id


def stem(path: Path) -> str:
    """A NIfTI file's name without its endings."""
    return path.name.removesuffix(".gz").removesuffix(".nii")


def collect(places: Sequence[Path], out: Path, dataset: str = "all") -> list[Job]:
    """The jobs of files, folders and ``.csv`` tables, in their order; results go below ``out``.

    Raises ``DataError`` for a folder without scans, a faulty table (all faults at once), or two scans with one folder of
    results. Whether a scan can be used is not looked at.
    """
    jobs = asked_for(places, out, dataset)
    check_apart(jobs)
    return jobs


def asked_for(places: Sequence[Path], out: Path, dataset: str = "all") -> list[Job]:
    """As ``collect``, where two jobs may have one folder of results: nothing is written there."""
    return [job for place in places for job in _jobs(place, out, dataset)]


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


def _jobs(place: Path, out: Path, dataset: str) -> Iterator[Job]:
    if place.is_dir():
        yield from _of_folder(place, out, dataset)
    elif is_many(place):
        yield from _of_table(place, out, dataset)
    else:
        yield Job(place, out / stem(place), dataset=dataset)


def _of_folder(place: Path, out: Path, dataset: str) -> Iterator[Job]:
    files = list(_nifti_files(place, out))
    scans = [file for file in files if not _is_no_scan(file.relative_to(place))]
    if not scans:
        left = f"; {len(files)} NIfTI files are masks, segmentations or results by their names" if files else ""
        raise DataError(f"{place}: no scan (.nii, .nii.gz) in this folder or below{left}. Give files, or a CSV table")
    for scan in scans:
        yield Job(scan, out / scan.relative_to(place).with_name(stem(scan)), dataset=dataset, source=str(place))


def _nifti_files(place: Path, out: Path) -> Iterator[Path]:
    results = out.resolve()
    for folder, below, names in os.walk(place):
        here = Path(folder)
        below[:] = sorted(n for n in below if not n.startswith(".") and (here / n).resolve() != results)
        yield from (here / n for n in sorted(names) if n.endswith(_ENDINGS) and not n.startswith("."))


def _is_no_scan(relative: Path) -> bool:
    name = stem(relative)
    words = {word.lower() for part in (*relative.parts[:-1], name) for word in _WORDS.findall(part)}
    return name in RESULTS or bool(words & NO_SCAN)


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
            near = difflib.get_close_matches(column, COLUMNS, n=1)
            hint = f"; did you mean '{near[0]}'?" if near else ""
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
