"""Leaks: subjects (or image files) of one split that are held out in a later one.

Held out are validation against training, and test against both; validation of another fold is none. The published tables
have leaks among healthy subjects only: an unhealthy scan in validation and test means tables that do not belong together,
and is an error whatever ``data.splits`` says.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence

from cddpm.config import DataConfig
from cddpm.data.finding import Finding
from cddpm.data.scheme import Division, both_of_one
from cddpm.data.split import ScanRow, Split, SplitFile

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
