"""Tables of own data sets: scans in any layout, named row by row (CSV) or by patterns (YAML, see ``pattern``).

A CSV table has the columns ``dataset, subject, split, image, mask`` and, where they say something, ``segmentation, fold,
label, age, modality, lesion_labels, ignored_labels``.
Paths are absolute or relative to ``data.data_dir`` (without one, to the table's folder); ``{modality}`` in them stands for
``data.modality``, so that one table serves every modality.
"""

import re
from collections.abc import Iterator
from pathlib import Path

from cddpm.config import DataConfig
from cddpm.data.finding import Finding
from cddpm.data.pattern import read_patterns
from cddpm.data.sheet import Sheet, SheetError, read_sheet
from cddpm.data.split import (
    ScanRow,
    Split,
    SplitFile,
    existing_form,
    fill_modality,
    label_of,
    number,
    split_of,
    value_faults,
)
from cddpm.labels import Labels
from cddpm.place import ON_DISK, address
from cddpm.text.likeness import did_you_mean

NEEDED = ("dataset", "subject", "split", "image", "mask")
OPTIONAL = ("segmentation", "fold", "label", "age", "modality", "lesion_labels", "ignored_labels")
_ORDER: dict[Split, int] = {"train": 0, "val": 1, "test": 2}
_LABELS = re.compile(r"([1-9]\d*([ ,;]+|$))*")
_SUBJECT = re.compile(r"[^\s./\\][^/\\]*")


def read_table(data: DataConfig, root: Path) -> tuple[dict[SplitFile, list[ScanRow]], list[Finding]]:
    """Rows of ``data.table`` by split, of the data sets that ``data`` names and of its modality; faults as findings.

    A split that training needs and that has no row is there without rows.
    """
    assert data.table is not None
    findings: list[Finding] = []
    rows: list[ScanRow] = []
    there: set[str] = set()
    for found in _read(data, data.table, root):
        if isinstance(found, Finding):
            findings.append(found)
        elif isinstance(found, str):
            there.add(found)
        elif found.dataset in (data.healthy, *data.unhealthy):
            rows.append(found)
    if there:
        findings += _absent(data, data.table, there)
    findings += [*_trained_anomalies(data, rows), *_mixed_folds(data.table, rows)]
    return _parts(data, data.table, rows, there), findings


def _read(data: DataConfig, path: Path, root: Path) -> Iterator[ScanRow | Finding | str]:
    """Rows, faults, and the name of every data set that the table speaks of."""
    match path.suffix.lower():
        case ".csv":
            yield from _read_csv(data, path, root)
        case ".yaml" | ".yml":
            yield from read_patterns(data, path, root)
        case _:
            found = f"a table of kind '{path.suffix}'"
            yield Finding(
                "error", "table", str(path), found, "allowed are .csv (one row per scan) and .yaml (patterns)"
            )


def _read_csv(data: DataConfig, path: Path, root: Path) -> Iterator[ScanRow | Finding | str]:
    try:
        sheet = read_sheet(path, (*NEEDED, *OPTIONAL))
    except SheetError as error:
        yield Finding("error", "table", error.path, error.found, error.allowed)
        return
    faults = list(_column_faults(path, sheet))
    yield from faults
    for source, record in () if faults else sheet.records:
        if None in record or None in record.values():
            found = f"{'more' if None in record else 'fewer'} fields than the header names"
            yield Finding("error", "row", source, found, "one field per column; quote texts that hold the separator")
        else:
            text = {column: (record.get(column) or "").strip() for column in (*NEEDED, *OPTIONAL)}
            yield from _read_record(data, source, text, root)


def _column_faults(path: Path, sheet: Sheet) -> Iterator[Finding]:
    allowed, found = [*NEEDED, *OPTIONAL], sheet.columns
    missing = [column for column in NEEDED if column not in found]
    if missing:
        yield Finding("error", "columns", str(path), sheet.without(missing), f"needed are {', '.join(NEEDED)}")
    if len(missing) == len(NEEDED):  # no table of this kind: what its other columns are is no help
        return
    for column in found:
        if column and column not in allowed:  # an index column without a name is no harm
            near = did_you_mean(column, allowed)
            told = f"allowed besides {', '.join(NEEDED)} are {', '.join(OPTIONAL)}{near}"
            yield Finding("error", "columns", str(path), f"unknown column '{column}'", told)
        if column and found.count(column) > 1:
            yield Finding("error", "columns", str(path), f"column '{column}' is there twice", "keep one of them")


def _read_record(data: DataConfig, source: str, text: dict[str, str], root: Path) -> Iterator[ScanRow | Finding | str]:
    split = split_of(text["split"])
    label = text["label"] or str(label_of(data, text["dataset"], bool(text["segmentation"])))
    faults = [*_record_faults(source, text), *value_faults(source, label, text["age"])]
    yield from faults
    if faults or split is None:
        return
    yield text["dataset"]
    if text["modality"] not in ("", data.modality):
        return

    def place(path: str) -> Path:
        return existing_form(root / fill_modality(path, data.modality))

    yield ScanRow(
        dataset=text["dataset"],
        subject=text["subject"],
        split=split,
        fold=int(text["fold"]) if text["fold"] else None,
        label=int(float(label)),
        age=number(text["age"]),
        image=place(text["image"]),
        mask=place(text["mask"]),
        segmentation=place(text["segmentation"]) if text["segmentation"] else None,
        source=source,
        labels=_labels(text),
    )


def _labels(text: dict[str, str]) -> Labels | None:
    lesion, ignored = (tuple(map(int, re.findall(r"\d+", text[name]))) for name in ("lesion_labels", "ignored_labels"))
    return Labels(lesion or None, ignored) if lesion or ignored else None


def _record_faults(source: str, text: dict[str, str]) -> Iterator[Finding]:
    for column in NEEDED:
        if not text[column]:
            yield Finding("error", "row", source, f"'{column}' is empty", f"needed are {', '.join(NEEDED)}")
    for column in ("image", "mask", "segmentation"):
        if address(text[column]):
            yield Finding("error", "row", source, f"{column} '{text[column]}'", f"allowed is {ON_DISK}")
    if text["subject"] and not _SUBJECT.fullmatch(text["subject"]):
        found = f"subject '{text['subject']}'"
        yield Finding("error", "row", source, found, "a name without slashes that does not begin with a dot is needed")
    if text["split"] and split_of(text["split"]) is None:
        near = did_you_mean(text["split"], ["train", "val", "test"])
        yield Finding("error", "row", source, f"split '{text['split']}'", f"allowed are train, val and test{near}")
    for column in ("lesion_labels", "ignored_labels"):
        if not _LABELS.fullmatch(text[column]):
            found = f"{column} '{text[column]}'"
            yield Finding(
                "error", "row", source, found, "allowed are whole numbers from 1 with spaces between, or nothing"
            )
    if text["fold"] and not text["fold"].isdecimal():
        found = f"fold '{text['fold']}'"
        yield Finding("error", "row", source, found, "allowed is a whole number from 0, or nothing: in every fold")


def _absent(data: DataConfig, path: Path, there: set[str]) -> Iterator[Finding]:
    for setting, names in (("data.healthy", (data.healthy,)), ("data.unhealthy", data.unhealthy)):
        for name in names:
            if name not in there:
                shown = f"there are {', '.join(sorted(there))}{did_you_mean(name, sorted(there))}"
                yield Finding("error", "no-dataset", str(path), f"no data set '{name}' ({setting})", shown)


def _trained_anomalies(data: DataConfig, rows: list[ScanRow]) -> Iterator[Finding]:
    for name in data.unhealthy:
        wrong = [row for row in rows if row.dataset == name and row.split == "train"]
        if wrong:
            found = f"{len(wrong)} rows of {name} are for training"
            allowed = "unhealthy data sets have val and test only; the model must not see anomalies"
            yield Finding("error", "unhealthy-train", wrong[0].source, found, allowed)


def _mixed_folds(path: Path, rows: list[ScanRow]) -> Iterator[Finding]:
    for dataset, split in sorted({(row.dataset, row.split) for row in rows}):
        folds = {row.fold for row in rows if (row.dataset, row.split) == (dataset, split)}
        if None in folds and len(folds) > 1:
            found = f"{dataset} {split}: some rows name a fold and some do not"
            yield Finding("error", "mixed-folds", str(path), found, "give all rows of a split a fold, or none")


def _parts(data: DataConfig, path: Path, rows: list[ScanRow], there: set[str]) -> dict[SplitFile, list[ScanRow]]:
    cohorts = (data.healthy, *data.unhealthy)
    parts: dict[SplitFile, list[ScanRow]] = {}
    for row in rows:
        parts.setdefault(SplitFile(path, row.dataset, row.split, row.fold), []).append(row)
    for dataset in (name for name in cohorts if name in there):
        splits: tuple[Split, ...] = ("train", "val", "test") if dataset == data.healthy else ("val", "test")
        for split in splits:
            folds = {file.fold for file in parts if (file.dataset, file.split) == (dataset, split)}
            if not folds & {None, data.fold}:
                parts[SplitFile(path, dataset, split, data.fold if folds else None)] = []
    order = sorted(parts, key=lambda f: (cohorts.index(f.dataset), _ORDER[f.split], -1 if f.fold is None else f.fold))
    return {file: parts[file] for file in order}
