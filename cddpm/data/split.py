"""Split files: the tables that say which scan belongs to training, validation or test.

Each row of ``splits/*.csv`` names one scan by paths relative to DATA_DIR, written for T1 and rewritten for the modality
that is asked for. Faults become findings, so that one bad row hides no other.
"""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from cddpm.config import DataConfig
from cddpm.data.finding import Finding
from cddpm.data.sheet import Sheet, SheetError, read_rows, read_sheet
from cddpm.labels import Labels
from cddpm.place import ON_DISK, address
from cddpm.text.likeness import did_you_mean

Split = Literal["train", "val", "test"]
COLUMNS = ("img_name", "age", "label", "img_path", "mask_path", "seg_path")
_SUFFIX = re.compile(r"\.nii(\.gz)?$")
_MODALITY = re.compile(r"_(t1|t2|t1ce|t1c|t1w|t2w|flair|pd)$", re.IGNORECASE)


@dataclass(frozen=True)
class SplitFile:
    """One table, or one part of a table of own data sets: ``dataset`` and ``split`` it belongs to, ``fold`` if it has one."""

    path: Path
    dataset: str
    split: Split
    fold: int | None

    @property
    def whole(self) -> bool:
        """Whether the file holds this split alone, as published split files do."""
        return self.path.name.startswith(f"{self.dataset}_{self.split}")

    @property
    def title(self) -> str:
        """``IXI_train_fold0.csv``, or ``IXI train fold 0`` of a table that holds more."""
        fold = "" if self.fold is None else f" fold {self.fold}"
        return self.path.name if self.whole else f"{self.dataset} {self.split}{fold}"

    @property
    def prefix(self) -> str:
        """How a finding about this split begins: its title, unless the file's name says it."""
        return "" if self.whole else f"{self.title}: "


@dataclass(frozen=True)
class ScanRow:
    """One scan as one split file names it. The files need not exist."""

    dataset: str
    subject: str
    split: Split
    fold: int | None
    label: int
    """0 healthy, 1 with anomaly."""
    age: float | None
    image: Path
    mask: Path
    segmentation: Path | None
    source: str
    """``file.csv:line``."""
    labels: Labels | None = None
    """What its segmentation's labels mean, where a table of own data sets says so; None: what ``data`` says."""


def read_split(file: SplitFile, root: Path, modality: str) -> Iterator[ScanRow | Finding]:
    """Rows of one table in the order of the file; a row that cannot be used becomes a finding in its place."""
    try:
        sheet = read_sheet(file.path, COLUMNS)
    except SheetError as error:
        yield Finding("error", "split-file", str(file.path), error.found, error.allowed)
        return
    missing = list(_missing_columns(file.path, sheet))
    yield from missing
    for source, record in () if missing else sheet.records:
        yield from _read_record(file, source, record, root, modality)


def available_names(path: Path) -> frozenset[str]:
    """Subjects that ``avail_t2.csv`` lists: file names in its last column. Raises ``SheetError``."""
    rows = [cells for _, cells in read_rows(path)]
    return frozenset(subject_name(row[-1]) for row in rows[1:] if row)


def subject_name(name: str) -> str:
    """``IXI105-HH-1471_t1.nii.gz`` and ``IXI105-HH-1471`` are both subject ``IXI105-HH-1471``."""
    return _MODALITY.sub("", _SUFFIX.sub("", PurePosixPath(name.strip()).name))


def rewrite_modality(path: str, modality: str) -> str:
    """``/Train/ixi/t1/IXI105_t1.nii.gz`` with ``t2`` is ``/Train/ixi/t2/IXI105_t2.nii.gz``.

    The modality that a path is written for is its folder's name if the file ends in it, else ``t1``.
    """
    pure = PurePosixPath(path)
    stem = _SUFFIX.sub("", pure.name)
    suffix = pure.name[len(stem) :]
    written = pure.parent.name if pure.parent.name and stem.endswith(f"_{pure.parent.name}") else "t1"
    folders = [modality if part == written else part for part in pure.parent.parts]
    if stem.endswith(f"_{written}"):
        stem = stem[: -len(written)] + modality
    return str(PurePosixPath(*folders, stem + suffix))


def fill_modality(path: str, modality: str) -> str:
    """``path`` of a table with the modality in place of ``{modality}``."""
    return path.replace("{modality}", modality)


def split_of(text: str) -> Split | None:
    """The split that ``text`` names, or None."""
    match text:
        case "train" | "val" | "test":
            return text
    return None


def labels_of(data: DataConfig, row: ScanRow) -> Labels:
    """What the labels of a scan's segmentation mean."""
    return row.labels or data.labels_of(row.dataset)


def label_of(data: DataConfig, dataset: str, segmented: bool) -> int:
    """The label of a scan whose table names none: 1 in an unhealthy data set, where a segmentation is missed, then."""
    return int(segmented or dataset in data.unhealthy)


def existing_form(path: Path) -> Path:
    """``path``, or its ``.nii`` / ``.nii.gz`` twin if only that exists."""
    twin = path.with_name(path.name.removesuffix(".gz") if path.suffix == ".gz" else f"{path.name}.gz")
    try:
        return twin if not path.exists() and twin.exists() else path
    except OSError:  # a folder without permission: reading the file will say so
        return path


def _missing_columns(path: Path, sheet: Sheet) -> Iterator[Finding]:
    missing = [column for column in COLUMNS if column not in sheet.columns]
    if missing:
        near = "".join(did_you_mean(column, sheet.columns) for column in missing[:1])
        allowed = f"needed are {', '.join(COLUMNS)}{near}"
        yield Finding("error", "columns", str(path), sheet.without(missing), allowed)


def _read_record(
    file: SplitFile, source: str, record: dict[str | Any, Any], root: Path, modality: str
) -> Iterator[ScanRow | Finding]:
    if None in record or any(record[column] is None for column in COLUMNS):
        found = f"{'more' if None in record else 'fewer'} fields than the header names"
        yield Finding("error", "row", source, found, "one field per column; quote texts that hold the separator")
        return
    text = {column: record[column].strip() for column in COLUMNS}
    faults = [*_path_faults(source, text), *value_faults(source, text["label"], text["age"])]
    yield from faults
    if not faults:
        yield ScanRow(
            dataset=file.dataset,
            subject=subject_name(text["img_name"]),
            split=file.split,
            fold=file.fold,
            label=int(number(text["label"]) or 0),
            age=number(text["age"]),
            image=_locate(root, rewrite_modality(text["img_path"], modality)),
            mask=_locate(root, text["mask_path"]),
            segmentation=_locate(root, text["seg_path"]) if text["seg_path"] else None,
            source=source,
        )


def _path_faults(source: str, text: dict[str, str]) -> Iterator[Finding]:
    for column in ("img_name", "img_path", "mask_path"):
        if not text[column]:
            yield Finding("error", "row", source, f"'{column}' is empty", "each row names its scan and its brain mask")
    for column in ("img_path", "mask_path", "seg_path"):
        if ".." in PurePosixPath(text[column]).parts:
            found = f"{column} '{text[column]}' leaves the data folder"
            yield Finding("error", "row", source, found, "paths are relative to DATA_DIR, without '..'")
        elif address(text[column]):
            yield Finding("error", "row", source, f"{column} '{text[column]}'", f"allowed is {ON_DISK}")


def value_faults(source: str, label: str, age: str) -> Iterator[Finding]:
    """What is wrong with the texts of a label and an age."""
    if number(label) not in (0.0, 1.0):
        yield Finding("error", "row", source, f"label '{label}'", "allowed are 0 (healthy) and 1 (with anomaly)")
    if age.lower() not in ("", "nan") and number(age) is None:
        yield Finding("error", "row", source, f"age '{age}'", "allowed is a number of years or nothing")


def number(text: str) -> float | None:
    """The finite number that ``text`` is, with a point or a comma, or None."""
    try:
        value = float(text.replace(",", ".") if text.count(",") == 1 else text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _locate(root: Path, path: str) -> Path:
    return existing_form(root / path.lstrip("/"))
