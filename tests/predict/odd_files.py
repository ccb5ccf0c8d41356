"""Malformed and odd files, drawn from a sound scan: headers within and beyond the standard, cut, of wrong types, swapped."""

import gzip
import io
import json
import tarfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

_NUMBERS = (np.nan, np.inf, -np.inf, 0.0, -1.0, 1e-30, 1e-3, 0.2, 2.0, 20.0, 1e3, 1e30)
_CODES = (-32768, -1, 0, 1, 2, 3, 4, 5, 6, 99, 32767)
_TYPES = (0, 1, 2, 4, 8, 16, 32, 64, 128, 255, 256, 512, 768, 1024, 1280, 1536, 1792, 2048, 2304, 7, -3)


@dataclass(frozen=True)
class Sound:
    """A scan, its mask and its segmentation: arrays (X, Y, Z) and the affine that they share."""

    image: np.ndarray
    mask: np.ndarray
    segmentation: np.ndarray
    affine: np.ndarray

    def file(self, array: np.ndarray | None = None, kind: Any = nib.Nifti1Image, dtype: Any = None) -> bytes:
        """A NIfTI file, not packed, with qform and sform."""
        made = kind(self.image if array is None else array, self.affine, dtype=dtype)
        made.header.set_xyzt_units("mm")
        made.set_sform(self.affine, code=1)
        made.set_qform(self.affine, code=1)
        return bytes(made.to_bytes())


@dataclass(frozen=True)
class Odd:
    """A scan's file, and its mask's (None: it is estimated)."""

    what: str
    scan: Path
    mask: Path | None


def draw(number: int, sound: Sound, folder: Path) -> Odd:
    """The odd file of a number, below ``folder``; equal numbers give equal files."""
    rng = np.random.default_rng(number)
    kind = _KINDS[number % len(_KINDS)]
    what, name, content, mask = kind(rng, sound)
    folder.mkdir(parents=True, exist_ok=True)
    scan = folder / name
    scan.write_bytes(content)
    beside = None if mask is None else folder / "beside.nii"
    if beside is not None and mask is not None:
        beside.write_bytes(mask)
    return Odd(f"{number} {kind.__name__.strip('_')}: {what}", scan, beside)


def _packed(content: bytes, rng: np.random.Generator) -> tuple[str, bytes]:
    """As it is, or packed: (name, content)."""
    return ("odd.nii.gz", gzip.compress(content, 1)) if rng.random() < 0.4 else ("odd.nii", content)


def _mask(rng: np.random.Generator, sound: Sound) -> bytes | None:
    return sound.file(sound.mask) if rng.random() < 0.6 else None


def _fields(rng: np.random.Generator, sound: Sound) -> tuple[str, str, bytes, bytes | None]:
    """One to three fields of the header with another content."""
    kind = nib.Nifti2Image if rng.random() < 0.2 else nib.Nifti1Image
    whole = bytearray(sound.file(kind=kind))
    size = kind.header_class.sizeof_hdr
    header = kind.header_class(bytes(whole[:size]), check=False)
    told = []
    for field in rng.choice(sorted(_FIELDS), rng.integers(1, 4), replace=False):
        value = _FIELDS[field](rng, np.array(header[field]))
        with np.errstate(all="ignore"):
            header[field] = value
        told.append(f"{field} {np.array2string(np.asarray(value), threshold=9)}")
    whole[:size] = header.binaryblock
    return ("; ".join(told), *_packed(bytes(whole), rng), _mask(rng, sound))


def _element(numbers: tuple[Any, ...], first: int = 0) -> Callable[[np.random.Generator, np.ndarray], np.ndarray]:
    def change(rng: np.random.Generator, old: np.ndarray) -> np.ndarray:
        new = old.copy()
        new[rng.integers(first, len(new))] = rng.choice(numbers)
        return new

    return change


def _any_of(values: tuple[Any, ...]) -> Callable[[np.random.Generator, np.ndarray], Any]:
    return lambda rng, old: values[rng.integers(len(values))]


def _dimensions(rng: np.random.Generator, old: np.ndarray) -> np.ndarray:
    new = old.copy()
    if rng.random() < 0.4:
        new[1:4] = rng.permutation(new[1:4])
    else:
        new[rng.integers(0, 8)] = rng.choice((-1, 0, 1, 2, 3, 4, 5, 8, 50, 97, 400, 30000, 32767))
    return new


_FIELDS: dict[str, Callable[[np.random.Generator, np.ndarray], Any]] = {
    "sizeof_hdr": _any_of((0, 348, 540, -1, 1543569408)),
    "dim": _dimensions,
    "datatype": _any_of(_TYPES),
    "bitpix": _any_of((0, 1, 8, 16, 32, 64, -32, 999)),
    "pixdim": _element(_NUMBERS),
    "vox_offset": _any_of((0, 1, 176, 348, 352, 353, 368, 400, 544, 10**6, -352, 2**31 - 1)),
    "scl_slope": _any_of(_NUMBERS),
    "scl_inter": _any_of(_NUMBERS),
    "qform_code": _any_of(_CODES),
    "sform_code": _any_of(_CODES),
    **dict.fromkeys(("quatern_b", "quatern_c", "quatern_d"), _any_of((*_NUMBERS, 0.5, -0.7))),
    **dict.fromkeys(("qoffset_x", "qoffset_y", "qoffset_z"), _any_of(_NUMBERS)),
    **dict.fromkeys(("srow_x", "srow_y", "srow_z"), _element(_NUMBERS)),
    "xyzt_units": _any_of((0, 1, 2, 3, 4, 7, 8, 10, 11, 24, 63, 127)),
    "magic": _any_of((b"", b"ni1", b"n+1", b"n+2", b"\xff\xff\xff\xff")),
    "intent_code": _any_of((-1, 0, 2, 1005, 1007, 3000)),
    "dim_info": _any_of((0, 57, 127)),
    "slice_code": _any_of((0, 3, 99, 127)),
    "descrip": _any_of((b"", b"\xff" * 80, "Schädel".encode("latin-1"), b"\x1b[31m\n")),
    "cal_max": _any_of(_NUMBERS),
}


def _bytes_turned(rng: np.random.Generator, sound: Sound) -> tuple[str, str, bytes, bytes | None]:
    """Some bytes of header, extension flag, or of the packed stream are others."""
    name, content = _packed(sound.file(), rng)
    turned = bytearray(content)
    places = rng.integers(0, 360 if name == "odd.nii" else len(content), rng.integers(1, 5))
    for place in places:
        turned[place] = rng.integers(256)
    return f"bytes {places.tolist()} of {name}", name, bytes(turned), _mask(rng, sound)


def _cut(rng: np.random.Generator, sound: Sound) -> tuple[str, str, bytes, bytes | None]:
    """The first bytes only, or some more behind."""
    name, content = _packed(sound.file(), rng)
    at = int(rng.choice((0, 1, 2, 10, 100, 347, 348, 352, 360, len(content) // 2, len(content) - 8, len(content) - 1)))
    if rng.random() < 0.2:
        behind = rng.bytes(int(rng.choice((1, 16, 840, 10**6))))
        return f"{len(behind)} bytes behind {name}", name, content + behind, _mask(rng, sound)
    return f"{at} of {len(content)} bytes of {name}", name, content[:at], _mask(rng, sound)


def _types(rng: np.random.Generator, sound: Sound) -> tuple[str, str, bytes, bytes | None]:
    """Voxels of another number type, or of none."""
    kind = str(rng.choice(("u1", "i1", "i2", "u2", "i4", "i8", "u8", "f8", "c8", "c16", "RGB", "RGBA")))
    if kind.startswith("RGB"):
        colour = np.dtype([(letter, "u1") for letter in kind])
        array = np.repeat(np.clip(sound.image / 8, 0, 255).astype(np.uint8)[..., None], len(kind), -1)
        content = bytes(nib.Nifti1Image(array.copy().view(colour)[..., 0], sound.affine).to_bytes())
    else:
        top = np.iinfo(kind).max if kind[0] in "iu" else np.inf
        scaled = sound.image * min(1.0, 0.9 * top / sound.image.max())
        content = sound.file(np.rint(scaled).astype(kind) if kind[0] in "iu" else sound.image.astype(kind), dtype=kind)
    return (kind, *_packed(content, rng), _mask(rng, sound))


def _no_volume(rng: np.random.Generator, sound: Sound) -> tuple[str, str, bytes, bytes | None]:
    """What is none by its content, under a volume's name; or packed in another way."""
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w:gz") as tar:
        entry = tarfile.TarInfo("scan.nii")
        entry.size = len(sound.file())
        tar.addfile(entry, io.BytesIO(sound.file()))
    contents = {
        "nothing": b"",
        "a page": b"<html><body>404</body></html>" * 20,
        "JSON": json.dumps({"a": list(range(500))}).encode(),
        "text, packed": gzip.compress(b"scan,mask\n" * 99),
        "nothing, packed": gzip.compress(b""),
        "packed twice": gzip.compress(gzip.compress(sound.file(), 1)),
        "an archive": archive.getvalue(),
        "zlib": zlib.compress(sound.file(), 1),
        "zeros": bytes(2000),
        "noise": rng.bytes(2000),
        "noise behind gzip's mark": b"\x1f\x8b" + rng.bytes(500),
        "a pair's header": sound.file()[:344] + b"ni1\0",
        "two, one behind the other": gzip.compress(sound.file()[:5000]) + gzip.compress(sound.file()[5000:], 1),
    }
    what = str(rng.choice(sorted(contents)))
    return what, str(rng.choice(("odd.nii", "odd.nii.gz", "odd.NII.GZ"))), contents[what], _mask(rng, sound)


def _swapped(rng: np.random.Generator, sound: Sound) -> tuple[str, str, bytes, bytes | None]:
    """Scan, mask and segmentation in each other's place, or of other grids."""
    turned = Sound(sound.image[::-1, :, ::2].copy(), sound.mask[::-1, :, ::2].copy(), sound.mask, sound.affine)
    arrays = {
        "scan": sound.file(),
        "mask": sound.file(sound.mask),
        "segmentation": sound.file(sound.segmentation),
        "another grid": turned.file(turned.mask),
        "empty": sound.file(np.zeros_like(sound.mask)),
        "full": sound.file(np.ones_like(sound.mask)),
        "inverse": sound.file(1 - sound.mask),
        "labels": sound.file(sound.mask * 2 + (sound.segmentation > 0).astype(np.uint8)),
    }
    one = str(rng.choice(("scan", "mask", "segmentation", "another grid")))
    other = str(rng.choice([name for name in arrays if (one, name) != ("scan", "mask")]))
    return f"{one} with {other} as its mask", "odd.nii", arrays[one], arrays[other]


def _voxels(rng: np.random.Generator, sound: Sound) -> tuple[str, str, bytes, bytes | None]:
    """Values that no scan has."""
    changes: dict[str, Callable[[np.ndarray], np.ndarray]] = {
        "NaN in a voxel": lambda a: np.where(np.arange(a.size).reshape(a.shape) == a.size // 2, np.nan, a),
        "infinite voxel": lambda a: np.where(np.arange(a.size).reshape(a.shape) == a.size // 2, np.inf, a),
        "all NaN": lambda a: np.full_like(a, np.nan),
        "constant": lambda a: np.full_like(a, 7),
        "huge": lambda a: a.astype(np.float64) * 1e300,
        "tiny": lambda a: a * np.float32(1e-38),
        "far from zero": lambda a: a + np.float32(1e9),
        "inverted": lambda a: a.max() - a,
        "noise": lambda a: rng.normal(size=a.shape).astype(np.float32),
    }
    what = str(rng.choice(sorted(changes)))
    changed = np.asarray(changes[what](sound.image))
    return (what, *_packed(sound.file(changed, dtype=changed.dtype), rng), _mask(rng, sound))


def _swollen(rng: np.random.Generator, sound: Sound) -> tuple[str, str, bytes, bytes | None]:
    """Small packed files that unpack to a lot, as announced or not."""
    shape = [(400, 400, 400), (1200, 1200, 1200), (30000, 30000, 2)][rng.integers(3)]
    header = nib.Nifti1Header()
    header.set_data_dtype(np.uint8)
    header.set_data_shape(shape)
    header["vox_offset"], header["magic"] = 352, b"n+1"
    header.set_sform(np.diag([0.5, 0.5, 0.5, 1]), code=1)
    pack = zlib.compressobj(6, wbits=31)
    start = header.binaryblock + bytes(4) + rng.bytes(1000)
    parts = [pack.compress(start), *(pack.compress(bytes(1 << 22)) for _ in range(int(rng.choice((1, 16, 300)))))]
    return f"{shape} voxels", "odd.nii.gz", b"".join([*parts, pack.flush()]), None


_KINDS = (
    *[_fields] * 9,
    _bytes_turned,
    _bytes_turned,
    _cut,
    _cut,
    _types,
    _no_volume,
    _swapped,
    _voxels,
    _fields,
    _swollen,
)
