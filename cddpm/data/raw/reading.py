"""A subject's files as a head, by the readers that mend or refuse odd ones; and whether its face was taken away."""

from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Literal

import numpy as np

from cddpm.artifact import file_digest
from cddpm.data import volume
from cddpm.data.afar import FOLDER, present
from cddpm.data.geometry import reorient
from cddpm.data.prepare import aligned
from cddpm.data.raw import dicom
from cddpm.data.raw.head import Grid, Head, RawSubject
from cddpm.data.volume import Volume, VolumeFileError, axis_codes
from cddpm.errors import VolumeError

Defaced = Literal["yes", "brain only", "unknown"]
ERASED, NOISY = 0.5, 0.1
"""Of the block before and below the brain so much is of one value, and of that behind and above it only so little."""
OUTSIDE = 0.02


@dataclass(frozen=True)
class Reading:
    """A head and what reading it had to mend, as sentences that name no path."""

    head: Head
    notes: tuple[str, ...]
    defaced: Defaced


def source_digest(path: Path) -> str:
    """SHA-256 of a file's bytes; of a folder of all files in it, whatever they are called."""
    if path.is_dir():
        digests = sorted(file_digest(file) for file in path.iterdir() if file.is_file())
        return sha256("\n".join(digests).encode()).hexdigest()
    return file_digest(present(path))


def read_head(subject: RawSubject, series: Mapping[str, str]) -> Reading:
    """Read the files of ``subject``. ``series``: the number or UID of a DICOM series by modality, under an empty name for all.

    Raises ``VolumeError`` for a file that cannot be used.
    """
    notes: list[str] = []
    images: dict[str, Volume] = {}
    for modality, path in subject.images.items():
        images[modality] = _image(path, series.get(modality, series.get("")))
        notes += [f"{modality}: {note}" for note in images[modality].notes]
    reference = next(iter(images.values()))
    mask = _on(reference, volume.read_mask(subject.mask), "mask", notes) if subject.mask else None
    segmentation = None
    if subject.segmentation:
        base = images.get(subject.segmentation_on, reference)
        segmentation = _on(base, volume.read_labels(subject.segmentation), "segmentation", notes)
    head = Head({modality: Grid(one.data, one.affine) for modality, one in images.items()}, mask, segmentation)
    return Reading(head, tuple(notes), defaced(head))


def _image(path: Path, series: str | None) -> Volume:
    if not dicom.is_dicom(path):
        return volume.read_image(path)
    if FOLDER in path.parts:
        raise VolumeError(
            f"{path}: DICOM folders are read from disks only; copy it to one, or convert it with dcm2niix"
        )
    grid = dicom.read_series(path, series)
    if grid.data.min() == grid.data.max():
        raise VolumeFileError(str(path), "constant", "all voxels have one value", "export this series again")
    return Volume(grid.data, grid.affine, path)


def _on(image: Volume, label: Volume, what: str, notes: list[str]) -> Grid:
    """A mask or segmentation with the axes of its image; on another grid it stays there, which is told."""
    notes += [f"{what}: {note}" for note in label.notes]
    if label.data.shape == image.data.shape or sorted(label.data.shape) == sorted(image.data.shape):
        turned = aligned(image, label)  # as many voxels at other places are a wrong header, not another grid
        if turned is not label:
            notes.append(f"{what}: stored as {axis_codes(label.affine)}, its scan otherwise; turned to the scan's axes")
        return Grid(turned.data, turned.affine)
    notes.append(f"{what}: lies on another grid than its scan; placed by its header")
    return Grid(label.data, label.affine)


def defaced(head: Head) -> Defaced:
    """Whether a face can be seen, as far as simple signs tell: ``unknown`` is most often the answer.

    ``brain only``: a brain mask came with the scan, and outside of it next to nothing is brighter than a tenth of the brain.
    ``yes``: the block before and below the middle of the field is mostly of one value, while the opposite one has the scanner's
    noise: something was erased there.
    """
    reference = head.reference
    if head.mask is not None and head.mask.data.shape == reference.data.shape:
        brain = head.mask.data > 0
        level = 0.1 * float(np.median(np.abs(reference.data[brain])))
        bright = np.count_nonzero((np.abs(reference.data) > level) & ~brain)
        if bright <= OUTSIDE * np.count_nonzero(brain):
            return "brain only"
    data = reorient(reference.data, axis_codes(reference.affine), "RAS")
    x, y, z = data.shape
    middle = slice(x // 3, max(x // 3 + 1, 2 * x // 3))
    front, back = data[middle, 2 * y // 3 :, : z // 2], data[middle, : y // 3 + 1, z - z // 2 :]
    return "yes" if _constant(front) > ERASED and _constant(back) < NOISY else "unknown"


def _constant(block: np.ndarray) -> float:
    """Part of the voxels that have the darkest value."""
    return float(np.mean(block == block.min())) if block.size else 0.0
