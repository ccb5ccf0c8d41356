"""DATA_DIR in the published layout: which scans there are, and to which split each belongs.

::

    DATA_DIR/Train/ixi/{mask,t1,t2}   DATA_DIR/Test/{Brats21,MSLUB,...}/{mask,seg,t1,t2}   DATA_DIR/splits/*.csv

Split files: ``<healthy>_train_fold<k>.csv``, ``<healthy>_val_fold<k>.csv``, ``<healthy>_test.csv``, and per unhealthy data
set ``<name>_val.csv``, ``<name>_test.csv``. ``avail_<modality>.csv`` limits the healthy scans. The published files are not
clean: scans stand twice in one file (read once), and subjects of the test split stand in training (``data.splits``).
"""

import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from cddpm.config import DataConfig
from cddpm.data.finding import Finding, refuse_errors
from cddpm.data.split import ScanRow, Split, SplitFile, available_names, nearest, read_split
from cddpm.errors import DataError

__all__ = ["Layout", "ScanRow", "find_root", "read_layout", "scan_layout"]

_HELD_OUT: dict[Split, int] = {"train": 0, "val": 1, "test": 2}
_SHOWN = 5


@dataclass(frozen=True)
class Layout:
    """All rows of all splits and folds, and what was noticed while reading them."""

    root: Path
    rows: tuple[ScanRow, ...]
    findings: tuple[Finding, ...]

    def volumes(self) -> list[ScanRow]:
        """The first row of every scan, in the order of the files: what is to be read, once."""
        return list({(row.dataset, row.subject): row for row in reversed(self.rows)}.values())[::-1]


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
    """Rows of all splits that ``data`` names, ready to use. Raises ``DataError`` listing every fault of the split files."""
    layout = scan_layout(data, root)
    refuse_errors(layout.findings)
    return layout


def scan_layout(data: DataConfig, root: Path) -> Layout:
    """As ``read_layout``, but faults are kept as findings."""
    files, findings = _find_files(data, root)
    rows: list[ScanRow] = []
    everything: list[ScanRow] = []
    for file in files:
        found = list(read_split(file, root, data.modality))
        findings += [f for f in found if isinstance(f, Finding)]
        named = [r for r in found if isinstance(r, ScanRow)]
        kept, told = _without_repeats(file, named)
        findings += [*told, *_row_faults(data, file, kept)]
        rows += kept
        everything += named
    findings += _conflicts(everything)
    rows, told = _available(data, root, rows)
    findings += told
    rows, told = _without_leaks(data, files, rows)
    findings += [*told, *_empty_splits(files, rows)]
    return Layout(root, tuple(rows), tuple(findings))


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
            f"there are {', '.join(there) or 'none'}{nearest(p.name, there)}",
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


def _without_repeats(file: SplitFile, rows: list[ScanRow]) -> tuple[list[ScanRow], list[Finding]]:
    by_subject: defaultdict[str, list[ScanRow]] = defaultdict(list)
    for row in rows:
        by_subject[row.subject].append(row)
    repeated = {name: same for name, same in by_subject.items() if len(same) > 1}
    findings: list[Finding] = []
    if repeated:
        extra = sum(len(same) - 1 for same in repeated.values())
        found = f"{extra} rows repeat a scan ({_names(list(repeated))})"
        findings.append(
            Finding("warning", "duplicate-row", str(file.path), found, "each scan is used once, with its first row")
        )
    return [same[0] for same in by_subject.values()], findings


def _conflicts(rows: list[ScanRow]) -> Iterator[Finding]:
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
            found = f"no seg_path for {row.subject} with label {row.label}"
            yield Finding(
                "error", "no-segmentation", row.source, found, "a scan with an anomaly needs its segmentation"
            )
    unnamed = [row for row in rows if data.modality not in (*row.image.parts, *re.split(r"[_.]", row.image.name))]
    if unnamed and data.modality != "t1":
        found = f"{len(unnamed)} paths name no modality, e.g. {unnamed[0].image.name}"
        yield Finding("warning", "modality", str(file.path), found, f"they are taken as {data.modality}")


def _available(data: DataConfig, root: Path, rows: list[ScanRow]) -> tuple[list[ScanRow], list[Finding]]:
    """Drop healthy scans that do not exist in this modality; that is their published form, so it is not worth a finding."""
    path = root / "splits" / f"avail_{data.modality}.csv"
    if not path.exists():
        return rows, []
    try:
        names = available_names(path)
    except (OSError, UnicodeDecodeError) as error:
        found = f"cannot be read ({error})"
        return rows, [
            Finding("error", "split-file", str(path), found, "a CSV table with file names in its last column is needed")
        ]
    return [row for row in rows if row.dataset != data.healthy or row.subject in names], []


def _without_leaks(
    data: DataConfig, files: list[SplitFile], rows: list[ScanRow]
) -> tuple[list[ScanRow], list[Finding]]:
    """Subjects (and image files) of a split that are also held out in a later one: test before validation before training."""
    held = _held_out(rows)
    leaks: defaultdict[tuple[str, Split, int | None], list[tuple[ScanRow, ScanRow]]] = defaultdict(list)
    for row in rows:
        others = [h for key in _keys(row) for h in held[key] if _held_against(h, row)]
        if others:
            last = max(others, key=lambda h: _HELD_OUT[h.split])
            leaks[row.dataset, row.split, row.fold].append((row, last))
    keys = [(file, (file.dataset, file.split, file.fold)) for file in files]
    findings = [_leak(data, file, leaks[key]) for file, key in keys if key in leaks]
    dropped = {id(row) for pairs in leaks.values() for row, _ in pairs} if data.splits == "clean" else set()
    return [row for row in rows if id(row) not in dropped], findings


def _held_out(rows: list[ScanRow]) -> defaultdict[str, list[ScanRow]]:
    held: defaultdict[str, list[ScanRow]] = defaultdict(list)
    for row in rows:
        if row.split != "train":
            for key in _keys(row):
                held[key].append(row)
    return held


def _keys(row: ScanRow) -> tuple[str, str]:
    return f"{row.dataset}/{row.subject}", str(row.image)


def _held_against(held: ScanRow, row: ScanRow) -> bool:
    same_fold = held.fold is None or row.fold is None or held.fold == row.fold
    return same_fold and _HELD_OUT[held.split] > _HELD_OUT[row.split]


def _leak(data: DataConfig, file: SplitFile, pairs: list[tuple[ScanRow, ScanRow]]) -> Finding:
    others = sorted({Path(other.source.rpartition(":")[0]).name for _, other in pairs})
    found = f"{len(pairs)} subjects are also in {', '.join(others)} ({_names([row.subject for row, _ in pairs])})"
    match data.splits:
        case "clean":
            return Finding("warning", "leak", str(file.path), found, f"dropped from {file.split} (data.splits: clean)")
        case "published":
            return Finding("warning", "leak", str(file.path), found, f"kept in {file.split} (data.splits: published)")
        case "strict":
            allowed = "a subject may be in one split only; remove the rows or set data.splits: clean"
            return Finding("error", "leak", str(file.path), found, allowed)
    raise AssertionError(data.splits)


def _empty_splits(files: list[SplitFile], rows: list[ScanRow]) -> Iterator[Finding]:
    there = {(row.dataset, row.split, row.fold) for row in rows}
    for file in files:
        if (file.dataset, file.split, file.fold) not in there:
            yield Finding(
                "error", "empty-split", str(file.path), "no usable scan", "each split needs at least one scan"
            )


def _names(subjects: list[str]) -> str:
    rest = len(subjects) - _SHOWN
    return ", ".join(subjects[:_SHOWN]) + (f" and {rest} more" if rest > 0 else "")
