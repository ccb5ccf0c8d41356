"""The folder of one scan's results: written whole, found again, never mixed with those of another model.

====================================================  ==============================================================
``anomaly_map``, ``reconstruction``, ``segmentation``  ``.nii.gz`` on the scan's grid, with its affine; header without texts
``coverage``                                          as these: 1 where brain was looked at, 0 where not, and outside of it
``overview.png``                                      three slices
``result.json``                                       scores, warnings, provenance, digests; written last
====================================================  ==============================================================

Where scan and mask lie is kept twice: as seen from the folder, which holds after both were moved or copied together, and as an
absolute path, which holds after the folder alone was. Which of them is meant the digest says.
"""

import contextlib
import errno
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from cddpm import artifact
from cddpm.data.volume import Volume, write_volume
from cddpm.errors import ArtifactError
from cddpm.predict.coverage import Window
from cddpm.predict.predictor import INTENSITIES, Prediction, Predictor, overview_rows
from cddpm.predict.scans import Job

ANOMALY_MAP, RECONSTRUCTION, SEGMENTATION = "anomaly_map.nii.gz", "reconstruction.nii.gz", "segmentation.nii.gz"
COVERAGE, PICTURE, RESULT = "coverage.nii.gz", "overview.png", "result.json"
FILES = (ANOMALY_MAP, RECONSTRUCTION, SEGMENTATION, COVERAGE, PICTURE)


@dataclass(frozen=True)
class Identity:
    """All that a result depends on; equal ones mean equal results (on the same kind of device)."""

    model: str
    """Fingerprint of the package; it covers weights and settings."""
    dataset: str
    volume_id: str
    scan_sha256: str
    mask_sha256: str | None
    """None if the mask was estimated."""
    window: Window

    @classmethod
    def of(cls, model: str, job: Job, window: Window = "whole") -> "Identity":
        """Of ``job`` for the package with the fingerprint ``model``; reads the job's files. Raises ``OSError``."""
        for path in (job.scan, job.mask):
            if path is not None and not path.is_file():  # a pipe would keep us waiting
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
        mask = artifact.file_digest(job.mask) if job.mask else None
        return cls(model, job.dataset, job.key, artifact.file_digest(job.scan), mask, window)


def check_same(folder: Path, model: str, job: Job, window: Window = "whole") -> None:
    """Raises ``ArtifactError`` if ``folder`` holds a result of another model, data set's threshold, volume id or window.

    One that names no window is of an earlier version of this program, and is made again.
    """
    before = _read(folder).get("identity", {})
    wanted = {"model": model, "dataset": job.dataset, "volume_id": job.key, "window": window}
    other = [
        f"{name} '{before[name]}', not '{value}'" for name, value in wanted.items() if before.get(name, value) != value
    ]
    if other:
        raise ArtifactError(
            f"{folder}: holds a result of {', '.join(other)}; give another --out, or leave --resume out to replace it"
        )


def is_done(folder: Path, identity: Identity) -> bool:
    """Whether ``folder`` holds the whole result of ``identity``: every file is there as it was written."""
    found = _read(folder)
    digests = found.get("digests", {})
    return (
        found.get("identity") == asdict(identity)
        and set(digests) == set(FILES)
        and all((folder / name).is_file() and artifact.file_digest(folder / name) == digests[name] for name in FILES)
    )


def write(folder: Path, image: Volume, prediction: Prediction, identity: Identity, about: dict[str, Any]) -> None:
    """Replace the results of a scan, file by file, each whole; ``result.json`` is there only beside files of its own.

    Where one cannot be written none stays. ``about`` (JSON data) is kept beside what the result says of itself. Raises
    ``StorageError`` if the disk refuses.
    """
    with artifact.storage_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / RESULT).unlink(missing_ok=True)
    try:
        for name, array in (
            (ANOMALY_MAP, prediction.anomaly_map),
            (RECONSTRUCTION, prediction.reconstruction),
            (SEGMENTATION, prediction.segmentation),
            (COVERAGE, prediction.coverage.looked_at.astype(np.uint8)),
        ):
            write_volume(folder / name, array, image.affine, header=image.header)
        _draw(folder / PICTURE, prediction)
        digests = {name: artifact.file_digest(folder / name) for name in FILES}
        found = {**_result(image, prediction), "identity": asdict(identity), "digests": digests}
        artifact.write_json(folder / RESULT, {**found, **about})
    except BaseException:
        _clear(folder)
        raise


def _clear(folder: Path) -> None:
    """Half a result is none; other files stay."""
    with contextlib.suppress(OSError):
        for name in FILES:
            (folder / name).unlink(missing_ok=True)
        folder.rmdir()


def places(job: Job) -> dict[str, str]:
    """Where the files of ``job`` lie, as seen from its folder."""
    files = {"scan": job.scan, "mask": job.mask}
    folder = job.folder.resolve()
    return {name: os.path.relpath(file.resolve(), folder) for name, file in files.items() if file is not None}


def scan_of(folder: Path, found: Mapping[str, Any]) -> Path:
    """Where the scan lies whose result ``found`` is ``folder``'s: beside the folder as it was then, else where it was then.

    Raises ``KeyError`` or ``TypeError`` if it is no result, ``ArtifactError`` if no file, or only another one, is there.
    """
    beside, before = folder.resolve() / found["places"]["scan"], found["identity"]["scan_sha256"]
    known = list(dict.fromkeys([Path(os.path.normpath(beside)), Path(found["scan"])]))
    there = [place for place in known if place.is_file()]
    same = [place for place in there if artifact.file_digest(place) == before]
    if not there:
        looked_for = " and no ".join(map(str, known))
        raise ArtifactError(f"{folder}: its scan is gone (no {looked_for}); restore it, or predict it again")
    if not same:
        raise ArtifactError(
            f"{there[0]}: not the file that {folder} was made from (another SHA-256); restore it, or predict it again"
        )
    return same[0]


def provenance(predictor: Predictor, job: Job, found: dict[str, Any]) -> dict[str, Any]:
    """Where a result comes from, as plain JSON data; ``found`` says where the model was found."""
    package = predictor.package
    return {
        "places": places(job),
        "scan": str(job.scan.resolve()),
        "mask": str(job.mask.resolve()) if job.mask else "estimated",
        "dataset": job.dataset,
        "model": {
            **found,
            "fingerprint": package.fingerprint,
            "made_from": package.pipeline.fingerprints,
            "sweep": package.pipeline.sweep,
            "trial": package.pipeline.trial,
            "validation": package.pipeline.validation,
        },
        "settings": predictor.settings,
        "device": str(predictor.device),
        "versions": {name: version(name) for name in ("cddpm", "torch")},
    }


def _read(folder: Path) -> dict[str, Any]:
    """``result.json`` of a folder; empty if there is none, or none that was finished."""
    try:
        found = artifact.read_json(
            folder / RESULT, dict[str, Any], "the result of a prediction", "predict this scan again"
        )
    except ArtifactError:
        return {}
    return found if all(isinstance(found.get(name), dict) for name in ("identity", "digests")) else {}


def _result(image: Volume, prediction: Prediction) -> dict[str, Any]:
    low, high = prediction.intensities
    geometry = prediction.working.geometry
    return {
        "volume_id": prediction.volume_key,
        "threshold": prediction.threshold,
        "scores": prediction.scores,
        "warnings": list(prediction.warnings),
        "coverage": prediction.coverage.to_dict(),
        "intensities": {"reconstruction": INTENSITIES, "at_0": low, "at_1": high},
        "grid": {
            "shape": list(geometry.shape),
            "voxel_size_mm": list(image.voxel_size_mm),
            "orientation": geometry.orientation,
            "affine": image.affine.tolist(),
        },
        "working_grid": geometry.to_dict(),
        "files": list(FILES),
    }


def _draw(path: Path, prediction: Prediction) -> None:
    from cddpm.scoring.figures import overview

    temporary = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        overview(overview_rows(prediction), temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
