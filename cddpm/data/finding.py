"""Findings: what is wrong with the data, gathered so that one report tells all of it.

With them goes how validation and test are held apart, told by the numbers of scans. Of the 655 scans of ATLAS two divisions
are in use: the paper's 175 and 480 (Behrendt et al. 2025, arXiv 2312.04215), and 66 and 589 in sibling projects of it. The 480
are among the 589, the other 109 are of the paper's validation: results on one say nothing about the other, and the one's
validation with the other's test tunes on what it tests.

And what becomes of a segmented lesion on its way to the working grid, told before anything is trained on it.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from cddpm.data.afar import told
from cddpm.data.geometry import CUT_FRACTION, Geometry, field_of_view
from cddpm.errors import DataError
from cddpm.labels import Labels

if TYPE_CHECKING:
    from cddpm.data.volume import Volume


@dataclass(frozen=True)
class Scheme:
    """A division of one data set: how many scans are for validation and for test."""

    name: str
    validation: int
    test: int

    def __str__(self) -> str:
        return f"{self.name} {self.validation} and {self.test}"


SCHEMES: dict[str, tuple[Scheme, ...]] = {
    "Brats21": (Scheme("published", 100, 1151),),
    "MSLUB": (Scheme("published", 10, 20),),
    "ATLAS_v2": (Scheme("published", 175, 480), Scheme("sibling", 66, 589)),
    "WMH": (Scheme("published", 15, 45),),
}
"""By data set, the published one first."""


@dataclass(frozen=True)
class Division:
    """Distinct subjects of an unhealthy data set in validation, in test and in both, as its tables have them."""

    dataset: str
    validation: int
    test: int
    shared: int = 0

    @property
    def scheme(self) -> Scheme | None:
        """The known scheme that has both numbers."""
        sizes = (self.validation, self.test)
        return next((s for s in self._known if (s.validation, s.test) == sizes and not self.shared), None)

    @property
    def mixed(self) -> tuple[Scheme, Scheme] | None:
        """The scheme that the validation is of, and the other one that the test is of."""
        validation = next((s for s in self._known if s.validation == self.validation), None)
        test = next((s for s in self._known if s.test == self.test), None)
        return (validation, test) if validation and test and validation != test else None

    @property
    def _known(self) -> tuple[Scheme, ...]:
        return SCHEMES.get(self.dataset, ())

    def __str__(self) -> str:
        """One line: the numbers, and whose they are."""
        others = "; ".join(str(scheme) for scheme in self._known if scheme != self.scheme)
        told = f"{self.dataset}: {self.validation} validation and {self.test} test scans"
        if self.shared:
            told += f", {self.shared} of them in both"
        if self.scheme:
            return f"{told}: the {self.scheme.name} splits" + (f" (not {others})" if others else "")
        return told + (f": no known splits ({others})" if self._known else "")

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON data; ``scheme`` is its name or None."""
        return {**asdict(self), "scheme": self.scheme.name if self.scheme else None}


def both_of_one(dataset: str) -> str:
    """What is allowed where validation and test share scans: both tables of one scheme, where more than one is known."""
    known = SCHEMES.get(dataset, ())
    choice = f"; take both files from one division: {' or '.join(map(str, known))}" if len(known) > 1 else ""
    return f"a scan of an unhealthy data set is for validation or for test, never for both{choice}"


MOST_CHANGE = 2.0
"""Nearest-voxel sampling changes the volume of small lesions; by a larger factor it is told."""
MOST_NAMED = 12
"""So many files of one warning are named in its line."""


@dataclass(frozen=True)
class Truth:
    """The lesion of one scan in its file and on the working grid."""

    dataset: str
    subject: str
    labels: dict[int, str]
    """Labels of the file: ``lesion`` or ``ignored``."""
    voxels: int = 0
    ml: float = 0.0
    cut_fraction: float = 0.0
    """Part of the lesion that lies outside of the field of view."""
    working_voxels: int = 0
    working_ml: float = 0.0

    @property
    def loss(self) -> str | None:
        """One sentence if the lesion vanishes, is cut, or changes its volume."""
        before, after = f"{self.voxels} voxels ({self.ml:.3g} ml)", f"{self.working_voxels} ({self.working_ml:.3g} ml)"
        way = f"{before} in the file, {after} on the working grid"
        if not self.voxels:
            return None
        if not self.working_voxels:
            return f"the lesion vanishes: {way}"
        if self.cut_fraction > CUT_FRACTION:
            return f"{self.cut_fraction:.0%} of the lesion lies outside of the field of view: {way}"
        if not 1 / MOST_CHANGE <= self.working_ml / self.ml <= MOST_CHANGE:
            return f"the lesion changes its volume: {way}"
        return None


def follow(dataset: str, subject: str, segmentation: "Volume", labels: Labels, geometry: Geometry) -> Truth:
    """The truth of a scan, followed to the working grid as preparation takes it there."""
    from cddpm.data.brain import voxel_ml  # ITK and nibabel: who only tells of a truth needs neither
    from cddpm.data.prepare import label_on_working_grid

    lesion = segmentation.data == 1
    voxels = int(np.count_nonzero(lesion))
    found = {label: labels.meaning(label) for label in segmentation.labels}
    if not voxels:
        return Truth(dataset, subject, found)
    cut = 1 - np.count_nonzero(lesion & field_of_view(geometry)) / voxels
    left = int(np.count_nonzero(label_on_working_grid(segmentation.data, geometry) == 1))
    x, y, z = geometry.working_voxel_size_mm
    return Truth(dataset, subject, found, voxels, voxels * voxel_ml(segmentation), cut, left, left * x * y * z / 1000)


@dataclass(frozen=True)
class TruthSum:
    """The truth of one unhealthy data set."""

    dataset: str
    scans: int
    with_lesion: int
    """Scans with lesion in their file."""
    scored: int
    """Scans with lesion on the working grid: those that have a Dice."""
    ml: float
    working_ml: float
    labels: dict[int, tuple[str, int]]
    """By label: its meaning, and in how many scans it is."""

    def __str__(self) -> str:
        words = ", ".join(
            f"{label} ({meaning}, {scans} scans)" for label, (meaning, scans) in sorted(self.labels.items())
        )
        return (
            f"{self.dataset}: {self.with_lesion} of {self.scans} scans have a lesion, {self.ml:.4g} ml together; {self.scored} "
            f"on the working grid, {self.working_ml:.4g} ml; labels {words or 'none'}"
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON data."""
        labels = {str(label): {"meaning": m, "scans": n} for label, (m, n) in sorted(self.labels.items())}
        return {**asdict(self), "labels": labels}


def summed(truths: Iterable[Truth]) -> list[TruthSum]:
    """One sum per data set, in the order of the scans."""
    groups: defaultdict[str, list[Truth]] = defaultdict(list)
    for truth in truths:
        groups[truth.dataset].append(truth)
    return [_sum(dataset, group) for dataset, group in groups.items()]


def _sum(dataset: str, group: list[Truth]) -> TruthSum:
    counted = Counter(pair for truth in group for pair in truth.labels.items())
    return TruthSum(
        dataset=dataset,
        scans=len(group),
        with_lesion=sum(truth.voxels > 0 for truth in group),
        scored=sum(truth.working_voxels > 0 for truth in group),
        ml=sum(truth.ml for truth in group),
        working_ml=sum(truth.working_ml for truth in group),
        labels={label: (meaning, scans) for (label, meaning), scans in counted.items()},
    )


@dataclass(frozen=True)
class Finding:
    """One fault or oddity: where (``file``, with line if it is a table), what was found, what is allowed or was done."""

    severity: Literal["error", "warning"]
    code: str
    file: str
    found: str
    allowed: str
    others: tuple[str, ...] = ()
    """More files of which the same was found."""

    def __str__(self) -> str:
        return f"{self.severity}: {self.file}: {self.said}"

    @property
    def said(self) -> str:
        """All but where."""
        return f"{self.found}{self._and_others()}; {self.allowed} [{self.code}]"

    def _and_others(self) -> str:
        if not self.others:
            return ""
        named = ", ".join(file.rpartition("/")[2] for file in self.others[:MOST_NAMED])
        rest = " and more, all of them with --json" if len(self.others) > MOST_NAMED else ""
        return f" (and {len(self.others)} more files: {named}{rest})"


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
    """The findings, but a warning that is the same word for word for more than ``most`` files stands once, with the others."""
    groups: dict[tuple[str, str, str, str], list[Finding]] = {}
    for one in findings:
        groups.setdefault((one.severity, one.code, one.found, one.allowed), []).append(one)
    told = []
    for first, *others in groups.values():
        if first.severity == "error" or len(others) < most:
            told += [first, *others]
        else:
            told.append(replace(first, others=tuple(one.file for one in others)))
    return told


def refuse_errors(findings: Iterable[Finding]) -> None:
    """Raises ``DataError`` listing every error among ``findings``."""
    errors = [str(f).removeprefix("error: ") for f in findings if f.severity == "error"]
    if errors:
        raise DataError(told("\n".join(errors)))
