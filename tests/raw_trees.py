"""Folders as the official downloads have them, of cartoon heads, and steps small enough for tests."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt

from cddpm.data.geometry import reorient
from cddpm.data.raw.head import Figures, Grid, Head, Step
from cddpm.data.volume import axis_codes

SHAPE, VOXEL_MM = (34, 38, 34), 5.0
AFFINE = np.array([[-VOXEL_MM, 0, 0, 80], [0, VOXEL_MM, 0, -90], [0, 0, VOXEL_MM, -80], [0, 0, 0, 1.0]])
Array = npt.NDArray[Any]


def head(seed: int, contrast: str) -> Array:
    """An egg of 1.4 litres on an empty background; its surface is dark in T1 and bright in T2."""
    radius = _radius()
    surface, depth = (60, 110) if contrast in ("t1", "flair") else (140, 80)
    image = np.where(radius > 0.85, surface, depth) + np.random.default_rng(seed).normal(0, 3, SHAPE)
    return np.where(radius < 1, image, 0).astype(np.float32)


def brain() -> Array:
    return (_radius() < 1).astype(np.uint8)


def lesion(labels: tuple[int, ...] = (1,)) -> Array:
    found = np.zeros(SHAPE, np.uint8)
    for number, label in enumerate(labels):
        found[14 + 3 * number : 17 + 3 * number, 18:22, 16:20] = label
    return found


def _radius() -> Array:
    axes = np.meshgrid(*(np.arange(n) - (n - 1) / 2 for n in SHAPE), indexing="ij")
    return np.sqrt(sum((axis * VOXEL_MM / half) ** 2 for axis, half in zip(axes, (65, 78, 65), strict=True)))


def save(path: Path, data: Array, affine: Array = AFFINE, header: Mapping[str, Any] | None = None) -> Path:
    """A NIfTI file as other programs write it, with fields of the header set."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nib.Nifti1Image(data, affine)
    for name, value in (header or {}).items():
        image.header[name] = value
    raw = image.to_filename
    raw(path) if path.name.endswith((".nii", ".nii.gz")) else path.write_bytes(image.to_bytes())
    return path


def ixi(root: Path, subjects: Mapping[str, tuple[str, ...]], flat: bool = False) -> Path:
    for seed, (name, contrasts) in enumerate(subjects.items()):
        for contrast in contrasts:
            folder = root if flat else root / f"IXI-{contrast.upper()}"
            save(folder / f"{name}-{contrast.upper()}.nii.gz", head(seed, contrast))
    return root


def brats(root: Path, numbers: tuple[int, ...], labels: tuple[int, ...] = (1, 2, 4)) -> Path:
    for number in numbers:
        name = f"BraTS2021_{number:05d}"
        for contrast in ("t1", "t1ce", "t2", "flair"):
            save(root / name / f"{name}_{contrast}.nii.gz", head(number, contrast.removesuffix("ce")).astype(np.int16))
        save(root / name / f"{name}_seg.nii.gz", lesion(labels))
    return root


def mslub(root: Path, numbers: tuple[int, ...], masks: bool = True) -> Path:
    for number in numbers:
        name = f"patient{number:02d}"
        for kind, contrast in (("T1W", "t1"), ("T2W", "t2"), ("FLAIR", "flair")):
            save(root / name / f"{name}_{kind}.nii.gz", head(number, contrast))
        save(root / name / f"{name}_consensus_gt.nii.gz", lesion())
        if masks:
            save(root / name / f"{name}_brainmask.nii.gz", brain())
    return root


def atlas(root: Path, names: tuple[str, ...], session: str = "ses-1") -> Path:
    for seed, name in enumerate(names):
        anat = root / name / session / "anat"
        start = f"{name}_{session}_space-MNI152NLin2009aSym"
        save(anat / f"{start}_T1w.nii.gz", head(seed, "t1"))
        save(anat / f"{start}_label-L_desc-T1lesion_mask.nii.gz", lesion())
    return root


def wmh(root: Path, sites: Mapping[str, tuple[int, ...]], folder: str = "pre") -> Path:
    for site, numbers in sites.items():
        for number in numbers:
            here = root / site / str(number)
            save(here / folder / "T1.nii.gz", head(number, "t1"))
            save(here / folder / "FLAIR.nii.gz", head(number, "flair"))
            save(here / "wmh.nii.gz", lesion((1, 2)))
    return root


def _turned(head: Head) -> tuple[Head, Figures]:
    def turn(grid: Grid) -> Grid:
        codes = axis_codes(grid.affine)
        data = np.ascontiguousarray(reorient(grid.data, codes, "RAS"))
        matrix = np.diag([*np.linalg.norm(grid.affine[:3, :3], axis=0), 1.0])
        corners = np.array([[i, j, k, 1] for i in (0, 1) for j in (0, 1) for k in (0, 1)]) * [
            *(np.array(grid.data.shape) - 1),
            1,
        ]
        matrix[:3, 3] = (corners @ grid.affine.T)[:, :3].min(axis=0)
        return Grid(data, matrix)

    parts = (None if one is None else turn(one) for one in (head.mask, head.segmentation))
    return Head({name: turn(grid) for name, grid in head.images.items()}, *parts), {"turned": True}


def _extracted(head: Head) -> tuple[Head, Figures]:
    mask = head.mask or Grid((head.reference.data > 20).astype(np.uint8), head.reference.affine)
    return Head(head.images, mask, head.segmentation), {"brain_voxels": int(mask.data.sum())}


REORIENT = Step("reorient", 1, {"orientation": "RAS"}, _turned)
EXTRACT = Step("extract", 1, {"above": 20}, _extracted)
STEPS = (REORIENT, EXTRACT)
