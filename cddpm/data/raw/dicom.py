"""A folder of DICOM files as one volume, by SimpleITK's reader (GDCM).

Of the tags only those of geometry and kind of image are looked at, and none is kept. Refused are folders with several series
(unless one is named), enhanced multi-frame files, and slices that are unreadable, missing, doubled or not parallel.
Source: DICOM PS3.3, C.7.6.2 (Image Plane Module): a voxel lies at ``ImagePositionPatient`` + columns and rows along
``ImageOrientationPatient``, in mm, x to the left, y to the back.
"""

import contextlib
import locale
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import SimpleITK as sitk  # noqa: N813

from cddpm.data.raw.head import Grid
from cddpm.errors import VolumeError

_CLASS, _FRAMES, _NUMBER, _SAID = "0008|0016", "0028|0008", "0020|0011", "0008|103e"
_POSITION, _ORIENTATION, _SPACING = "0020|0032", "0020|0037", "0028|0030"
_ENHANCED = re.compile(r"1\.2\.840\.10008\.5\.1\.4\.1\.1\.(4\.1|4\.3|4\.4|2\.1|2\.2)\b")
_STORED = re.compile(rb"\x02\x00\x02\x00UI..([\d.]+)", re.DOTALL)
"""The class of what is stored, as the group of tags at a file's beginning has it."""
_OF_VOLUMES = re.compile(r"1\.2\.840\.10008\.5\.1\.4\.1\.1\.(?!4\.2$)(?:2|4|7|128)(?:\.\d+)*")
"""Classes of images: CT, MR (no spectroscopy), secondary capture, PET."""
_REMEDY = "convert it with dcm2niix (dcm2niix -z y -o OUT FOLDER) and name the NIfTI file instead"
_KIND = re.compile(
    r"t[12]w?|pdw?|flair|mprage|mp2rage|spgr|fspgr|bravo|space|cube|vista|tfe|ffe|tse|fse|tirm|swi|swan|dwi|adc|dti|epi|bold|asl|"
    r"tof|localizer|scout|survey|ax|axial|tra|sag|sagittal|cor|coronal|2d|3d|iso|gd|km|post|pre|fs|se|gre|mpr|\d{1,2}mm",
    re.IGNORECASE,
)
"""Words of a series' name that are told; others may be anything."""
STEP_TOLERANCE, TURN_TOLERANCE, PLACE_TOLERANCE = 0.02, 1e-3, 0.1
"""How far distances of slices may differ (part of their median), directions (cosine) and places of corners (voxels)."""


@dataclass(frozen=True)
class Series:
    """One series of a folder. ``number`` as the scanner counted it, else its place in the folder; ``files`` in no order."""

    number: int
    uid: str
    files: tuple[str, ...]
    words: str
    """What its name says of the kind of image."""

    def __str__(self) -> str:
        return f"{self.number} ({len(self.files)} files{', ' + self.words if self.words else ''})"


def is_dicom(path: Path) -> bool:
    """Whether ``path`` is to be read as a folder of DICOM files."""
    return path.is_dir()


@contextlib.contextmanager
def own_locale() -> Iterator[None]:
    """GDCM leaves the process in the locale C, in which Python takes text files for ASCII; this gives its own back."""
    before = locale.setlocale(locale.LC_ALL)
    try:
        yield
    finally:
        locale.setlocale(locale.LC_ALL, before)


@own_locale()
def series_in(folder: Path) -> list[Series]:
    """Every series in ``folder`` itself, by number. Raises ``VolumeError`` if there is none or files are no DICOM."""
    sitk.ProcessObject.SetGlobalWarningDisplay(False)  # ITK's own lines on stderr tell paths
    reader = sitk.ImageSeriesReader()
    named = [
        (uid, tuple(reader.GetGDCMSeriesFileNames(str(folder), uid))) for uid in reader.GetGDCMSeriesIDs(str(folder))
    ]
    _refuse_unreadable(folder, {Path(file).name for _, files in named for file in files})
    if not named:
        raise VolumeError(f"{folder}: no DICOM series in this folder; name the folder that holds the files themselves")
    found = [
        Series(_whole(tags, _NUMBER) or 0, uid, files, _words(tags))
        for uid, files in named
        for tags in [_tags(files[0])]
    ]
    found.sort(key=lambda one: (one.number, one.uid))
    if len({one.number for one in found}) < len(found) or any(one.number <= 0 for one in found):
        found = [Series(place, one.uid, one.files, one.words) for place, one in enumerate(found, start=1)]
    return found


@own_locale()
def read_series(folder: Path, choice: str | None = None) -> Grid:
    """The volume of one series: float32 (X, Y, Z) with its affine in RAS+. ``choice``: a series' number or UID.

    Raises ``VolumeError`` for several series without a choice (listing them), unreadable or multi-frame files, and uneven slices.
    """
    chosen = _chosen(folder, series_in(folder), choice)
    tags = [_tags(file) for file in chosen.files]
    _refuse_frames(folder, chosen, tags)
    affine, order = _plan(folder, chosen, tags)
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames([chosen.files[index] for index in order])
    try:
        image = reader.Execute()
    except RuntimeError:  # its text tells names of files, which may be a patient's
        raise VolumeError(f"{folder}: series {chosen.number} cannot be read; {_REMEDY}") from None
    if image.GetDimension() != 3 or image.GetNumberOfComponentsPerPixel() != 1:
        raise VolumeError(f"{folder}: series {chosen.number} is no 3-D volume of single numbers; {_REMEDY}")
    _refuse_other_place(folder, chosen, image, affine)
    data = sitk.GetArrayFromImage(image).T.astype(np.float32)
    return Grid(np.ascontiguousarray(data), np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine)


def _chosen(folder: Path, found: list[Series], choice: str | None) -> Series:
    if choice is None and len(found) == 1:
        return found[0]
    listed = "; ".join(map(str, found))
    if choice is None:
        raise VolumeError(f"{folder}: {len(found)} series: {listed}; choose one with --series MODALITY=NUMBER")
    by_number = [one for one in found if choice == str(one.number)]
    by_uid = [one for one in found if choice == one.uid]
    below_uid = [one for one in found if "." in choice and one.uid.startswith(f"{choice}.")]
    fitting = by_number or by_uid or below_uid
    if len(fitting) == 1:
        return fitting[0]
    said = choice if choice.isdecimal() else "of this UID"
    raise VolumeError(f"{folder}: {f'{len(fitting)} series' if fitting else 'no series'} {said}; there are {listed}")


def _refuse_unreadable(folder: Path, known: set[str]) -> None:
    """GDCM leaves out what it cannot read: of slices at an end of the stack nothing else would tell that they are gone."""
    others = (path for path in folder.iterdir() if path.name not in known and not path.name.startswith("."))
    broken = sum(path.is_file() and _is_broken_slice(path) for path in others)
    if broken:
        raise VolumeError(f"{folder}: {broken} {'file' if broken == 1 else 'files'} cannot be read; copy them again")


def _is_broken_slice(path: Path) -> bool:
    """Whether a file that is in no series should be: it is empty, or DICOM and no list, report or state of display."""
    with path.open("rb") as stream:
        start = stream.read(1024)
    if not start or start[128:132] != b"DICM":
        return not start
    said = _STORED.search(start)
    return said is None or _OF_VOLUMES.fullmatch(said[1].decode("ascii")) is not None


def _refuse_frames(folder: Path, chosen: Series, tags: list[dict[str, str]]) -> None:
    for one in tags:
        if _ENHANCED.match(one.get(_CLASS, "").strip("\0 ")) or (_whole(one, _FRAMES) or 1) > 1:
            raise VolumeError(f"{folder}: series {chosen.number} is enhanced multi-frame DICOM; {_REMEDY}")


def _plan(folder: Path, chosen: Series, tags: list[dict[str, str]]) -> tuple[npt.NDArray[np.float64], list[int]]:
    """Voxel index to mm (LPS+), and the order of the files along the slices' normal."""

    def refuse(found: str, allowed: str = "complete it, or export it again") -> VolumeError:
        return VolumeError(f"{folder}: series {chosen.number}: {found}; {allowed}")

    if len(tags) < 2:
        raise refuse("a single slice", "a volume is needed")
    numbers = [
        tuple(_numbers(one, tag, n) for tag, n in ((_POSITION, 3), (_ORIENTATION, 6), (_SPACING, 2))) for one in tags
    ]
    if any(part is None for one in numbers for part in one):
        raise refuse("slices without position, orientation or pixel spacing", _REMEDY)
    positions, orientations, spacings = (np.array([one[i] for one in numbers]) for i in range(3))
    if np.abs(orientations - orientations[0]).max() > TURN_TOLERANCE or np.ptp(spacings, axis=0).max() > 1e-4:
        raise refuse("slices of several directions or pixel sizes (a localizer?)", "name a series of one volume")
    along_row, along_column = orientations[0][:3], orientations[0][3:]
    normal = np.cross(along_row, along_column)
    order = np.argsort(positions @ normal)
    steps = np.diff(positions[order] @ normal)
    middle = float(np.median(steps))
    if middle < 1e-3:
        raise refuse("several slices lie at one place (several echoes or time points?)", "name a series of one volume")
    if np.abs(steps - middle).max() > STEP_TOLERANCE * middle:
        raise refuse(f"slices lie {steps.min():.2f} to {steps.max():.2f} mm apart: some are missing or doubled")
    step = (positions[order[-1]] - positions[order[0]]) / (len(order) - 1)
    if np.linalg.norm(step - normal * middle) > 0.1 * middle:
        raise refuse("slices are shifted against each other (a tilted gantry?)", _REMEDY)
    affine = np.eye(4)
    affine[:3, 0], affine[:3, 1] = along_row * spacings[0][1], along_column * spacings[0][0]
    affine[:3, 2], affine[:3, 3] = step, positions[order[0]]
    return affine, [int(index) for index in order]


def _refuse_other_place(folder: Path, chosen: Series, image: sitk.Image, affine: npt.NDArray[np.float64]) -> None:
    """The reader's own geometry against that of the tags: a sign that it lost would mirror the brain."""
    direction = np.array(image.GetDirection()).reshape(3, 3) * np.array(image.GetSpacing())
    theirs = np.eye(4)
    theirs[:3, :3], theirs[:3, 3] = direction, image.GetOrigin()
    corners = np.array([[i, j, k, 1] for i in (0, 1) for j in (0, 1) for k in (0, 1)]) * [*image.GetSize(), 1]
    apart = float(np.linalg.norm(corners @ (theirs - affine).T[:, :3], axis=1).max())
    if apart > PLACE_TOLERANCE * min(image.GetSpacing()) + 0.01 * max(image.GetSize()) * TURN_TOLERANCE:
        found = f"GDCM places it up to {apart:.1f} mm away from where its slices say"
        raise VolumeError(f"{folder}: series {chosen.number}: {found}; {_REMEDY}")


def _tags(file: str) -> dict[str, str]:
    """The tags that are looked at; no other leaves this function."""
    reader = sitk.ImageFileReader()
    reader.SetFileName(file)
    try:
        reader.ReadImageInformation()
    except RuntimeError:  # its text tells the file's name, as does ``file``
        raise VolumeError(f"{Path(file).parent}: a file cannot be read as DICOM; {_REMEDY}") from None
    wanted = (_CLASS, _FRAMES, _NUMBER, _SAID, _POSITION, _ORIENTATION, _SPACING)
    return {tag: reader.GetMetaData(tag) for tag in wanted if reader.HasMetaDataKey(tag)}


def _words(tags: dict[str, str]) -> str:
    words = re.split(r"[^A-Za-z0-9]+", tags.get(_SAID, ""))
    return " ".join(word for word in words if _KIND.fullmatch(word))


def _whole(tags: dict[str, str], tag: str) -> int | None:
    text = tags.get(tag, "").strip("\0 ")
    return int(text) if text.isdecimal() else None


def _numbers(tags: dict[str, str], tag: str, count: int) -> list[float] | None:
    try:
        found = [float(part) for part in tags.get(tag, "").strip("\0 ").split("\\")]
    except ValueError:
        return None
    return found if len(found) == count and np.isfinite(found).all() else None
