"""A head on its way from its files to DATA_DIR: what every step takes and gives."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Figures = Mapping[str, float | int | str | bool | None]
"""What a step found, as plain JSON data: quality figures and counts by name, with the unit in the name."""


@dataclass(frozen=True)
class Grid:
    """Voxels in space: ``data`` (X, Y, Z), ``affine`` (4, 4) from voxel index to mm (RAS+)."""

    data: NDArray[Any]
    affine: NDArray[np.float64]


@dataclass(frozen=True)
class Head:
    """One person's scans at one time."""

    images: Mapping[str, Grid]
    """By modality, float32. The first one is the reference: others are brought to it before anything is brought to a template."""
    mask: Grid | None = None
    """Brain, uint8 {0, 1}."""
    segmentation: Grid | None = None
    """Labels of its file, uint8 or int16, 0 where there is none."""

    @property
    def reference(self) -> Grid:
        """The first image."""
        return next(iter(self.images.values()))


@dataclass(frozen=True)
class Step:
    """One step of preparation. ``name``, ``version`` and ``parameters`` (JSON data) decide its result for a given head."""

    name: str
    version: int
    parameters: Mapping[str, Any]
    run: Callable[[Head], tuple[Head, Figures]]


@dataclass(frozen=True)
class RawSubject:
    """What was found of one person: files that make a ``Head``, and what tables say of it."""

    dataset: str
    subject: str
    """Its name in DATA_DIR: unique in the data set, nothing of a person in it."""
    images: Mapping[str, Path]
    """By modality: a NIfTI file or a folder with one DICOM series. The first one is the reference."""
    mask: Path | None = None
    segmentation: Path | None = None
    segmentation_on: str = ""
    """Modality whose grid the segmentation should lie on; empty: the reference's."""
    label: int = 0
    """0 healthy, 1 with an anomaly."""
    age: float | None = None
