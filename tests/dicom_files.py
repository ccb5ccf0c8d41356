"""DICOM series written by SimpleITK, with every field of a patient set."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import SimpleITK as sitk  # noqa: N813

from cddpm.data.raw.dicom import own_locale

PATIENT = {
    "0010|0010": "Zzpatient^Quentin",
    "0010|0020": "MRN7788990011",
    "0010|0030": "19610417",
    "0008|0080": "Zzhospital Nord",
    "0008|0090": "Zzreferrer^Otto",
    "0008|0020": "20190823",
    "0008|0050": "ACC445566",
    "0010|4000": "Zzcomment of the ward",
}
ROOT = "1.2.826.0.1.3680043.2.1125.7"


@own_locale()
def write_series(
    folder: Path,
    data: npt.NDArray[np.float32],
    number: int = 3,
    said: str = "t1 mprage Zzpatient sag",
    orientation: Sequence[float] = (1, 0, 0, 0, 1, 0),
    spacing: tuple[float, float, float] = (2.0, 3.0, 4.0),
    skipped: Sequence[int] = (),
    shift_mm: float = 0.0,
) -> npt.NDArray[np.float64]:
    """Write ``data`` (X, Y, Z) slice by slice, in an order of file names that is not that of the slices; the affine in RAS+."""
    folder.mkdir(parents=True, exist_ok=True)
    across, down = np.array(orientation[:3]), np.array(orientation[3:])
    normal = np.cross(across, down)
    origin = np.array([-20.0, -30.0, 10.0])
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    for place in range(data.shape[2]):
        if place in skipped:
            continue
        image = sitk.GetImageFromArray(np.rint(data[:, :, place]).astype(np.int16).T[None])
        image.SetSpacing((spacing[0], spacing[1], spacing[2]))
        position = origin + normal * spacing[2] * place + across * shift_mm * place
        tags = {
            **PATIENT,
            "0008|0016": "1.2.840.10008.5.1.4.1.1.4",
            "0008|0018": f"{ROOT}.{number}.{place + 1}",
            "0020|000d": f"{ROOT}.1",
            "0020|000e": f"{ROOT}.{number}",
            "0020|0011": str(number),
            "0020|0013": str(place + 1),
            "0008|0060": "MR",
            "0008|103e": said,
            "0020|0032": "\\".join(f"{x:.6f}" for x in position),
            "0020|0037": "\\".join(f"{x:.6f}" for x in orientation),
            "0018|0050": f"{spacing[2]:.3f}",
        }
        for tag, value in tags.items():
            image.SetMetaData(tag, value)
        name = (place * 7919) % 1000
        writer.SetFileName(str(folder / f"IM{name:04d}_{number}.dcm"))
        writer.Execute(image)
    affine = np.eye(4)
    affine[:3, 0], affine[:3, 1], affine[:3, 2] = across * spacing[0], down * spacing[1], normal * spacing[2]
    affine[:3, 3] = origin
    return np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine
