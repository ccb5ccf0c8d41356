"""Own data sets by pattern: a YAML table that says where the files of each data set are, and how to share out subjects.

::

    datasets:
      Healthy:
        image: healthy/{subject}/{modality}.nii.gz
        mask: healthy/{subject}/mask.nii.gz
        split: {train: 0.7, val: 0.1, test: 0.2}
        folds: 5
      Tumours:
        image: tumours/{subject}_{modality}.nii.gz
        mask: tumours/{subject}_brain.nii.gz
        segmentation: tumours/{subject}_tumour.nii.gz
        split: {val: 0.3, test: 0.7}

A subject's split and folds follow from the hash of seed, data set and name alone: adding a subject never moves another.
"""

import glob
import hashlib
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, Field, ValidationError, field_validator, model_validator

from cddpm.config import DataConfig, Frozen
from cddpm.config.loading import read_yaml
from cddpm.config.sections import Fraction, Name, Positive
from cddpm.data.finding import Finding
from cddpm.data.split import ScanRow, Split, existing_form, fill_modality, label_of
from cddpm.errors import ConfigError
from cddpm.labels import Labels
from cddpm.place import ON_DISK, address
from cddpm.text.likeness import did_you_mean


class Shares(Frozen):
    """Which part of the subjects is for what; together 1."""

    train: Fraction = 0.0
    val: Fraction = 0.0
    test: Fraction = 0.0

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if abs(self.train + self.val + self.test - 1) > 1e-6:
            raise ValueError(f"train {self.train:g} + val {self.val:g} + test {self.test:g}: they must sum to 1")
        return self


class SharedOut(Frozen):
    """How the subjects of one data set are shared out."""

    split: Shares
    folds: Positive | None = None
    """Validation moves on by its own share from fold to fold; empty: one fold for all."""
    seed: int = 0
    """Another seed, other splits."""

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.folds is not None and not self.split.train:
            raise ValueError(f"folds: {self.folds}: allowed only with a share for training")
        return self


class DatasetPattern(SharedOut):
    """One data set: ``{subject}`` in the image's pattern takes part of one file or folder name, ``*`` stands for the rest."""

    image: Annotated[str, Field(pattern=r"\{subject\}")]
    mask: Annotated[str, Field(pattern=r"\{subject\}")]
    segmentation: Annotated[str, Field(pattern=r"\{subject\}")] | None = None
    modality: Name | None = None
    """The only modality it has; empty: every one whose files are there."""
    label: Literal[0, 1] | None = None
    """0 healthy, 1 with anomaly; empty: 1 if it has a segmentation or is one of data.unhealthy."""
    lesion_labels: Annotated[tuple[Positive, ...], Field(min_length=1)] | None = None
    """Labels of its segmentations that are the anomaly; empty: as ``data.lesion_labels`` says."""
    ignored_labels: tuple[Positive, ...] | None = None
    """Labels that count neither way; empty: as ``data.ignored_labels`` says."""

    @field_validator("image", "mask", "segmentation")
    @classmethod
    def _on_disk(cls, pattern: str | None) -> str | None:
        if pattern is not None and address(pattern):
            raise ValueError(f"'{pattern}' is an address; allowed is {ON_DISK}")
        return pattern


class Patterns(Frozen):
    """The whole file."""

    datasets: Annotated[dict[Name, DatasetPattern], Field(min_length=1)]


def read_patterns(data: DataConfig, path: Path, root: Path) -> Iterator[ScanRow | Finding | str]:
    """Rows of the data sets in the YAML file ``path``, faults, and the name of every data set.

    Subjects are those that have an image of ``data.modality``, sorted by name.
    """
    try:
        patterns = Patterns.model_validate(read_yaml(path))
    except ConfigError as error:
        yield Finding("error", "table", str(path), str(error).removeprefix(f"{path}: "), "mend the file")
        return
    except ValidationError as error:
        yield from _explain(path, error)
        return
    for name, pattern in patterns.datasets.items():
        yield name
        if name in (data.healthy, *data.unhealthy) and pattern.modality in (None, data.modality):
            yield from _dataset_rows(data, name, pattern, path, root)


def share_out(dataset: str, subject: str, pattern: SharedOut) -> list[tuple[Split, int | None]]:
    """Every split and fold that a subject is in, from its hash alone.

    With folds: one place u in [0, 1) per subject; validation of fold k is the stretch [k v, (k + 1) v) of the circle, v the
    share of validation among what is not test. So folds have different validation subjects as long as k v < 1.
    """
    shares, folds = pattern.split, pattern.folds
    if _uniform(pattern.seed, "test", dataset, subject) < shares.test:
        return [("test", None)]
    validation = shares.val / (shares.train + shares.val)
    place = _uniform(pattern.seed, "fold", dataset, subject)

    def split(fold: int) -> Split:
        return "val" if (place - fold * validation) % 1.0 < validation else "train"

    return [(split(0), None)] if folds is None else [(split(fold), fold) for fold in range(folds)]


def _uniform(seed: int, *words: str) -> float:
    """A number in [0, 1) that looks random: the first 53 bits of the SHA-256 of the words."""
    digest = hashlib.sha256("/".join((str(seed), *words)).encode()).digest()
    return int.from_bytes(digest[:8], "big") // 2**11 / 2**53


def _dataset_rows(
    data: DataConfig, name: str, pattern: DatasetPattern, path: Path, root: Path
) -> Iterator[ScanRow | Finding]:
    source, modality = f"{path}:datasets.{name}", data.modality
    label = label_of(data, name, pattern.segmentation is not None) if pattern.label is None else pattern.label
    named = (pattern.lesion_labels, pattern.ignored_labels or ())
    labels = None if pattern.lesion_labels is None and pattern.ignored_labels is None else Labels(*named)
    images = files_by_subject(root, fill_modality(pattern.image, modality))
    if not images:
        found = f"no file below {root} matches {fill_modality(pattern.image, modality)}"
        yield Finding("error", "no-match", source, found, "paths are relative to data.data_dir or the table's folder")
    for subject, files in sorted(images.items()):
        faults: list[Finding] = []
        image = only_one(faults, source, subject, "image", files)
        mask = _resolve(faults, source, subject, "mask", pattern.mask, modality, root)
        anomaly = pattern.segmentation
        segmentation = _resolve(faults, source, subject, "segmentation", anomaly, modality, root) if anomaly else None
        yield from faults
        if image and mask and not faults:
            for split, fold in share_out(name, subject, pattern):
                yield ScanRow(name, subject, split, fold, label, None, image, mask, segmentation, source, labels)


def files_by_subject(root: Path, pattern: str) -> dict[str, list[Path]]:
    """Files (or folders) below ``root`` by the subject that their path names."""
    expression = _expression(pattern)
    found: defaultdict[str, list[Path]] = defaultdict(list)
    wild = "*".join(glob.escape(part) for part in re.split(r"\{subject\}|\*", pattern))
    for text in sorted(_matches(wild, root)):
        matched = expression.fullmatch(text)
        if matched:
            found[matched["subject"]].append(root / text)
    return found


def _expression(pattern: str) -> re.Pattern[str]:
    """``{subject}`` is as short as it can be, and the same at every place."""
    text, named = "", False
    for part in re.split(r"(\{subject\}|\*)", pattern):
        if part == "*":
            text += r"[^/]*"
        elif part == "{subject}":
            text += "(?P=subject)" if named else r"(?P<subject>[^/\s.][^/]*?)"
            named = True
        else:
            text += re.escape(part)
    return re.compile(text)


def _resolve(
    faults: list[Finding], source: str, subject: str, what: str, pattern: str, modality: str, root: Path
) -> Path | None:
    """The one file of a subject. A pattern without ``*`` names it, there or not; checking the data tells if it is missing."""
    filled = fill_modality(pattern, modality)
    if "*" not in filled:
        return existing_form(root / filled.replace("{subject}", subject))
    escaped = "*".join(glob.escape(part) for part in filled.replace("{subject}", subject).split("*"))
    return only_one(faults, source, subject, what, [root / text for text in sorted(_matches(escaped, root))])


def _matches(wild: str, root: Path) -> list[str]:
    return glob.glob(wild, root_dir=root)  # noqa: PTH207 - a Path's own glob refuses absolute patterns


def only_one(faults: list[Finding], source: str, subject: str, what: str, files: list[Path]) -> Path | None:
    """The one of ``files``; another number of them is a fault."""
    if len(files) == 1:
        return files[0]
    found = f"{len(files)} files for the {what} of {subject}"
    place, *others = map(str, files) if files else (source,)
    allowed = f"the pattern in {source} must match one file per subject"
    faults.append(Finding("error", "matches", place, found, allowed, tuple(others)))
    return None


def _explain(path: Path, error: ValidationError) -> Iterator[Finding]:
    for fault in error.errors(include_url=False):
        place = ".".join(str(part) for part in fault["loc"])
        if fault["type"] == "extra_forbidden":
            found, allowed = f"{place}: unknown setting", _allowed(fault["loc"])
        elif fault["type"] == "value_error":
            found, allowed = f"{place}: {fault['ctx']['error']}", "correct the table"
        else:
            found, allowed = f"{place}: {fault['msg']} (found {fault['input']!r:.60})", "correct the table"
        yield Finding("error", "table", str(path), found, allowed)


def _allowed(place: tuple[Any, ...]) -> str:
    section: type[BaseModel] = (Patterns, Patterns, DatasetPattern, Shares)[min(len(place), 4) - 1]
    if len(place) == 3:
        section = DatasetPattern
    fields = list(section.model_fields)
    return f"allowed are {', '.join(fields)}{did_you_mean(str(place[-1]), fields)}"
