"""Findings: what is wrong with the data, gathered so that one report tells all of it."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from cddpm.data.scheme import Division
from cddpm.data.truth import Truth, summed
from cddpm.errors import DataError


@dataclass(frozen=True)
class Finding:
    """One fault or oddity: where (``file``, with line if it is a table), what was found, what is allowed or was done."""

    severity: Literal["error", "warning"]
    code: str
    file: str
    found: str
    allowed: str

    def __str__(self) -> str:
        return f"{self.severity}: {self.file}: {self.found}; {self.allowed} [{self.code}]"


@dataclass(frozen=True)
class Report:
    """All findings over one data directory, errors first, how many volumes were read, and how test is held apart."""

    findings: tuple[Finding, ...]
    volumes: int
    divisions: tuple[Division, ...] = ()
    truths: tuple[Truth, ...] = ()
    """Of every scan with a segmentation that could be read."""

    @property
    def errors(self) -> tuple[Finding, ...]:
        """Findings that forbid training."""
        return tuple(f for f in self.findings if f.severity == "error")

    @property
    def warnings(self) -> tuple[Finding, ...]:
        """Findings that a person should know of."""
        return tuple(f for f in self.findings if f.severity == "warning")

    def lines(self) -> list[str]:
        """One line per finding, two per unhealthy data set (its splits, its lesions), and a last one with the sums."""
        total = f"{self.volumes} volumes read: {len(self.errors)} errors, {len(self.warnings)} warnings"
        return [*(str(f) for f in self.findings), *self.facts(), total]

    def facts(self) -> list[str]:
        """One line per unhealthy data set on its splits, and one on its lesions and labels."""
        return [*map(str, self.divisions), *map(str, summed(self.truths))]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON data."""
        return {
            "volumes": self.volumes,
            "errors": len(self.errors),
            "warnings": len(self.warnings),
            "findings": [asdict(f) for f in self.findings],
            "divisions": [d.to_dict() for d in self.divisions],
            "lesions": [total.to_dict() for total in summed(self.truths)],
            "truths": [{**asdict(t), "labels": {str(n): m for n, m in t.labels.items()}} for t in self.truths],
        }


def alike(findings: Iterable[Finding], most: int = 3) -> list[Finding]:
    """The findings, but a warning that is the same word for word for more than ``most`` files stands once, with their number."""
    groups: dict[tuple[str, str, str, str], list[Finding]] = {}
    for one in findings:
        groups.setdefault((one.severity, one.code, one.found, one.allowed), []).append(one)
    told = []
    for first, *others in groups.values():
        if first.severity == "error" or len(others) < most:
            told += [first, *others]
        else:
            told.append(replace(first, found=f"{first.found} (and {len(others)} more files)"))
    return told


def refuse_errors(findings: Iterable[Finding]) -> None:
    """Raises ``DataError`` listing every error among ``findings``."""
    errors = [str(f).removeprefix("error: ") for f in findings if f.severity == "error"]
    if errors:
        raise DataError("\n".join(errors))
