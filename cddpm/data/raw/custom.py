"""Raw scans in any layout: a YAML file that says by patterns where images, masks and segmentations are.

::

    datasets:
      Clinic:
        images:
          t1: patients/{subject}/T1.nii.gz
          flair: patients/{subject}/dicom/*FLAIR*      # a folder: one DICOM series
        mask: patients/{subject}/brain.nii.gz          # optional
        segmentation: patients/{subject}/lesion.nii.gz
        segmentation_on: flair                         # optional: the modality whose grid it lies on
        split: {val: 0.3, test: 0.7}                   # optional, as are label, folds, seed and ages
        ages: {table: patients.csv, subject: code, age: years}

The first modality is the reference. ``{subject}`` takes part of one file or folder name, ``*`` stands for the rest.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, ValidationError, field_validator, model_validator

from cddpm.config import Frozen
from cddpm.config.loading import explain, read_yaml
from cddpm.config.sections import Name
from cddpm.data.finding import Finding
from cddpm.data.pattern import SharedOut, Shares, files_by_subject, only_one
from cddpm.data.raw.head import RawSubject
from cddpm.data.raw.tree import Found, ages, is_empty, joined, warning
from cddpm.errors import ConfigError
from cddpm.place import ON_DISK, address
from cddpm.text.likeness import did_you_mean

Pattern = Annotated[str, Field(pattern=r"\{subject\}")]
HEALTHY = SharedOut(split=Shares(train=0.7, val=0.1, test=0.2), folds=5)
UNHEALTHY = SharedOut(split=Shares(val=0.3, test=0.7))
"""How subjects are shared out where nothing else is said."""


class AgeTable(Frozen):
    """A table of ages, and its columns."""

    table: str
    subject: str
    age: str


class RawDataset(Frozen):
    """One data set: where its raw files are."""

    images: Annotated[dict[Name, Pattern], Field(min_length=1)]
    """By modality; the first is the reference."""
    mask: Pattern | None = None
    segmentation: Pattern | None = None
    segmentation_on: Name | None = None
    """Modality whose grid it lies on; empty: the reference's."""
    label: Literal[0, 1] | None = None
    """0 healthy, 1 with anomaly; empty: 1 if it has a segmentation."""
    split: Shares | None = None
    folds: Annotated[int, Field(ge=1)] | None = None
    seed: int = 0
    ages: AgeTable | None = None

    @property
    def is_healthy(self) -> bool:
        """Whether its subjects may be trained on."""
        return not (self.segmentation is not None if self.label is None else self.label)

    @property
    def shares(self) -> SharedOut:
        """How its subjects are shared out."""
        usual = HEALTHY if self.is_healthy else UNHEALTHY
        if self.split is None:
            return SharedOut(split=usual.split, folds=self.folds or usual.folds, seed=self.seed)
        return SharedOut(split=self.split, folds=self.folds, seed=self.seed)

    @field_validator("images", "mask", "segmentation")
    @classmethod
    def _on_disk(cls, value: str | Mapping[str, str] | None) -> str | Mapping[str, str] | None:
        for pattern in value.values() if isinstance(value, Mapping) else (value,):
            if pattern is not None and address(pattern):
                raise ValueError(f"'{pattern}' is an address; allowed is {ON_DISK}, relative to RAW_DIR")
        return value

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.segmentation_on is not None and self.segmentation_on not in self.images:
            near = did_you_mean(self.segmentation_on, list(self.images))
            raise ValueError(f"segmentation_on: {self.segmentation_on}: images has {', '.join(self.images)}{near}")
        if self.label == 1 and self.segmentation is None:
            raise ValueError("label: 1: a data set with anomalies needs a segmentation of each subject")
        if not self.is_healthy and self.split is not None and self.split.train:
            raise ValueError("split: train: a data set with anomalies has val and test only")
        return self


class RawLayout(Frozen):
    """The whole file."""

    datasets: Annotated[dict[Name, RawDataset], Field(min_length=1)]


def read_layout(path: Path) -> RawLayout:
    """Read the YAML file. Raises ``ConfigError`` with every fault."""
    try:
        return RawLayout.model_validate(read_yaml(path))
    except ValidationError as error:
        raise ConfigError("\n".join(_faults(error, path))) from None


def _faults(error: ValidationError, path: Path) -> Iterator[str]:
    yield from explain(error, str(path), RawLayout)
    for fault in error.errors(include_url=False):
        if fault["type"] == "extra_forbidden":
            fields = list((RawDataset if len(fault["loc"]) == 3 else RawLayout).model_fields)
            yield f"{path}: allowed are {', '.join(fields)}{did_you_mean(str(fault['loc'][-1]), fields)}"


def find(layout: RawLayout, path: Path, root: Path, modalities: Sequence[str] = ()) -> list[Found]:
    """Subjects of every data set of ``layout`` below ``root``, with their files of ``modalities`` (empty: all that it names).

    The first modality is the reference. Raises ``ConfigError`` for a modality that no data set has.
    """
    known = list(dict.fromkeys(modality for one in layout.datasets.values() for modality in one.images))
    for modality in modalities:
        if modality not in known:
            near = did_you_mean(modality, known)
            raise ConfigError(f"--modality {modality}: {path} has {', '.join(known)}{near}")
    return [_dataset(name, one, path, root, modalities) for name, one in layout.datasets.items()]


def _dataset(name: str, one: RawDataset, path: Path, root: Path, modalities: Sequence[str]) -> Found:
    source, findings = f"{path}:datasets.{name}", list[Finding]()
    wanted = [modality for modality in dict.fromkeys(modalities or one.images) if modality in one.images]
    patterns = {modality: one.images[modality] for modality in wanted}
    patterns |= {role: text for role, text in (("mask", one.mask), ("segmentation", one.segmentation)) if text}
    there = {role: _scans(findings, root, pattern) for role, pattern in patterns.items()}
    years: dict[str, float] = {}
    if one.ages:
        years, told = ages(root / one.ages.table, one.ages.subject, one.ages.age)
        findings += told
    everyone = sorted({subject for modality in wanted for subject in there[modality]})
    if not everyone:
        named = ", ".join(patterns[modality] for modality in wanted)
        findings.append(Finding("error", "no-match", source, f"nothing matches {named}", f"paths begin at {root}"))
    subjects = []
    for subject in everyone:
        faults: list[Finding] = []
        files = {
            role: only_one(faults, source, subject, role, found[subject]) if subject in found else None
            for role, found in there.items()
        }
        findings += [replace(fault, severity="warning") for fault in faults]
        if one.mask and not files["mask"]:
            findings.append(
                warning("no-mask", source, f"{subject}: no mask", "goes without: a step has to extract its brain")
            )
        label, on = 0 if one.is_healthy else 1, one.segmentation_on or ""
        others = (files.get("mask"), files.get("segmentation"))
        raw = RawSubject(name, subject, {}, *others, on, label, years.get(subject))
        subjects.append(joined(findings, source, raw, {modality: files[modality] for modality in wanted}))
    there_are = tuple(subject for subject in subjects if subject)
    return Found(name, one.is_healthy, there_are, tuple(findings), one.shares, tuple(everyone))


def _scans(findings: list[Finding], root: Path, pattern: str) -> dict[str, list[Path]]:
    """NIfTI files and folders by subject; what else a pattern matches (a sidecar) is left alone. ``.nii`` is as ``.nii.gz``."""
    found = files_by_subject(root, pattern)
    twin = (
        pattern.removesuffix(".gz")
        if pattern.endswith(".nii.gz")
        else f"{pattern}.gz"
        if pattern.endswith(".nii")
        else ""
    )
    if twin:
        found = {**files_by_subject(root, twin), **found}
    sound: dict[str, list[Path]] = {}
    for subject, paths in found.items():
        scans = [path for path in paths if path.is_dir() or ".nii" in path.name.lower()]
        empty = [path for path in scans if path.is_file() and is_empty(path)]
        findings += [warning("empty-file", path, "0 bytes", "taken for missing; copy it again") for path in empty]
        if rest := [path for path in scans if path not in empty]:
            sound[subject] = rest
    return sound
