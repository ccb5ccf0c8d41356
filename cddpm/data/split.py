"""Split files: the tables that say which scan belongs to training, validation or test.

Each row of ``splits/*.csv`` names one scan by paths relative to DATA_DIR, written for T1 and rewritten for the modality
that is asked for. Faults become findings, so that one bad row hides no other.

Leaks are subjects (or image files) of one split that are held out in a later one. Held out are validation against training, and
test against both; validation of another fold is none. The published tables have leaks among healthy subjects only: an
unhealthy scan in validation and test means tables that do not belong together, and is an error whatever ``data.splits`` says.
"""

import math
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from cddpm.config import DataConfig
from cddpm.data.finding import Division, Finding, both_of_one
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


HELD_OUT: dict[Split, int] = {"train": 0, "val": 1, "test": 2}
SHOWN = 5
Key = tuple[str, Split, int | None]


def held_elsewhere(rows: Iterable[ScanRow]) -> Iterator[tuple[ScanRow, list[ScanRow]]]:
    """Every row whose subject or image file is also held out from its split, with the rows that hold it out.

    The outermost split comes last. Order of ``rows``.
    """
    rows = list(rows)
    held: defaultdict[str, list[ScanRow]] = defaultdict(list)
    for row in rows:
        if row.split != "train":
            for key in _keys(row):
                held[key].append(row)
    for row in rows:
        others = {id(h): h for key in _keys(row) for h in held[key] if _held_against(h, row)}
        if others:
            yield row, sorted(others.values(), key=lambda h: HELD_OUT[h.split])


def treat_leaks(
    data: DataConfig, files: Sequence[SplitFile], rows: list[ScanRow]
) -> tuple[list[ScanRow], list[Finding]]:
    """Drop, keep or refuse leaks as ``data.splits`` says. Returns the rows that stay, and one finding per split."""
    leaks: defaultdict[Key, list[tuple[ScanRow, ScanRow]]] = defaultdict(list)
    for row, others in held_elsewhere(rows):
        leaks[key_of(row)].append((row, others[-1]))
    titles = {key_of(file): file.title for file in files}
    findings = [_finding(data, file, leaks[key_of(file)], titles) for file in files if key_of(file) in leaks]
    dropped = {id(row) for pairs in leaks.values() for row, _ in pairs} if data.splits == "clean" else set()
    return [row for row in rows if id(row) not in dropped], findings


def divisions(data: DataConfig, parts: Mapping[SplitFile, Sequence[ScanRow]]) -> list[Division]:
    """Validation and test of every unhealthy data set that has both, in the fold that ``data`` names."""
    subjects: defaultdict[tuple[str, Split], set[str]] = defaultdict(set)
    for file, rows in parts.items():
        if file.fold in (None, data.fold):
            subjects[file.dataset, file.split] |= {row.subject for row in rows}
    pairs = [(name, subjects[name, "val"], subjects[name, "test"]) for name in data.unhealthy]
    return [Division(name, len(val), len(test), len(val & test)) for name, val, test in pairs if val and test]


def mixtures(found: Iterable[Division], files: Iterable[SplitFile]) -> Iterator[Finding]:
    """An error for every data set whose validation is of one scheme and whose test is of another, if not one of overlap."""
    paths = {file.dataset: str(file.path) for file in files if file.split == "val"}
    for division in found:
        if division.mixed and not division.shared:
            validation, test = division.mixed
            told = f"{division.validation} validation scans ({validation}) with {division.test} test scans ({test})"
            told = f"{division.dataset}: {told}"
            yield Finding("error", "mixed-splits", paths[division.dataset], told, "take both files from one of the two")


def key_of(part: ScanRow | SplitFile) -> Key:
    """Data set, split and fold."""
    return part.dataset, part.split, part.fold


def names(subjects: Iterable[str]) -> str:
    """The first few subjects, each once, and how many more there are."""
    unique = list(dict.fromkeys(subjects))
    rest = len(unique) - SHOWN
    return ", ".join(unique[:SHOWN]) + (f" and {rest} more" if rest > 0 else "")


def _keys(row: ScanRow) -> tuple[str, str]:
    return f"{row.dataset}/{row.subject}", str(row.image)


def _held_against(held: ScanRow, row: ScanRow) -> bool:
    same_fold = held.fold is None or row.fold is None or held.fold == row.fold
    return same_fold and HELD_OUT[held.split] > HELD_OUT[row.split]


def _finding(
    data: DataConfig, file: SplitFile, pairs: list[tuple[ScanRow, ScanRow]], titles: dict[Key, str]
) -> Finding:
    others = sorted({titles[key_of(other)] for _, other in pairs})
    subjects = dict.fromkeys(row.subject for row, _ in pairs)
    found = f"{file.prefix}{len(subjects)} subjects are also in {', '.join(others)} ({names(subjects)})"
    if file.dataset != data.healthy and file.split == "val":
        return Finding("error", "leak", str(file.path), found, both_of_one(file.dataset))
    match data.splits:
        case "clean":
            return Finding("warning", "leak", str(file.path), found, f"dropped from {file.split} (data.splits: clean)")
        case "published":
            return Finding("warning", "leak", str(file.path), found, f"kept in {file.split} (data.splits: published)")
        case "strict":
            allowed = "a subject may be in one split only; remove the rows or set data.splits: clean"
            return Finding("error", "leak", str(file.path), found, allowed)
    raise AssertionError(data.splits)
