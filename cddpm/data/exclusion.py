"""Subjects that a person has taken out: ``splits/exclude.csv`` in DATA_DIR, or ``study.exclude.csv`` beside ``study.yaml``.

Whoever has looked through the scans (``cddpm data report``) names them there, with the columns ``dataset, subject, reason``.
They are dropped from every split, in every modality, whatever ``data.splits`` says.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from cddpm.config import DataConfig
from cddpm.data.finding import Finding
from cddpm.data.sheet import SheetError, read_sheet
from cddpm.data.split import SHOWN, ScanRow, SplitFile
from cddpm.text.likeness import did_you_mean

NAME = "exclude.csv"
COLUMNS = ("dataset", "subject", "reason")
NEEDED = COLUMNS[:2]

Parts = dict[SplitFile, list[ScanRow]]


@dataclass(frozen=True)
class Exclusion:
    """One line of the list."""

    dataset: str
    subject: str
    reason: str
    source: str
    """``exclude.csv:line``."""

    def __str__(self) -> str:
        return f"{self.dataset}/{self.subject} ({self.reason or 'no reason given'})"


def exclusion_file(data: DataConfig, root: Path) -> Path:
    """Where the list lies if there is one: below ``root``, or beside the table."""
    return root / "splits" / NAME if data.table is None else data.table.with_suffix(f".{NAME}")


def read_exclusions(path: Path) -> tuple[list[Exclusion], list[Finding]]:
    """Every subject that the list names, once, and what is wrong with the list; nothing if there is none."""
    if not path.exists():
        return [], []
    try:
        sheet = read_sheet(path, COLUMNS)
    except SheetError as error:
        return [], [Finding("error", "exclusions", error.path, error.found, error.allowed)]
    missing = [column for column in NEEDED if column not in sheet.columns]
    if missing:
        allowed = f"needed are {', '.join(NEEDED)}; a reason may stand beside them"
        return [], [Finding("error", "exclusions", str(path), sheet.without(missing), allowed)]
    found: dict[tuple[str, str], Exclusion] = {}
    faults: list[Finding] = []
    for source, record in sheet.records:
        dataset, subject, reason = ((record.get(column) or "").strip() for column in COLUMNS)
        if dataset and subject:
            found.setdefault((dataset, subject), Exclusion(dataset, subject, reason, source))
        else:
            faults.append(Finding("error", "exclusions", source, "no data set or no subject", "each row needs both"))
    return list(found.values()), faults


def without_excluded(data: DataConfig, root: Path, parts: Parts) -> tuple[Parts, list[Finding]]:
    """The rows of ``parts`` whose subject nobody has taken out, and the findings: one on how many were, one per odd name."""
    path = exclusion_file(data, root)
    listed, findings = read_exclusions(path)
    there = {(row.dataset, row.subject) for rows in parts.values() for row in rows}
    taken = {(one.dataset, one.subject): one for one in listed if (one.dataset, one.subject) in there}
    if taken:
        findings.append(Finding("warning", "excluded", str(path), _told(taken), "dropped from every split"))
    findings += _unknown(data, root, [one for one in listed if (one.dataset, one.subject) not in taken], there)
    kept = {file: [row for row in rows if (row.dataset, row.subject) not in taken] for file, rows in parts.items()}
    return kept, findings


def _told(taken: Mapping[tuple[str, str], Exclusion]) -> str:
    shown = ", ".join(str(one) for one in list(taken.values())[:SHOWN])
    rest = f" and {len(taken) - SHOWN} more" if len(taken) > SHOWN else ""
    return f"{len(taken)} subject{'' if len(taken) == 1 else 's'} excluded: {shown}{rest}"


def _unknown(
    data: DataConfig, root: Path, listed: Iterable[Exclusion], there: Iterable[tuple[str, str]]
) -> Iterator[Finding]:
    """Names that no row bears. Data sets that lie in the same folder, but that ``data`` does not name, are none of them."""
    looked_at = (data.healthy, *data.unhealthy)
    beside = [] if data.table is not None else [path.name for path in (root / "splits").glob("*.csv")]
    subjects = {name: [subject for dataset, subject in there if dataset == name] for name in looked_at}
    for one in listed:
        if one.dataset in subjects:
            near = did_you_mean(one.subject, subjects[one.dataset])
            found = f"no row of {one.dataset} names the subject '{one.subject}'"
            yield Finding("warning", "exclusions", one.source, found, f"nothing is dropped for it{near}")
        elif not any(name.startswith(f"{one.dataset}_") for name in beside):
            near = did_you_mean(one.dataset, looked_at)
            found = f"no data set '{one.dataset}' is looked at ({one.subject})"
            yield Finding("warning", "exclusions", one.source, found, f"there are {', '.join(looked_at)}{near}")
