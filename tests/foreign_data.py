"""A DATA_DIR that the phantom command did not make: other shapes, voxel sizes, axes, types and endings in one cohort."""

import csv
from pathlib import Path

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from cddpm.data.phantom.subject import Dataset, Subject, draw
from cddpm.data.volume import write_volume

Array = npt.NDArray[np.generic]
COLUMNS = ["", "img_name", "age", "label", "img_path", "mask_path", "seg_path"]
SPLITS: dict[str, tuple[Dataset, list[int]]] = {
    "IXI_train_fold0": ("IXI", [0, 1, 2, 3]),
    "IXI_val_fold0": ("IXI", [4]),
    "IXI_test": ("IXI", [5]),
    "Brats21_val": ("Brats21", [0, 1]),
    "Brats21_test": ("Brats21", [2, 3]),
}


def make(root: Path) -> Path:
    """Write the folder with one more ``Data/`` level and return ``root``."""
    data = root / "Data"
    (data / "splits").mkdir(parents=True)
    for dataset, indices in SPLITS.values():
        for index in indices:
            _write(data, Subject(7, dataset, index, 2.0))
    for name, (dataset, indices) in SPLITS.items():
        _write_split(data / "splits" / f"{name}.csv", [Subject(7, dataset, i, 2.0) for i in indices])
    names = [Subject(7, "IXI", i, 2.0).name for i in range(6)]
    (data / "splits" / "avail_t2.csv").write_text(",0\n" + "".join(f"{i},{n}_t2.nii.gz\n" for i, n in enumerate(names)))
    return root


def _folder(dataset: str) -> str:
    return "/Train/ixi" if dataset == "IXI" else f"/Test/{dataset}"


def _write(data: Path, subject: Subject) -> None:
    drawing = draw(subject, ("t2",))
    arrays: dict[str, Array] = {"t2": drawing.scans["t2"], "mask": drawing.mask}
    if drawing.segmentation is not None:
        arrays["seg"] = drawing.segmentation
    for kind, array in arrays.items():
        order = 1 if kind == "t2" else 0
        changed, affine = _otherwise(array, subject.affine, subject.index, order)
        as_int16 = kind == "t2" and subject.index % 2
        ending = ".nii" if subject.index % 3 == 1 else ".nii.gz"
        path = data / _folder(subject.dataset).lstrip("/") / kind / f"{subject.name}_{kind}{ending}"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_volume(path, np.round(changed).astype(np.int16) if as_int16 else changed, affine)


def _otherwise(array: Array, affine: Array, index: int, order: int) -> tuple[Array, Array]:
    """The same head on another grid: flipped, with exchanged axes, or with other voxels, by ``index``."""
    affine = np.array(affine, dtype=float)
    if index % 4 == 1:
        affine[:3, 3] += affine[:3, 0] * (array.shape[0] - 1)
        affine[:3, 0] *= -1
        return array[::-1].copy(), affine
    if index % 4 == 2:
        return np.swapaxes(array, 0, 2).copy(), affine[:, [2, 1, 0, 3]]
    if index % 4 == 3:
        zoomed = ndimage.zoom(array, (1.25, 1.25, 1.0), order=order, grid_mode=True, mode="nearest")
        affine[:3, 3] += affine[:3, 0] * (0.8 - 1) / 2 + affine[:3, 1] * (0.8 - 1) / 2
        affine[:3, :2] *= 0.8
        return zoomed, affine
    return array, affine


def _write_split(path: Path, subjects: list[Subject]) -> None:
    with path.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(COLUMNS)
        for number, subject in enumerate(subjects):
            folder, healthy = _folder(subject.dataset), subject.dataset == "IXI"
            image, mask = f"{folder}/t1/{subject.name}_t1.nii.gz", f"{folder}/mask/{subject.name}_mask.nii.gz"
            segmentation = "" if healthy else f"{folder}/seg/{subject.name}_seg.nii.gz"
            writer.writerow([number, subject.name, "40", int(not healthy), image, mask, segmentation])
