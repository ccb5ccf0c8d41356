"""Which scans there are, and to which split each belongs: DATA_DIR in the published layout, or a table of own data sets.

::

    DATA_DIR/Train/ixi/{mask,t1,t2}   DATA_DIR/Test/{Brats21,MSLUB,...}/{mask,seg,t1,t2}   DATA_DIR/splits/*.csv

Split files: ``<healthy>_train_fold<k>.csv``, ``<healthy>_val_fold<k>.csv``, ``<healthy>_test.csv``, and per unhealthy data
set ``<name>_val.csv``, ``<name>_test.csv``. ``avail_<modality>.csv`` limits the healthy scans. The published files are not
clean: scans stand twice in one file, and subjects of the test split stand in training (``data.splits``).
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from cddpm.config import DataConfig
from cddpm.data.afar import outlined
from cddpm.data.exclusion import without_excluded
from cddpm.data.finding import Division, Finding, refuse_errors
from cddpm.data.sheet import SheetError
from cddpm.data.split import (
    ScanRow,
    SplitFile,
    available_names,
    divisions,
    key_of,
    mixtures,
    names,
    read_split,
    treat_leaks,
)
from cddpm.data.table import read_table
from cddpm.errors import DataError
from cddpm.text.likeness import did_you_mean

__all__ = [
    "Layout",
    "ScanRow",
    "available",
    "clean_rows",
    "find_root",
    "read_layout",
    "read_parts",
    "root_of",
    "scan_layout",
    "whole_layout",
]

Parts = dict[SplitFile, list[ScanRow]]


@dataclass(frozen=True)
class Layout:
    """All rows of all splits and folds, and what was noticed while reading them."""

    root: Path
    rows: tuple[ScanRow, ...]
    findings: tuple[Finding, ...]
    divisions: tuple[Division, ...] = ()
    """Validation and test of each unhealthy data set, before anything was dropped."""

    def volumes(self) -> list[ScanRow]:
        """The first row of every scan, in the order of the files: what is to be read, once."""
        return list({(row.dataset, row.subject): row for row in reversed(self.rows)}.values())[::-1]


def root_of(data: DataConfig) -> Path:
    """The folder that paths of scans are relative to: with a table ``data_dir`` or the table's own folder, else ``find_root``.

    Of an object store, the folder of its names on this node (``afar``). Raises ``DataError`` when it is not there, or when
    neither ``data_dir`` nor ``table`` is set, ``StorageError`` when the store fails.
    """
    data_dir = outlined(data.data_dir) if data.data_dir else None
    if data.table is not None:
        if data_dir is not None and not data_dir.is_dir():
            raise DataError(
                f"{data.data_dir}: no such folder; paths in {data.table.name} are relative to data.data_dir"
            )
        return data_dir or data.table.parent
    if data_dir is None:
        raise DataError("data.data_dir: not set; name the folder with Train, Test and splits, or a table (data.table)")
    return find_root(data_dir)


def find_root(data_dir: Path) -> Path:
    """The folder that holds ``splits/``: ``data_dir`` or, in some copies of the archive, ``data_dir/Data``.

    Raises ``DataError`` when neither does.
    """
    for root in (data_dir, data_dir / "Data"):
        if (root / "splits").is_dir():
            return root
    if not data_dir.is_dir():
        raise DataError(f"{data_dir}: no such folder; data.data_dir is the folder with Train, Test and splits")
    present = ", ".join(sorted(p.name for p in data_dir.iterdir())[:10]) or "nothing"
    raise DataError(
        f"{data_dir}: looked for splits/ and Data/splits/, found {present}; data.data_dir is the folder with Train, Test "
        "and splits (leave it empty for the phantom)"
    )


def read_layout(data: DataConfig, root: Path) -> Layout:
    """Rows of all splits that ``data`` names, ready to use. Raises ``DataError`` listing every fault of the tables."""
    layout = scan_layout(data, root)
    refuse_errors(layout.findings)
    return layout


def scan_layout(data: DataConfig, root: Path) -> Layout:
    """As ``read_layout``, but faults are kept as findings."""
    named, findings = read_parts(data, root)
    found = divisions(data, named)
    parts, told = without_excluded(data, root, named)
    return _layout(data, root, parts, [*findings, *told, *mixtures(found, named)], found)


def whole_layout(data: DataConfig, root: Path) -> Layout:
    """As ``scan_layout``, with the subjects that a person has taken out: for who looks at them once more."""
    parts, findings = read_parts(data, root)
    return _layout(data, root, parts, findings, divisions(data, parts))


def _layout(data: DataConfig, root: Path, parts: Parts, findings: list[Finding], found: list[Division]) -> Layout:
    rows: list[ScanRow] = []
    for file, named in parts.items():
        kept, told = _without_repeats(data, file, named)
        findings += [*told, *_row_faults(data, file, kept)]
        rows += kept
    findings += _conflicts(row for named in parts.values() for row in named)
    if data.table is None:
        rows, told = available(data, root, rows)
        findings += told
    rows, told = treat_leaks(data, list(parts), rows)
    findings += [*told, *_empty_splits(data, list(parts), rows)]
    return Layout(root, tuple(rows), tuple(findings), tuple(found))


def read_parts(data: DataConfig, root: Path) -> tuple[Parts, list[Finding]]:
    """The rows of every split that ``data`` names as they stand, repeats and leaks included, and faults of single rows."""
    if data.table is not None:
        return read_table(data, root)
    parts: Parts = {}
    files, findings = _find_files(data, root)
    for file in files:
        found = list(read_split(file, root, data.modality))
        findings += [f for f in found if isinstance(f, Finding)]
        parts[file] = [r for r in found if isinstance(r, ScanRow)]
    return parts, findings


def clean_rows(data: DataConfig, parts: Parts) -> list[ScanRow]:
    """What ``data.splits: clean`` leaves of ``parts``, whatever the modality: every scan once, no subject in two splits."""
    clean = data.model_copy(update={"splits": "clean"})
    rows = [row for file, named in parts.items() for row in _without_repeats(clean, file, named)[0]]
    return treat_leaks(clean, list(parts), rows)[0]


def _find_files(data: DataConfig, root: Path) -> tuple[list[SplitFile], list[Finding]]:
    folder = root / "splits"
    there = sorted(p.name for p in folder.glob("*.csv"))
    files = [file for file in _wanted_files(data, folder, there) if file.path.name in there]
    missing = [file.path for file in _wanted_files(data, folder, there) if file.path.name not in there]
    findings = [
        Finding(
            "error",
            "split-missing",
            str(p),
            "no such split file",
            f"there are {', '.join(there) or 'none'}{did_you_mean(p.name, there)}",
        )
        for p in missing
    ]
    return files, findings


def _wanted_files(data: DataConfig, folder: Path, there: list[str]) -> Iterator[SplitFile]:
    pattern = re.compile(rf"{re.escape(data.healthy)}_(?:train|val)_fold(\d+)\.csv")
    folds = {int(match[1]) for name in there if (match := pattern.fullmatch(name))}
    for fold in sorted(folds | {data.fold}):
        yield SplitFile(folder / f"{data.healthy}_train_fold{fold}.csv", data.healthy, "train", fold)
        yield SplitFile(folder / f"{data.healthy}_val_fold{fold}.csv", data.healthy, "val", fold)
    yield SplitFile(folder / f"{data.healthy}_test.csv", data.healthy, "test", None)
    for name in data.unhealthy:
        yield SplitFile(folder / f"{name}_val.csv", name, "val", None)
        yield SplitFile(folder / f"{name}_test.csv", name, "test", None)


def _without_repeats(data: DataConfig, file: SplitFile, rows: list[ScanRow]) -> tuple[list[ScanRow], list[Finding]]:
    """The first row of every scan; published training splits keep them all, as every row of theirs is drawn each epoch."""
    by_subject: defaultdict[str, list[ScanRow]] = defaultdict(list)
    for row in rows:
        by_subject[row.subject].append(row)
    repeated = {name: same for name, same in by_subject.items() if len(same) > 1}
    keep = data.splits == "published" and file.split == "train"
    findings: list[Finding] = []
    if repeated:
        extra = sum(len(same) - 1 for same in repeated.values())
        found = f"{file.prefix}{extra} rows repeat a scan ({names(repeated)})"
        once, often = "each scan is used once, with its first row", "kept: trained on as often (data.splits: published)"
        findings.append(Finding("warning", "duplicate-row", str(file.path), found, often if keep else once))
    return rows if keep else [same[0] for same in by_subject.values()], findings


def _conflicts(rows: Iterable[ScanRow]) -> Iterator[Finding]:
    first: dict[tuple[str, str], ScanRow] = {}
    told = set()
    for row in rows:
        other = first.setdefault((row.dataset, row.subject), row)
        same = (row.label, row.image, row.mask, row.segmentation) == (
            other.label,
            other.image,
            other.mask,
            other.segmentation,
        )
        if not same and row.subject not in told:
            told.add(row.subject)
            found = f"{row.subject} has another label or other paths than in {other.source}"
            yield Finding("error", "conflicting-rows", row.source, found, "correct or remove one of the rows")


def _row_faults(data: DataConfig, file: SplitFile, rows: list[ScanRow]) -> Iterator[Finding]:
    for row in rows:
        if row.dataset == data.healthy and row.label != 0:
            found = f"label {row.label} ({row.subject}) in the healthy data set {data.healthy}"
            yield Finding(
                "error",
                "label",
                row.source,
                found,
                "healthy splits hold label 0 only; the model must not see anomalies",
            )
        if row.label != 0 and row.segmentation is None:
            column = "seg_path" if data.table is None else "segmentation"
            found = f"no {column} for {row.subject} with label {row.label}"
            allowed = "a scan with an anomaly needs its segmentation; one without has label 0 in its table"
            yield Finding("error", "no-segmentation", row.source, found, allowed)
    if data.table is not None:
        return
    unnamed = [row for row in rows if data.modality not in (*row.image.parts, *re.split(r"[_.]", row.image.name))]
    if unnamed and data.modality != "t1":
        found = f"{len(unnamed)} paths name no modality, e.g. {unnamed[0].image.name}"
        yield Finding("warning", "modality", str(file.path), found, f"they are taken as {data.modality}")


def available(data: DataConfig, root: Path, rows: list[ScanRow]) -> tuple[list[ScanRow], list[Finding]]:
    """Drop healthy scans that do not exist in this modality; that is their published form, so it is not worth a finding."""
    path = root / "splits" / f"avail_{data.modality}.csv"
    if not path.exists():
        return rows, []
    try:
        present = available_names(path)
    except SheetError as error:
        return rows, [Finding("error", "split-file", str(path), error.found, error.allowed)]
    return [row for row in rows if row.dataset != data.healthy or row.subject in present], []


def _empty_splits(data: DataConfig, files: list[SplitFile], rows: list[ScanRow]) -> Iterator[Finding]:
    there = {key_of(row) for row in rows}
    more, allowed = "", "each split needs at least one scan"
    if data.table is not None:
        more = f" (modality {data.modality})"
        allowed += "" if data.table.suffix == ".csv" else "; give it a larger share, or the data set another seed"
    for file in files:
        if key_of(file) not in there:
            found = f"{file.prefix}no usable scan{more}"
            yield Finding("error", "empty-split", str(file.path), found, allowed)
