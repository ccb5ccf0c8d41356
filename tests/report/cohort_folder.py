"""A DATA_DIR of drawn balls with two tissues, of which some are odd: small enough to be looked at in seconds."""

from pathlib import Path

import numpy as np

from cddpm.data.volume import write_volume

SETTINGS = """name: looked
data:
  voxel_size_mm: 4.0
  volume_shape: [64, 64, 40]
  rescale_factor: 1
  smoothing_iterations: 1
  unhealthy: [Brats21]
"""
SHAPE, VOXEL_MM = (40, 48, 38), 4.0
AFFINE = np.diag([-VOXEL_MM, -VOXEL_MM, VOXEL_MM, 1.0])
SPLITS = {
    "IXI_train_fold0": ("IXI001", "IXI002", "IXI003", "IXI004", "IXI005"),
    "IXI_val_fold0": ("IXI006",),
    "IXI_test": ("IXI007",),
    "Brats21_val": ("BraTS2021_00000",),
    "Brats21_test": tuple(f"BraTS2021_{number:05d}" for number in range(1, 6)),
}
COLUMNS = "img_name,age,label,img_path,mask_path,seg_path"


def make(root: Path) -> Path:
    """The folder: IXI and Brats21 in T2. IXI002 is full of noise, the file of IXI003 is cut."""
    (root / "splits").mkdir(parents=True)
    for number, (name, subjects) in enumerate(SPLITS.items()):
        ill = name.startswith("Brats21")
        folder = "/Test/Brats21" if ill else "/Train/ixi"
        lines = []
        for index, subject in enumerate(subjects):
            _write(root / folder[1:], subject, ill, np.random.default_rng(100 * number + index))
            paths = [f"{folder}/{kind}/{subject}_{kind}.nii.gz" for kind in ("t1", "mask", "seg")]
            lines.append(f"{subject},40,{int(ill)},{paths[0]},{paths[1]},{paths[2] if ill else ''}")
        (root / "splits" / f"{name}.csv").write_text("\n".join([COLUMNS, *lines, ""]))
    cut = root / "Train/ixi/t2/IXI003_t2.nii.gz"
    cut.write_bytes(cut.read_bytes()[:2000])
    return root


def _write(folder: Path, subject: str, ill: bool, rng: np.random.Generator) -> None:
    x, y, z = np.meshgrid(*(np.arange(n) - n / 2 + 0.5 for n in SHAPE), indexing="ij")
    radius = np.sqrt((x / 16) ** 2 + (y / 20) ** 2 + (z / 16) ** 2) * (1 + rng.normal(0, 0.01))
    mask = (radius < 1).astype(np.uint8)
    noise = rng.normal(0, 0.4 if subject == "IXI002" else 0.03, SHAPE)
    scan = np.where(mask > 0, np.where(radius > 0.8, 900.0, 500.0) * np.abs(1 + noise), 0).astype(np.float32)
    kinds = {"t2": scan, "mask": mask}
    if ill:
        lesion = ((x - 6) ** 2 + y**2 + z**2 < 9) * mask
        kinds |= {"t2": np.where(lesion > 0, 1.6 * scan, scan).astype(np.float32), "seg": lesion}
    for kind, array in kinds.items():
        write_volume(folder / kind / f"{subject}_{kind}.nii.gz", array, AFFINE)
