"""NIfTI files: one volume in, one volume out. The only module that knows nibabel.

Mends, done silently or told in ``Volume.notes``; everything else that is odd is a ``VolumeFileError``:

===================================================  =======================================================
in the file                                          here
===================================================  =======================================================
int, uint16, float64, big-endian, NIfTI-2            read as float32 (masks: uint8)
``scl_slope`` 0                                      slope 1, intercept 0 (NIfTI-1 standard)
trailing axes of length 1                            dropped
mask {0, n}                                           1 where the value is above 0
qform and sform disagree                             sform is used, note
neither qform nor sform                              voxel size from ``pixdim``, orientation assumed, note
axes oblique to the scanner's by more than 5 degrees  nearest axis is taken, note
axes up to 5 degrees off the right angle (shear)      taken as right angles, note above 1 degree
``.nii.gz`` that is not compressed, or the reverse   read as what it is, note
bytes behind the last voxel                          left alone, note
``xyzt_units`` metres or micrometres                 brought to mm, note; a result is written in the scan's own unit
``xyzt_units`` unknown, or none of a length          mm; the latter with a note
fields that nibabel corrects                         as it does, note
header extensions                                    left out
NaN or infinite voxels outside of the brain          background (masks, segmentations: 0), note; ``Volume.blank``
===================================================  =======================================================
"""

import gzip
import hashlib
import io
import logging
import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import nibabel as nib
import numpy as np
import numpy.typing as npt
from nibabel.affines import obliquity
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError
from nibabel.wrapstruct import WrapStructError
from scipy import ndimage

from cddpm import artifact
from cddpm.data import volume_file
from cddpm.data.volume_file import VolumeFileError, fault, line
from cddpm.labels import Labels
from cddpm.text.numbers import extent

__all__ = [
    "Description",
    "Volume",
    "VolumeFileError",
    "describe",
    "read_image",
    "read_map",
    "read_mask",
    "write_volume",
]

IGNORED = 2
"""In what ``read_segmentation`` gives: voxels that count neither way."""
MOST_LABEL = 32767
OBLIQUE_DEGREES = 5.0
SHEAR_DEGREES, SHEAR_NOTED_DEGREES = 5.0, 1.0
_ORDERS: tuple[Literal["little", "big"], ...] = ("little", "big")
_NIBABEL_ERRORS = (ImageFileError, HeaderDataError, WrapStructError, ValueError, KeyError, OSError, OverflowError)
_HEADER_SIZES = frozenset(size.to_bytes(4, order) for size in (348, 540) for order in _ORDERS)
MOST_VOXELS = 1 << 26
"""More voxels than 512 x 512 x 256 are no scan of one brain."""
_UNITS = {1: ("metres", 1e3), 2: ("millimetres", 1.0), 3: ("micrometres", 1e-3)}
_MAGIC = ((nib.Nifti1Image, 344, b"n+1\0"), (nib.Nifti2Image, 4, b"n+2\0"))
_Fill = Callable[[npt.NDArray[np.float32], npt.NDArray[np.bool_]], float]
_WRITABLE: dict[np.dtype[Any], np.dtype[Any]] = {
    np.dtype(bool): np.dtype(np.uint8),
    np.dtype(np.float16): np.dtype(np.float32),
}


@dataclass(frozen=True)
class Volume:
    """A volume as it lies in its file. ``data`` (X, Y, Z), ``affine`` (4, 4) from voxel index to mm (RAS+)."""

    data: npt.NDArray[Any]
    affine: npt.NDArray[np.float64]
    path: Path
    notes: tuple[str, ...] = ()
    """Mends that a person should know of."""
    header: Any = field(default=None, repr=False, compare=False)
    """The file's header, to write a result that looks like it (``write_volume``)."""
    blank: npt.NDArray[np.bool_] | None = field(default=None, repr=False, compare=False)
    """Voxels (X, Y, Z) that are NaN or infinite in the file, if any: background, unless a brain mask holds one of them."""
    labels: tuple[int, ...] = ()
    """Of a segmentation: the labels above 0 in its file."""

    @property
    def voxel_size_mm(self) -> tuple[float, float, float]:
        """Distance of neighbouring voxels along each array axis."""
        return voxel_size_mm(self.affine)


@dataclass(frozen=True)
class Description:
    """What a file's header says of it."""

    path: Path
    shape: tuple[int, ...]
    voxel_size_mm: tuple[float, float, float]
    orientation: str
    dtype: str


def read_image(path: Path) -> Volume:
    """Read an image as float32 (X, Y, Z). Raises ``VolumeFileError`` when it cannot be used (also all zero, constant)."""
    volume = _read(path, volume_file.background)
    low, high = float(volume.data.min()), float(volume.data.max())
    if low == high:
        code, found = ("all-zero", "all voxels are 0") if low == 0 else ("constant", f"all voxels are {low:g}")
        fault(path, code, found, "an image needs contrast; export this scan again")
    return replace(volume, notes=(*volume.notes, *_number_notes(volume, low, high)))


def read_mask(path: Path) -> Volume:
    """Read a brain mask as uint8 {0, 1} (X, Y, Z); {0, n} is mended. Raises ``VolumeFileError`` when empty or not a mask."""
    volume = _read(path, lambda *_: 0.0)
    inside = volume.data[volume.data != 0]
    if not inside.size:
        fault(path, "empty-mask", "no voxel is inside the mask", "a brain mask needs voxels above 0; make it again")
    low, high = float(inside.min()), float(inside.max())
    if low <= 0 or high - low > 1e-3 * high:
        found = f"values from {min(low, 0.0):g} to {high:g}, not two"
        fault(path, "not-binary", found, "a brain mask holds 0 and one value above it; is this the image?")
    brain = volume.data > 0
    if volume.blank is not None and (ndimage.binary_fill_holes(brain) & volume.blank).any():
        fault(
            path,
            "non-finite",
            "NaN or infinite voxels inside of the mask",
            "a brain mask holds 0 and one value above it",
        )
    return Volume(brain.astype(np.uint8), volume.affine, volume.path, volume.notes, volume.header, volume.blank)


def read_segmentation(path: Path, labels: Labels = Labels()) -> Volume:  # noqa: B008 - frozen
    """Read a segmentation as uint8 (X, Y, Z): 1 for lesion, ``IGNORED`` for what counts neither way, else 0; may be empty.

    ``labels`` says which numbers are which. Raises ``VolumeFileError``, also for a label that is neither.
    """
    volume = read_labels(path)
    unknown = [label for label in volume.labels if labels.meaning(label) == "unknown"]
    if unknown:
        told = f"label {', '.join(map(str, unknown))}, which is neither lesion nor ignored ({labels})"
        fault(path, "labels", told, "name it in data.lesion_labels or data.ignored_labels, or correct the file")
    coded = (volume.data > 0).astype(np.uint8)
    coded[np.isin(volume.data, [label for label in volume.labels if labels.meaning(label) == "ignored"])] = IGNORED
    return replace(volume, data=coded)


def read_labels(path: Path) -> Volume:
    """Read a segmentation with the labels of its file, int16 (X, Y, Z); may be empty. Raises ``VolumeFileError``."""
    volume = _read(path, lambda *_: 0.0)
    rounded = np.rint(volume.data)
    if rounded.min() < 0 or float(np.abs(volume.data - rounded).max()) > 1e-3 or rounded.max() > MOST_LABEL:
        found = f"values from {volume.data.min():g} to {volume.data.max():g} that are not labels"
        fault(path, "not-binary", found, "a segmentation holds whole numbers from 0; threshold it first")
    there = tuple(int(label) for label in np.unique(rounded[rounded > 0]))
    return replace(volume, data=rounded.astype(np.int16), labels=there)


def read_map(path: Path) -> Volume:
    """Read any finite numbers as float32 (X, Y, Z): an anomaly map may be 0 throughout. Raises ``VolumeFileError``."""
    return _read(path)


def describe(path: Path) -> Description:
    """Read the header only. Raises ``VolumeFileError`` when it is no NIfTI header; voxels are not looked at."""
    header, _ = _header(path, volume_file.head(path, volume_file.read_bytes(path, volume_file.HEAD_BYTES)))
    affine = _affine(path, header)
    shape = tuple(int(n) for n in header.get_data_shape())
    return Description(path, shape, voxel_size_mm(affine), axis_codes(affine), str(header.get_data_dtype()))


def write_volume(
    path: Path,
    data: npt.NDArray[Any],
    affine: npt.NDArray[Any],
    dtype: npt.DTypeLike | None = None,
    header: Any = None,
) -> None:
    """Write ``data`` (X, Y, Z) with ``affine`` (4, 4; voxel index to mm, RAS+) atomically as ``.nii`` or ``.nii.gz``.

    ``header`` (of a ``Volume``) is kept but for its texts, which may tell of a person: NIfTI-1 or -2, units, form codes. Equal
    arguments give equal bytes (no time, no name in gzip's). Parent folders are made. Raises ``StorageError``.
    """
    wanted: np.dtype[Any] = np.dtype(data.dtype if dtype is None else dtype)
    kind = _WRITABLE.get(wanted, wanted)
    own_unit = np.asarray(affine, dtype=np.float64) if header is None else _scaled(affine, 1 / unit(header)[1])
    image_class = nib.Nifti2Image if isinstance(header, nib.Nifti2Header) else nib.Nifti1Image
    image = image_class(np.asarray(data, dtype=kind), own_unit, header, dtype=kind)
    if header is None:
        image.header.set_xyzt_units("mm")
        image.set_sform(affine, code=1)
        image.set_qform(affine, code=1)
    image.header["cal_min"] = image.header["cal_max"] = 0  # a display window of other intensities would hide the result
    volume_file.clear_texts(image.header)
    raw = image.to_bytes()
    artifact.write_bytes(path, gzip.compress(raw, compresslevel=3, mtime=0) if path.suffix == ".gz" else raw)


def voxel_size_mm(affine: npt.NDArray[np.float64]) -> tuple[float, float, float]:
    """Lengths of the affine's three axes."""
    x, y, z = (float(n) for n in np.linalg.norm(affine[:3, :3], axis=0))
    return x, y, z


def axis_codes(affine: npt.NDArray[np.float64]) -> str:
    """Where each array axis points, e.g. ``LPS``: to the patient's left, posterior, superior (nearest axis if oblique)."""
    return "".join(nib.aff2axcodes(affine))


def voxel_digest(volume: Volume) -> str:
    """SHA-256 of the voxel values and shape: equal for the same scan under another name, compression or header."""
    digest = hashlib.sha256(repr(volume.data.shape).encode())
    digest.update(np.ascontiguousarray(volume.data).data)
    return digest.hexdigest()


def require_same_grid(volume: Volume, other: Volume) -> None:
    """Raises ``VolumeFileError`` (about ``other``) when two volumes differ in shape or by over a quarter voxel in space."""
    if other.data.shape != volume.data.shape:
        found = f"shape {extent(other.data.shape)}, but {volume.path.name} has {extent(volume.data.shape)}"
        fault(other.path, "shape", found, "both must lie on one grid; resample this file to the image")
    apart = affine_distance_mm(volume.affine, other.affine, volume.data.shape)
    if apart > 0.25 * min(volume.voxel_size_mm):
        found = f"its affine places voxels up to {apart:.2f} mm away from those of {volume.path.name}"
        fault(other.path, "affine", found, "both must lie on one grid; correct the header or resample this file")


def affine_distance_mm(one: npt.NDArray[np.float64], other: npt.NDArray[np.float64], shape: tuple[int, ...]) -> float:
    """Largest distance over the eight corners of ``shape`` between where two affines place them."""
    corners = np.array([[i, j, k, 1] for i in (0, shape[0] - 1) for j in (0, shape[1] - 1) for k in (0, shape[2] - 1)])
    return float(np.linalg.norm(corners @ (one - other).T[:, :3], axis=1).max())


def _read(path: Path, fill: _Fill | None = None) -> Volume:
    raw = volume_file.read_bytes(path)
    header, corrected = _header(path, volume_file.head(path, raw))
    end = _end(header)
    if not volume_file.is_packed(raw):
        _check_length(path, raw, end)  # before anything of the size that a damaged header claims is allocated
    _check_dtype(path, header)
    shape = _spatial_shape(path, header.get_data_shape())
    affine = _affine(path, header)
    content = volume_file.unpacked(path, raw, end)
    _check_length(path, content, end)
    _check_offset(path, content, header, end)
    data = _voxels(path, content, header, shape)
    notes = (*corrected, *_suffix_notes(path, volume_file.is_packed(raw)), *_geometry_notes(header, affine, shape))
    if len(content) > end:
        notes += (f"{len(content) - end} bytes follow the last voxel that the header announces; they are left alone",)
    blank = ~np.isfinite(data)
    if not blank.any():
        return Volume(data, affine, path, notes, header)
    if fill is None or blank.all():
        volume_file.refuse(path, blank)
    value = data[blank] = np.float32(fill(data, blank))
    notes += (f"{np.count_nonzero(blank)} voxels are NaN or infinite; taken for background ({value:g})",)
    return Volume(data, affine, path, notes, header, blank)


def _header(path: Path, start: bytes) -> tuple[Any, tuple[str, ...]]:
    """The header, as nibabel corrects it, and its corrections as notes."""
    kind = next((k for k, at, magic in _MAGIC if start[at : at + 4] == magic and start[:4] in _HEADER_SIZES), None)
    if kind is None:
        found = f"not a single-file NIfTI (starts with {start[:4].hex(' ')}, magic {start[344:348]!r})"
        fault(path, "not-nifti", found, "only .nii and .nii.gz are read; convert it first")
    corrections = volume_file.Corrections()
    try:
        header = kind.header_class(start[: kind.header_class.sizeof_hdr], check=False)
        header.check_fix(corrections.logger, logging.ERROR)
        _end(header), header.get_slope_inter()
    except _NIBABEL_ERRORS as error:
        fault(path, "not-nifti", f"damaged NIfTI header ({line(error)})", "convert or copy the file again")
    return header, tuple(f"its header was corrected: {text}" for text in corrections.found)


def _check_length(path: Path, content: bytes, end: int) -> None:
    if len(content) < end:
        found = f"{len(content)} bytes, but its header announces {end}"
        fault(path, "truncated", found, "copy the file again from its source")


def _voxels(path: Path, content: bytes, header: Any, shape: tuple[int, int, int]) -> npt.NDArray[np.float32]:
    try:
        with np.errstate(all="ignore"):  # what becomes infinite is a fault of its own
            stored = nib.arrayproxy.ArrayProxy(io.BytesIO(content), header)
            return np.ascontiguousarray(np.asarray(stored, dtype=np.float32).reshape(shape))
    except _NIBABEL_ERRORS as error:
        fault(path, "truncated", f"voxels cannot be read ({line(error)})", "copy the file again from its source")


def _end(header: Any) -> int:
    """Byte behind the last voxel, as the header has it."""
    voxels = int(np.prod(header.get_data_shape(), dtype=np.float64))
    return int(header.get_data_offset()) + voxels * int(header.get_data_dtype().itemsize)


def _check_offset(path: Path, raw: bytes, header: Any, end: int) -> None:
    """Voxels begin behind the header and its extensions; read from elsewhere they are shifted."""
    least, offset = int(header.single_vox_offset), float(header["vox_offset"])
    if offset < least or offset != int(offset):
        found = f"its header says that voxels begin at byte {offset:g} (vox_offset), inside of the header itself"
        fault(path, "offset", found, f"{least} or more is needed; convert it again or correct the header")
    extended = raw[least - 4] != 0 and end < len(raw)
    if extended and least + int.from_bytes(raw[least : least + 4], _ORDERS[header.endianness == ">"]) > offset:
        found = f"its header says that voxels begin at byte {offset:g} (vox_offset), inside of a header extension"
        fault(path, "offset", found, "they begin behind the extensions; convert it again or correct the header")


def unit(header: Any) -> tuple[str, float]:
    """(name, mm in it) of the unit of a header's lengths; one that is unknown is taken for a millimetre."""
    return _UNITS.get(int(header["xyzt_units"]) & 7, ("an unknown unit", 1.0))


def _affine(path: Path, header: Any) -> npt.NDArray[np.float64]:
    """Voxel index to mm, checked."""
    try:
        affine = _scaled(header.get_best_affine(), unit(header)[1])
    except _NIBABEL_ERRORS as error:
        fault(path, "affine", f"qform cannot be read ({line(error)})", "correct the header")
    _check_affine(path, affine)
    return affine


def _scaled(affine: npt.ArrayLike, factor: float) -> npt.NDArray[np.float64]:
    """The affine to lengths of another unit."""
    return np.asarray(affine, dtype=np.float64) * np.array([[factor], [factor], [factor], [1.0]])


def _check_dtype(path: Path, header: Any) -> None:
    dtype = header.get_data_dtype()
    if dtype.kind not in "iuf":
        found = f"voxels of type {dtype if dtype.names is None else 'RGB'}"
        fault(path, "dtype", found, "real numbers are needed; export magnitude values")


def _spatial_shape(path: Path, shape: tuple[int, ...]) -> tuple[int, int, int]:
    kept = shape[:3] + tuple(n for n in shape[3:] if n != 1)
    if len(kept) != 3 or min(kept) < 2:
        axes = sum(n > 1 for n in shape)
        found = f"shape {extent(shape)} ({axes}-D{'' if axes == len(shape) else ' beside axes of one voxel'})"
        fault(path, "dimensions", found, "one 3-D volume with at least 2 voxels along each axis is needed")
    if math.prod(kept) > MOST_VOXELS:
        found = f"{extent(kept)} voxels by its header, {math.prod(kept):,} in all"
        fault(path, "too-large", found, f"at most {MOST_VOXELS:,} are read; resample the scan or correct the header")
    return kept[0], kept[1], kept[2]


def _check_affine(path: Path, affine: npt.NDArray[np.float64]) -> None:
    with np.errstate(all="ignore"):
        sizes = np.array(voxel_size_mm(affine))
        volume = abs(np.linalg.det(affine[:3, :3])) / np.prod(sizes)
    if not np.isfinite(affine).all() or sizes.min() < 1e-6 or not volume > 1e-3:
        rows = np.array2string(affine[:3, :3], precision=3, separator=", ").replace("\n", "")
        fault(path, "affine", f"singular affine {rows}", "three independent axes in mm are needed; correct the header")
    angle = _shear_degrees(affine)
    if angle > SHEAR_DEGREES:
        found = f"sheared axes, {angle:.0f} degrees off the right angle"
        allowed = f"at most {SHEAR_DEGREES:g} are taken as none; resample this file to a grid with right angles"
        fault(path, "affine", found, allowed)


def _shear_degrees(affine: npt.NDArray[np.float64]) -> float:
    """How far the angle of two axes is off 90 degrees, at most."""
    axes = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    cosines = np.abs((axes.T @ axes)[np.triu_indices(3, 1)])
    return float(np.degrees(np.arcsin(np.clip(cosines, 0, 1))).max())


def _suffix_notes(path: Path, compressed: bool) -> tuple[str, ...]:
    if compressed == (path.suffix.lower() == ".gz"):
        return ()
    return (
        f"the name says {path.suffix}, but the file is {'' if compressed else 'not '}compressed; read as what it is",
    )


def _unit_notes(header: Any) -> list[str]:
    name, mm = unit(header)
    if mm != 1:
        return [f"its header's lengths are in {name}; they were brought to mm"]
    code = int(header["xyzt_units"]) & 7
    return [f"its header's unit of length has the code {code}, which is none; mm are taken"] if code > 3 else []


def _number_notes(volume: Volume, low: float, high: float) -> list[str]:
    """What speaks against the numbers of an image, which a float32 must tell apart."""
    most = max(abs(low), abs(high))
    if most < 1e-30 or float(np.spacing(np.float32(most))) > 1e-4 * (high - low):
        return [f"values from {low:g} to {high:g}: their differences are lost in 32-bit numbers; scale the scan"]
    is_whole = volume.header.get_data_dtype().kind in "iu" and volume.header.get_data_dtype().itemsize == 4
    if is_whole and np.abs(volume.data[volume.data != 0]).min() > 2**27:  # a real number's bits, read as a whole number
        return [f"whole numbers from {low:g} to {high:g}: probably real numbers under a wrong datatype in the header"]
    return []


def _geometry_notes(header: Any, affine: npt.NDArray[np.float64], shape: tuple[int, int, int]) -> tuple[str, ...]:
    notes = _unit_notes(header)
    sform, qform = int(header["sform_code"]), int(header["qform_code"])
    if not sform and not qform:
        notes.append(f"neither qform nor sform; orientation {axis_codes(affine)} is assumed")
    if sform and qform:
        apart = _qform_distance_mm(header, affine, shape)
        if not apart <= 0.5 * min(voxel_size_mm(affine)):
            notes.append(f"qform and sform place voxels up to {apart:.1f} mm apart; sform is used")
    angle = float(np.degrees(obliquity(affine)).max())
    if angle > OBLIQUE_DEGREES:
        notes.append(f"axes lie {angle:.0f} degrees oblique to the scanner's; {axis_codes(affine)} is taken")
    shear = _shear_degrees(affine)
    if shear > SHEAR_NOTED_DEGREES:
        notes.append(f"axes are sheared by {shear:.1f} degrees; they are taken as right angles")
    return tuple(notes)


def _qform_distance_mm(header: Any, affine: npt.NDArray[np.float64], shape: tuple[int, int, int]) -> float:
    try:
        return affine_distance_mm(affine, _scaled(header.get_qform(), unit(header)[1]), shape)
    except _NIBABEL_ERRORS:
        return float("inf")  # a quaternion that is no rotation
