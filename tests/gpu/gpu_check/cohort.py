"""Slice stores of the phantom, drawn in memory straight on the working grid, so that no reader of scans is needed.

Preparation is left out but for cropping and intensities: what is measured here does not depend on it. Letters: S slices of a
volume, H and W their rows and columns.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cddpm import artifact
from cddpm.data.geometry import Geometry, crop_window, take
from cddpm.data.phantom.subject import Subject, draw
from cddpm.data.slices import KIND, write_store

HEALTHY, UNHEALTHY, MODALITY = "IXI", "Brats21", "t2"


@dataclass(frozen=True)
class Size:
    """A cohort's working grid (H, W, S), the voxels that it is drawn with, and its number of volumes."""

    name: str
    shape: tuple[int, int, int]
    voxel_mm: float
    train: int
    validation: int
    unhealthy: int


FULL = Size("full", (96, 96, 50), 2.0, 3, 1, 2)
"""Slices as the published data have them; 11 MB."""
HALF = Size("half", (48, 48, 25), 4.0, 24, 4, 4)
"""Slices as those of the quickstart; 7 MB."""
TINY = Size("tiny", (32, 32, 8), 6.0, 3, 1, 1)


def made(size: Size, scratch: Path) -> Path:
    """The store of ``size`` below ``scratch``, drawn unless it is there."""
    path = scratch / "store" / size.name
    artifact.ensure(path, KIND, size.name, {}, lambda folder: _fill(folder, size))
    return path


def _fill(folder: Path, size: Size) -> None:
    places = [
        *[(HEALTHY, "train")] * size.train,
        *[(HEALTHY, "val")] * size.validation,
        *[(UNHEALTHY, "val")] * size.unhealthy,
    ]
    cohorts = [{"dataset": d, "split": s, "fold": None, "volume": v} for v, (d, s) in enumerate(places)]
    write_store(folder, _volumes(size, [dataset for dataset, _ in places]), cohorts)


def _cropped(array: Any, shape: tuple[int, int, int]) -> Any:
    x, y, z = (there.start - here.start for there, here in map(crop_window, array.shape, shape))
    return take(array, (x, y, z), shape)


def _volumes(size: Size, datasets: list[Any]) -> Iterator[dict[str, Any]]:
    for index, dataset in enumerate(datasets):
        subject = Subject(0, dataset, index, size.voxel_mm)
        drawing = draw(subject, (MODALITY,))
        mask = _cropped(drawing.mask, size.shape)
        lesion = np.zeros_like(drawing.mask) if drawing.segmentation is None else drawing.segmentation
        image = _scaled(_cropped(drawing.scans[MODALITY], size.shape), mask)
        arrays = {"image": image, "mask": mask, "segmentation": _cropped(lesion, size.shape)}
        yield {
            **{name: np.ascontiguousarray(array.transpose(2, 0, 1)) for name, array in arrays.items()},
            "dataset": dataset,
            "subject": subject.name,
            "modality": MODALITY,
            "label": int(dataset != HEALTHY),
            "age": None,
            "geometry": json.dumps(_geometry(size).to_dict()),
            "digest": f"{index:064d}",
        }


def _scaled(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """float16 with the 1st and 99th percentile inside of the brain at 0 and 1."""
    low, high = np.percentile(image[mask > 0], (1, 99))
    return ((np.clip(image, low, high) - low) / (high - low)).astype(np.float16)


def _geometry(size: Size) -> Geometry:
    affine = tuple(tuple(float(n) for n in row) for row in np.diag([*(size.voxel_mm,) * 3, 1.0]))
    voxel = (size.voxel_mm,) * 3
    return Geometry(size.shape, affine, "LPS", "LPS", voxel, (1.0,) * 3, size.shape, size.shape, 1.0, size.shape)
