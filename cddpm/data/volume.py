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
===================================================  =======================================================
"""

import dataclasses
import errno
import gzip
import hashlib
import io
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NoReturn

import nibabel as nib
import numpy as np
import numpy.typing as npt
from nibabel.affines import obliquity
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError
from nibabel.wrapstruct import WrapStructError

from cddpm import artifact
from cddpm.errors import VolumeError
from cddpm.labels import Labels

IGNORED = 2
"""In what ``read_segmentation`` gives: voxels that count neither way."""

OBLIQUE_DEGREES = 5.0
SHEAR_DEGREES, SHEAR_NOTED_DEGREES = 5.0, 1.0
_ORDERS: tuple[Literal["little", "big"], ...] = ("little", "big")
_NIBABEL_ERRORS = (ImageFileError, HeaderDataError, WrapStructError, ValueError, KeyError, OSError, OverflowError)
_HEADER_SIZES = frozenset(size.to_bytes(4, order) for size in (348, 540) for order in _ORDERS)
_MAGIC = ((nib.Nifti1Image, 344, b"n+1\0"), (nib.Nifti2Image, 4, b"n+2\0"))
_WRITABLE: dict[np.dtype[Any], np.dtype[Any]] = {
    np.dtype(bool): np.dtype(np.uint8),
    np.dtype(np.float16): np.dtype(np.float32),
}


class VolumeFileError(VolumeError):
    """One named fault of one file: ``path``, ``code`` (one word), what was ``found``, what is ``allowed``."""

    def __init__(self, path: str, code: str, found: str, allowed: str) -> None:
        super().__init__(path, code, found, allowed)
        self.path, self.code, self.found, self.allowed = path, code, found, allowed

    def __str__(self) -> str:
        return f"{self.path}: {self.found}; {self.allowed}"


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
    """Read an image as float32 (X, Y, Z). Raises ``VolumeFileError`` when it cannot be used (also all zero, constant, NaN)."""
    volume = _read(path)
    low, high = float(volume.data.min()), float(volume.data.max())
    if low == high:
        code, found = ("all-zero", "all voxels are 0") if low == 0 else ("constant", f"all voxels are {low:g}")
        _fault(path, code, found, "an image needs contrast; export this scan again")
    return volume


def read_mask(path: Path) -> Volume:
    """Read a brain mask as uint8 {0, 1} (X, Y, Z); {0, n} is mended. Raises ``VolumeFileError`` when empty or not a mask."""
    volume = _read(path)
    inside = volume.data[volume.data != 0]
    if not inside.size:
        _fault(path, "empty-mask", "no voxel is inside the mask", "a brain mask needs voxels above 0; make it again")
    low, high = float(inside.min()), float(inside.max())
    if low <= 0 or high - low > 1e-3 * high:
        found = f"values from {min(low, 0.0):g} to {high:g}, not two"
        _fault(path, "not-binary", found, "a brain mask holds 0 and one value above it; is this the image?")
    return _with_data(volume, volume.data > 0)


def read_segmentation(path: Path, labels: Labels = Labels()) -> Volume:  # noqa: B008 - frozen
    """Read a segmentation as uint8 (X, Y, Z): 1 for lesion, ``IGNORED`` for what counts neither way, else 0; may be empty.

    ``labels`` says which numbers are which. Raises ``VolumeFileError``, also for a label that is neither.
    """
    volume = _read(path)
    rounded = np.rint(volume.data)
    if rounded.min() < 0 or float(np.abs(volume.data - rounded).max()) > 1e-3:
        found = f"values from {volume.data.min():g} to {volume.data.max():g} that are not labels"
        _fault(path, "not-binary", found, "a segmentation holds whole numbers from 0; threshold it first")
    there = tuple(int(label) for label in np.unique(rounded[rounded > 0]))
    unknown = [label for label in there if labels.meaning(label) == "unknown"]
    if unknown:
        told = f"label {', '.join(map(str, unknown))}, which is neither lesion nor ignored ({labels})"
        _fault(path, "labels", told, "name it in data.lesion_labels or data.ignored_labels, or correct the file")
    coded = (rounded > 0).astype(np.uint8)
    coded[np.isin(rounded, [label for label in there if labels.meaning(label) == "ignored"])] = IGNORED
    return dataclasses.replace(volume, data=coded, labels=there)


def read_map(path: Path) -> Volume:
    """Read any finite numbers as float32 (X, Y, Z): an anomaly map may be 0 throughout. Raises ``VolumeFileError``."""
    return _read(path)


def describe(path: Path) -> Description:
    """Read the header only. Raises ``VolumeFileError`` when it is no NIfTI header; voxels are not looked at."""
    raw = _file_bytes(path, limit=1 << 16)
    header = _parse(path, _decompress_start(path, raw) if raw[:2] == b"\x1f\x8b" else raw, header_only=True)
    affine = _best_affine(path, header)
    _check_affine(path, affine)
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

    ``header`` (of a ``Volume``) is kept: description, units, qform and sform codes. Equal arguments give equal bytes:
    the gzip header carries no time and no name. Parent folders are made. Raises ``StorageError`` when the disk refuses.
    """
    wanted: np.dtype[Any] = np.dtype(data.dtype if dtype is None else dtype)
    kind = _WRITABLE.get(wanted, wanted)
    image = nib.Nifti1Image(np.asarray(data, dtype=kind), np.asarray(affine, dtype=np.float64), header, dtype=kind)
    if header is None:
        image.header.set_xyzt_units("mm")
        image.set_sform(affine, code=1)
        image.set_qform(affine, code=1)
    image.header["cal_min"] = image.header["cal_max"] = 0  # a display window of other intensities would hide the result
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
        found = f"shape {_times(other.data.shape)}, but {volume.path.name} has {_times(volume.data.shape)}"
        _fault(other.path, "shape", found, "both must lie on one grid; resample this file to the image")
    apart = affine_distance_mm(volume.affine, other.affine, volume.data.shape)
    if apart > 0.25 * min(volume.voxel_size_mm):
        found = f"its affine places voxels up to {apart:.2f} mm away from those of {volume.path.name}"
        _fault(other.path, "affine", found, "both must lie on one grid; correct the header or resample this file")


def affine_distance_mm(one: npt.NDArray[np.float64], other: npt.NDArray[np.float64], shape: tuple[int, ...]) -> float:
    """Largest distance over the eight corners of ``shape`` between where two affines place them."""
    corners = np.array([[i, j, k, 1] for i in (0, shape[0] - 1) for j in (0, shape[1] - 1) for k in (0, shape[2] - 1)])
    return float(np.linalg.norm(corners @ (one - other).T[:, :3], axis=1).max())


def _read(path: Path) -> Volume:
    raw = _file_bytes(path)
    compressed = raw[:2] == b"\x1f\x8b"
    content = _decompress(path, raw) if compressed else raw
    image = _parse(path, content)
    behind = len(content) - _end(image)
    _check_dtype(path, image.header)
    shape = _spatial_shape(path, image.shape)
    _check_affine(path, image.affine)
    try:
        data = np.ascontiguousarray(image.get_fdata(dtype=np.float32, caching="unchanged").reshape(shape))
    except _NIBABEL_ERRORS as error:
        _fault(path, "truncated", f"voxels cannot be read ({_line(error)})", "copy the file again from its source")
    _check_finite(path, data)
    notes = (*_suffix_notes(path, compressed), *_geometry_notes(image.header, image.affine, shape))
    if behind:
        notes += (f"{behind} bytes follow the last voxel that the header announces; they are left alone",)
    return Volume(data, np.asarray(image.affine, dtype=np.float64), path, notes, image.header)


def _file_bytes(path: Path, limit: int = -1) -> bytes:
    try:
        with path.open("rb") as stream:
            raw = stream.read(limit)
    except FileNotFoundError:
        link = f" (it is a link to {path.readlink()})" if path.is_symlink() else ""
        _fault(path, "missing", f"no such file{link}", "correct the path in the split file or restore the file")
    except OSError as error:
        if error.errno == errno.ELOOP:
            _fault(path, "symlink-loop", "a symbolic link that leads back to itself", "link to the real file")
        _fault(path, "unreadable", f"cannot be opened ({error.strerror})", "a readable NIfTI file is needed")
    if not raw:
        _fault(path, "empty-file", "0 bytes", "copy the file again from its source")
    return raw


def _decompress(path: Path, raw: bytes) -> bytes:
    try:
        return gzip.decompress(raw)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        _fault(path, "truncated", f"gzip stream cut or damaged ({_line(error)})", "copy the file again from its source")


def _decompress_start(path: Path, raw: bytes) -> bytes:
    try:
        return zlib.decompressobj(wbits=31).decompress(raw)
    except zlib.error as error:
        _fault(path, "truncated", f"gzip stream damaged ({_line(error)})", "copy the file again from its source")


def _parse(path: Path, raw: bytes, header_only: bool = False) -> Any:
    kind = next((k for k, start, magic in _MAGIC if raw[start : start + 4] == magic and raw[:4] in _HEADER_SIZES), None)
    if kind is None:
        found = f"not a single-file NIfTI (starts with {raw[:4].hex(' ')}, magic {raw[344:348]!r})"
        _fault(path, "not-nifti", found, "only .nii and .nii.gz are read; convert it first")
    try:
        if header_only:
            return kind.header_class.from_fileobj(io.BytesIO(raw))
        image = kind.from_bytes(raw)
        needed = _end(image)
    except _NIBABEL_ERRORS as error:
        _fault(path, "not-nifti", f"damaged NIfTI header ({_line(error)})", "convert or copy the file again")
    if len(raw) < needed:  # before anything of the size that a damaged header claims is allocated
        found = f"{len(raw)} bytes, but its header announces {needed}"
        _fault(path, "truncated", found, "copy the file again from its source")
    _check_offset(path, raw, image, needed)
    return image


def _end(image: Any) -> int:
    """Byte behind the last voxel, as the header has it."""
    return int(image.dataobj.offset) + int(np.prod(image.shape, dtype=np.float64)) * int(image.dataobj.dtype.itemsize)


def _check_offset(path: Path, raw: bytes, image: Any, end: int) -> None:
    """Voxels begin behind the header and its extensions; read from elsewhere they are shifted."""
    least, size = int(image.header.single_vox_offset), int(image.header.sizeof_hdr)
    header = type(image.header)(raw[:size], check=False)  # nibabel forgets the offset of what it has opened
    offset = float(header["vox_offset"])
    if offset < least or offset != int(offset):
        found = f"its header says that voxels begin at byte {offset:g} (vox_offset), inside of the header itself"
        _fault(path, "offset", found, f"{least} or more is needed; convert it again or correct the header")
    extended = raw[least - 4] != 0 and end < len(raw)
    if extended and least + int.from_bytes(raw[least : least + 4], _ORDERS[header.endianness == ">"]) > offset:
        found = f"its header says that voxels begin at byte {offset:g} (vox_offset), inside of a header extension"
        _fault(path, "offset", found, "they begin behind the extensions; convert it again or correct the header")


def _best_affine(path: Path, header: Any) -> npt.NDArray[np.float64]:
    try:
        return np.asarray(header.get_best_affine(), dtype=np.float64)
    except _NIBABEL_ERRORS as error:
        _fault(path, "affine", f"qform cannot be read ({_line(error)})", "correct the header")


def _check_dtype(path: Path, header: Any) -> None:
    dtype = header.get_data_dtype()
    if dtype.kind not in "iuf":
        found = f"voxels of type {dtype if dtype.names is None else 'RGB'}"
        _fault(path, "dtype", found, "real numbers are needed; export magnitude values")


def _spatial_shape(path: Path, shape: tuple[int, ...]) -> tuple[int, int, int]:
    kept = shape[:3] + tuple(n for n in shape[3:] if n != 1)
    if len(kept) != 3 or min(kept) < 2:
        found = f"shape {_times(shape)} ({sum(n > 1 for n in shape)}-D)"
        _fault(path, "dimensions", found, "one 3-D volume with at least 2 voxels along each axis is needed")
    return kept[0], kept[1], kept[2]


def _check_affine(path: Path, affine: npt.NDArray[np.float64]) -> None:
    with np.errstate(all="ignore"):
        sizes = np.array(voxel_size_mm(affine))
        volume = abs(np.linalg.det(affine[:3, :3])) / np.prod(sizes)
    if not np.isfinite(affine).all() or sizes.min() < 1e-6 or not volume > 1e-3:
        rows = np.array2string(affine[:3, :3], precision=3, separator=", ").replace("\n", "")
        _fault(path, "affine", f"singular affine {rows}", "three independent axes in mm are needed; correct the header")
    angle = _shear_degrees(affine)
    if angle > SHEAR_DEGREES:
        found = f"sheared axes, {angle:.0f} degrees off the right angle"
        allowed = f"at most {SHEAR_DEGREES:g} are taken as none; resample this file to a grid with right angles"
        _fault(path, "affine", found, allowed)


def _shear_degrees(affine: npt.NDArray[np.float64]) -> float:
    """How far the angle of two axes is off 90 degrees, at most."""
    axes = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    cosines = np.abs((axes.T @ axes)[np.triu_indices(3, 1)])
    return float(np.degrees(np.arcsin(np.clip(cosines, 0, 1))).max())


def _check_finite(path: Path, data: npt.NDArray[np.float32]) -> None:
    bad = data.size - int(np.count_nonzero(np.isfinite(data)))
    if bad:
        first = tuple(int(i) for i in np.argwhere(~np.isfinite(data))[0])
        found = f"{bad} voxels are NaN or infinite, the first at {first}"
        _fault(path, "non-finite", found, "finite numbers are needed; fill or export again")


def _suffix_notes(path: Path, compressed: bool) -> tuple[str, ...]:
    if compressed == (path.suffix == ".gz"):
        return ()
    return (
        f"the name says {path.suffix}, but the file is {'' if compressed else 'not '}compressed; read as what it is",
    )


def _geometry_notes(header: Any, affine: npt.NDArray[np.float64], shape: tuple[int, int, int]) -> tuple[str, ...]:
    notes = []
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
        return affine_distance_mm(affine, header.get_qform(), shape)
    except _NIBABEL_ERRORS:
        return float("inf")  # a quaternion that is no rotation


def _with_data(volume: Volume, inside: npt.NDArray[np.bool_]) -> Volume:
    return Volume(inside.astype(np.uint8), volume.affine, volume.path, volume.notes, volume.header)


def _fault(path: Path, code: str, found: str, allowed: str) -> NoReturn:
    raise VolumeFileError(str(path), code, found, allowed) from None


def _times(shape: tuple[int, ...]) -> str:
    return "x".join(str(n) for n in shape)


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:120]
