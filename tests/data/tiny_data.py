"""A DATA_DIR of tiny scans in the published layout, to break in every way."""

import csv
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from cddpm.config import DataConfig
from cddpm.data.volume import write_volume

AFFINE = np.diag([-10.0, -10.0, 10.0, 1.0])
"""Voxels so large that the ball is of a brain's size."""
SHAPE = (16, 18, 10)
IXI_COLUMNS = ["", "img_name", "SEX_ID (1=m, 2=f)", "age", "label", "img_path", "mask_path", "seg_path", "Agegroup"]
PATHS = {"IXI": "/Train/ixi"}


def ball(seed: int) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    """Image, mask and segmentation of one subject."""
    axes = np.meshgrid(*(np.linspace(-1, 1, n) for n in SHAPE), indexing="ij")
    mask = sum(a**2 for a in axes) < 0.8
    image = np.where(mask, np.random.default_rng(seed).uniform(100, 900, SHAPE), 0).astype(np.float32)
    segmentation = mask & (axes[0] > 0.2) & (axes[1] > 0.1)
    return image, mask.astype(np.uint8), segmentation.astype(np.uint8)


@dataclass(frozen=True)
class TinyData:
    """The folder, the settings that fit it, and ways to break it."""

    root: Path
    config: DataConfig

    def split(self, name: str) -> Path:
        return self.root / "splits" / f"{name}.csv"

    def rows(self, name: str) -> list[dict[str, str]]:
        with self.split(name).open(newline="") as stream:
            return list(csv.DictReader(stream))

    def write_rows(self, name: str, rows: list[dict[str, str]]) -> None:
        with self.split(name).open("w", newline="") as stream:
            writer = csv.DictWriter(stream, list(rows[0]) if rows else IXI_COLUMNS)
            writer.writeheader()
            writer.writerows(rows)

    def file(self, dataset: str, subject: str, kind: str) -> Path:
        return self.root / PATHS.get(dataset, f"/Test/{dataset}").lstrip("/") / kind / f"{subject}_{kind}.nii.gz"

    def add_subject(self, dataset: str, subject: str, seed: int) -> None:
        image, mask, segmentation = ball(seed)
        write_volume(self.file(dataset, subject, "t2"), image, AFFINE)
        write_volume(self.file(dataset, subject, "mask"), mask, AFFINE)
        if dataset != "IXI":
            write_volume(self.file(dataset, subject, "seg"), segmentation, AFFINE)


def row(dataset: str, subject: str) -> dict[str, str]:
    """One row in the form of the published files, written for T1."""
    folder = PATHS.get(dataset, f"/Test/{dataset}")
    healthy = dataset == "IXI"
    return {
        "": "7",
        "img_name": f"{subject}_t1.nii.gz" if healthy else subject,
        "SEX_ID (1=m, 2=f)": "1",
        "age": "38.9" if healthy else "",
        "label": "0" if healthy else "1",
        "img_path": f"{folder}/t1/{subject}_t1.nii.gz",
        "mask_path": f"{folder}/mask/{subject}_mask.nii.gz",
        "seg_path": "" if healthy else f"{folder}/seg/{subject}_seg.nii.gz",
        "Agegroup": "1.0",
    }


SPLITS = {
    "IXI_train_fold0": ["IXI001-HH-1", "IXI002-HH-2", "IXI003-HH-3"],
    "IXI_val_fold0": ["IXI004-HH-4"],
    "IXI_train_fold1": ["IXI002-HH-2", "IXI003-HH-3", "IXI004-HH-4"],
    "IXI_val_fold1": ["IXI001-HH-1"],
    "IXI_test": ["IXI005-HH-5", "IXI006-HH-6"],
    "Brats21_val": ["BraTS2021_00001"],
    "Brats21_test": ["BraTS2021_00002", "BraTS2021_00003"],
}


def make_tiny_data(root: Path) -> TinyData:
    """A clean folder of 9 scans."""
    config = DataConfig(unhealthy=("Brats21",), voxel_size_mm=10, volume_shape=(16, 16, 10))
    data = TinyData(root, config)
    (data.root / "splits").mkdir(parents=True)
    for name, subjects in SPLITS.items():
        data.write_rows(name, [row(name.split("_")[0], s) for s in subjects])
    everyone = sorted({(name.split("_")[0], s) for name, subjects in SPLITS.items() for s in subjects})
    for seed, (dataset, subject) in enumerate(everyone):
        data.add_subject(dataset, subject, seed)
    names = [s for d, s in everyone if d == "IXI"]
    data.split("avail_t2").write_text(",0\n" + "".join(f"{i},{s}_t2.nii.gz\n" for i, s in enumerate(names)))
    return data
