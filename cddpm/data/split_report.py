"""What the split files say, as they are and clean: rows, repeats, subjects in two splits, counts per fold.

Clean, they are also without the subjects that a person has taken out (``exclusion``).

Everything is told from the tables alone; scans are looked at only to find one file under two subjects, where they are there.
"""

import csv
import io
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cddpm.artifact import file_digest, write_json, write_text
from cddpm.config import DataConfig
from cddpm.data.afar import present
from cddpm.data.exclusion import without_excluded
from cddpm.data.finding import Finding, refuse_errors
from cddpm.data.layout import Parts, available, clean_rows, read_parts
from cddpm.data.sheet import read_rows, text_of
from cddpm.data.split import COLUMNS, ScanRow, SplitFile, held_elsewhere, key_of
from cddpm.errors import ConfigError, DataError

REPORT = "report.json"
_COMPARED = ("label", "age", "image", "mask", "segmentation")


@dataclass(frozen=True)
class SplitCount:
    """One split: its rows, its subjects, those that stand in it twice, and those that another split holds out."""

    title: str
    dataset: str
    split: str
    fold: int | None
    rows: int
    subjects: int
    repeated: tuple[str, ...]
    """Subjects in more than one row."""
    leaked: dict[str, tuple[str, ...]]
    """By the title of the split that holds them out: subjects that should not be here."""


@dataclass(frozen=True)
class FoldCount:
    """Healthy subjects of one fold, and how many of them stand in two of its splits."""

    fold: int
    train: int
    val: int
    test: int
    in_two: int


@dataclass(frozen=True)
class SplitState:
    """All splits in one form: as published, or clean."""

    splits: tuple[SplitCount, ...]
    folds: tuple[FoldCount, ...]
    conflicts: dict[str, tuple[str, ...]]
    """By ``dataset/subject``: columns that differ between its rows."""
    validated_again: int
    """Healthy subjects that more than one fold validates on: no leak, but such folds are not independent."""

    @property
    def leaks(self) -> int:
        """Subjects in two splits, added up over all splits."""
        return sum(len({name for names in split.leaked.values() for name in names}) for split in self.splits)

    @property
    def repeats(self) -> int:
        """Rows that repeat a scan."""
        return sum(split.rows - split.subjects for split in self.splits)


@dataclass(frozen=True)
class SplitReport:
    """The splits below one folder, as they are and clean."""

    root: str
    modality: str
    published: SplitState
    clean: SplitState
    scans: int
    scans_there: int
    """How many image files exist; the others were not compared."""
    same_bytes: tuple[tuple[str, ...], ...]
    """Subjects (``dataset/subject``) whose image files are the same, byte by byte."""
    exclusions: tuple[Finding, ...] = ()
    """What came of the list of excluded subjects."""

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON data."""
        return asdict(self)

    def told_of_scans(self) -> str:
        """What is known of the image files, as a sentence."""
        if not self.scans_there:
            return f"None of the {self.scans} scans ({self.modality}) is there: told from the split files alone."
        same = "; ".join(" = ".join(names) for names in self.same_bytes) or "none"
        missing = self.scans - self.scans_there
        more = f"; {missing} are not there" if missing else ""
        return f"One file under two subjects, of {self.scans_there} scans ({self.modality}){more}: {same}"


def report_splits(data: DataConfig, root: Path) -> SplitReport:
    """Look at every split that ``data`` names below ``root``, with the scans of its modality.

    Raises ``DataError`` listing all faults when a table cannot be read.
    """
    return _report(data, root, _readable_parts(data, root))


def _readable_parts(data: DataConfig, root: Path) -> Parts:
    parts, findings = read_parts(data, root)
    refuse_errors(findings)
    return parts


def _report(data: DataConfig, root: Path, parts: Parts) -> SplitReport:
    kept, told = without_excluded(data, root, parts)
    refuse_errors(told)
    parts, kept = ({file: available(data, root, rows)[0] for file, rows in some.items()} for some in (parts, kept))
    clean: Parts = {file: [] for file in parts}
    files = {key_of(file): file for file in parts}
    for row in clean_rows(data, kept):
        clean[files[key_of(row)]].append(row)
    scans = {row.image: f"{row.dataset}/{row.subject}" for rows in parts.values() for row in rows}
    there = {path: name for path, name in scans.items() if path.is_file()}
    published, mended = _state(data, parts), _state(data, clean)
    same = tuple(_same_bytes(there))
    return SplitReport(str(root), data.modality, published, mended, len(scans), len(there), same, tuple(told))


def write_clean(data: DataConfig, root: Path, out: Path) -> SplitReport:
    """Write ``out/splits/*.csv``, clean and in the published form, and ``out/report.json``; returns the report.

    Rows are dropped, never changed: columns, index, order and texts are those of the files in ``root/splits``. Lists of
    available scans are copied. Files of another content that are in ``out`` are refused with ``DataError``.
    """
    if data.table is not None:
        raise DataError(
            f"{data.table}: only split files in the published form can be written; correct the table itself"
        )
    parts = _readable_parts(data, root)
    report = _report(data, root, parts)
    kept = {row.source for row in clean_rows(data, without_excluded(data, root, parts)[0])}
    texts = {file.path.name: _without(file.path, kept) for file in parts}
    texts |= {path.name: text_of(path) for path in (root / "splits").glob("avail_*.csv")}
    _refuse_other(out / "splits", texts)
    for name, text in sorted(texts.items()):
        write_text(out / "splits" / name, text)
    write_json(out / REPORT, report.to_dict())
    return report


def unhealthy_in(folder: Path, healthy: str) -> tuple[str, ...]:
    """Data sets with ``<name>_val.csv`` or ``<name>_test.csv`` in ``folder``, but ``healthy`` and what could be that, too."""
    names = {path.stem.rpartition("_")[0] for end in ("val", "test") for path in folder.glob(f"*_{end}.csv")}
    return tuple(sorted(names - {healthy, *_trained_on(folder)}))


def healthy_in(folder: Path, usual: str) -> str:
    """The data set with ``<name>_train_fold<n>.csv`` in ``folder``; of none or several ``usual``.

    Raises ``ConfigError`` if there are several and ``usual`` is none of them.
    """
    names = sorted(_trained_on(folder))
    if len(names) == 1:
        return names[0]
    if names and usual not in names:
        raise ConfigError(
            f"{folder}: split files of {', '.join(names)}; say with --healthy which data set is to be learnt from"
        )
    return usual


def _trained_on(folder: Path) -> set[str]:
    return {path.stem.rpartition("_train_fold")[0] for path in folder.glob("*_train_fold*.csv")}


def _state(data: DataConfig, parts: Parts) -> SplitState:
    leaked: defaultdict[tuple[Any, ...], defaultdict[str, dict[str, None]]] = defaultdict(lambda: defaultdict(dict))
    titles = {key_of(file): file.title for file in parts}
    for row, others in held_elsewhere(row for rows in parts.values() for row in rows):
        for other in others:
            leaked[key_of(row)][titles[key_of(other)]][row.subject] = None
    splits = tuple(_split_count(file, rows, leaked[key_of(file)]) for file, rows in parts.items())
    return SplitState(splits, tuple(_folds(data, parts)), _conflicts(parts), _validated_again(data, parts))


def _split_count(file: SplitFile, rows: list[ScanRow], leaked: Mapping[str, Iterable[str]]) -> SplitCount:
    counts: defaultdict[str, int] = defaultdict(int)
    for row in rows:
        counts[row.subject] += 1
    repeated = tuple(name for name, count in counts.items() if count > 1)
    elsewhere = {title: tuple(names) for title, names in leaked.items()}
    return SplitCount(file.title, file.dataset, file.split, file.fold, len(rows), len(counts), repeated, elsewhere)


def _folds(data: DataConfig, parts: Parts) -> Iterator[FoldCount]:
    for fold in sorted({file.fold for file in parts if file.fold is not None} or {data.fold}):
        subjects = {
            split: {
                row.subject
                for file, rows in parts.items()
                if (file.dataset, file.split) == (data.healthy, split) and file.fold in (None, fold)
                for row in rows
            }
            for split in ("train", "val", "test")
        }
        train, val, test = subjects.values()
        yield FoldCount(fold, len(train), len(val), len(test), len((train & val) | (train & test) | (val & test)))


def _conflicts(parts: Parts) -> dict[str, tuple[str, ...]]:
    seen: defaultdict[str, defaultdict[str, set[Any]]] = defaultdict(lambda: defaultdict(set))
    for row in (row for rows in parts.values() for row in rows):
        for column in _COMPARED:
            seen[f"{row.dataset}/{row.subject}"][column].add(getattr(row, column))
    differing = {name: tuple(c for c, found in columns.items() if len(found) > 1) for name, columns in seen.items()}
    return {name: columns for name, columns in sorted(differing.items()) if columns}


def _validated_again(data: DataConfig, parts: Parts) -> int:
    folds: defaultdict[str, set[int | None]] = defaultdict(set)
    for file, rows in parts.items():
        if (file.dataset, file.split) == (data.healthy, "val"):
            for row in rows:
                folds[row.subject].add(file.fold)
    return sum(len(found) > 1 for found in folds.values())


def _same_bytes(there: Mapping[Path, str]) -> Iterator[tuple[str, ...]]:
    """Only files of one size are read: compressed scans hardly ever have the same by chance."""
    by_size: defaultdict[int, list[Path]] = defaultdict(list)
    for path in there:
        by_size[path.stat().st_size].append(path)
    by_digest: defaultdict[str, list[str]] = defaultdict(list)
    for paths in by_size.values():
        for path in paths if len(paths) > 1 else ():
            by_digest[file_digest(present(path))].append(there[path])
    yield from sorted(tuple(sorted(set(names))) for names in by_digest.values() if len(set(names)) > 1)


def _without(path: Path, kept: set[str]) -> str:
    """The text of a split file with its header and the rows in ``kept`` (``file:line``)."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    for number, (source, record) in enumerate(read_rows(path, COLUMNS)):
        if number == 0 or source in kept:
            writer.writerow(record)
    return text.getvalue()


def _refuse_other(folder: Path, texts: Mapping[str, str]) -> None:
    for path in sorted(folder.glob("*")):
        if path.name not in texts or path.read_text() != texts[path.name]:
            raise DataError(f"{path}: is there already, with another content; name a new folder")
