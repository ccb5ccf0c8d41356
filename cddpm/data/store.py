"""Make a slice store from scans: digest every input, prepare what is new, write it in one stream."""

import functools
import json
import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cddpm import artifact
from cddpm.config import DataConfig, ScannerChange
from cddpm.data.afar import present, told
from cddpm.data.layout import ScanRow
from cddpm.data.many import ParallelMap
from cddpm.data.slices import KIND, SliceStore, VolumeRecord, axial, write_store
from cddpm.data.split import labels_of
from cddpm.errors import DataError, VolumeError
from cddpm.shelf import Shelf

__all__ = ["SliceStore", "VolumeRecord", "build_store", "store_fingerprint", "with_landmarks"]

logger = logging.getLogger(__name__)

VERSION = 4
"""Raised whenever preparation or the store's files change, so that an old store is not taken for a new one."""

_FIELDS = frozenset(
    (
        "modality",
        "orientation",
        "voxel_size_mm",
        "volume_shape",
        "centre",
        "rescale_factor",
        "rescale_grid",
        "percentiles",
        "smoothing_iterations",
    )
)

LANDMARKS = "landmarks.json"
"""Of a store whose landmarks were learnt (``data.intensities``)."""


def _settings(data: DataConfig) -> dict[str, Any]:
    """What preparation depends on; an option of ``data.intensities`` with what it reads, landmarks with whom they are of."""
    more = {"percentiles": set(), "landmarks": {"landmarks"}}.get(
        data.intensities, {"standard_range", "white_matter_peak"}
    )
    more |= set() if data.intensities == "percentiles" else {"intensities"}
    ignored = {"percentiles"} if data.standardised else set()
    found = data.model_dump(mode="json", include={*_FIELDS, *more} - ignored)
    found |= {"beyond": "kept"} if data.whole_brain else {}
    return {**found, "learnt_from": [data.healthy, data.fold]} if data.learns_landmarks else found


@dataclass(frozen=True)
class _Failure:
    """A scan that could not be prepared; told with all others at the end."""

    message: str


def build_store(
    data: DataConfig,
    root: Path,
    rows: Iterable[ScanRow],
    shelf: Shelf | Path,
    parallel_map: ParallelMap,
    change: ScannerChange | None = None,
    on_made: Callable[[], None] = lambda: None,
) -> Path:
    """Make the slice store of ``rows`` on ``shelf`` (a path: a folder of artifacts), or return the one that is there.

    ``rows`` may hold several splits and folds; each scan is stored once. ``parallel_map(function, items)`` yields results in the
    order of ``items``, lazily if memory is to stay bounded; function and items pickle. The store's fingerprint is made of the
    SHA-256 of every input file, the splits, and the settings that matter; the place of the files is not part of it. A store
    whose landmarks are learnt belongs to ``data.fold``: nothing of another split has a part in them. With ``change`` images are
    prepared as another scanner would have made them. ``on_made`` is called if it was made, not found here or in the storage.
    Raises ``DataError`` naming every scan that cannot be used, ``StorageError`` when the disk refuses.
    """
    rows = list(rows)
    scans = _scans(rows)
    digests = _digests(scans, parallel_map)
    settings, cohorts = {**_settings(data), **({"scanner": change} if change else {})}, _cohorts(rows, scans)
    name = _name(data, settings, scans, digests, cohorts)
    files = {_relative(path, root): digest for path, digest in digests.items()}
    made_from = {"version": VERSION, "settings": settings, "files": files}

    def fill(directory: Path) -> None:
        logger.info("preparing %d scans of %s", len(scans), told(str(root)))
        as_learnt = _learnt(data, rows, directory, parallel_map)
        results = parallel_map(functools.partial(_prepare_scan, as_learnt, change), scans)
        write_store(directory, _records(scans, results, digests, data.modality), cohorts)

    kept = shelf if isinstance(shelf, Shelf) else Shelf(shelf)
    path, made = kept.ensure(kept.path("store", name), KIND, made_from, fill)
    logger.info("slice store %s %s", path, "made" if made else "is there already")
    if made:
        on_made()
    return path


def store_fingerprint(data: DataConfig, rows: Iterable[ScanRow], parallel_map: ParallelMap) -> str:
    """The fingerprint that the slice store of ``rows`` has or would have; nothing is prepared. Raises as ``build_store``."""
    rows = list(rows)
    scans = _scans(rows)
    settings = _settings(data)
    return _name(data, settings, scans, _digests(scans, parallel_map), _cohorts(rows, scans))


def with_landmarks(data: DataConfig, path: Path) -> DataConfig:
    """``data`` with the landmarks that the slice store at ``path``, which was made of it, has learnt; as it is, if none were."""
    if not data.learns_landmarks:
        return data
    found = artifact.read_json(path / LANDMARKS, list[float], "landmarks of a slice store", "build the store again")
    return data.model_copy(update={"landmarks": tuple(found)})


def _learnt(data: DataConfig, rows: list[ScanRow], directory: Path, parallel_map: ParallelMap) -> DataConfig:
    """``data`` with its landmarks, which are kept in ``directory`` if they are learnt now: from the healthy training scans."""
    if not data.learns_landmarks:
        return data
    training = _scans(
        [r for r in rows if (r.dataset, r.split) == (data.healthy, "train") and r.fold in (None, data.fold)]
    )
    if not training:
        raise DataError(
            f"data.intensities: no training scan of {data.healthy} in fold {data.fold} to learn landmarks from"
        )
    from cddpm.data.intensity import learnt_landmarks  # SciPy: as below

    logger.info("learning landmarks from %d scans", len(training))
    found = list(parallel_map(functools.partial(_scan_quantiles, data), training))
    _refuse([one.message for one in found if isinstance(one, _Failure)])
    landmarks = learnt_landmarks([one for one in found if not isinstance(one, _Failure)])
    artifact.write_json(directory / LANDMARKS, list(landmarks))
    return data.model_copy(update={"landmarks": landmarks})


def _scan_quantiles(data: DataConfig, row: ScanRow) -> tuple[float, ...] | _Failure:
    from cddpm.data import volume
    from cddpm.data.prepare import brain_quantiles

    try:
        return brain_quantiles(volume.read_image(row.image), volume.read_mask(row.mask), data)
    except VolumeError as error:
        return _Failure(str(error))


def _scans(rows: list[ScanRow]) -> list[ScanRow]:
    """Each scan once, whatever splits it stands in."""
    return list({(row.dataset, row.subject): row for row in reversed(rows)}.values())[::-1]


def _name(
    data: DataConfig,
    settings: dict[str, Any],
    scans: list[ScanRow],
    digests: dict[Path, str],
    cohorts: list[dict[str, Any]],
) -> str:
    identity = [
        [
            s.dataset,
            s.subject,
            s.label,
            s.age,
            [None if p is None else digests[p] for p in (s.image, s.mask, s.segmentation)],
            asdict(labels_of(data, s)) if s.segmentation else None,
        ]
        for s in scans
    ]
    return artifact.fingerprint(KIND, VERSION, settings, identity, cohorts)


def _digests(scans: list[ScanRow], parallel_map: ParallelMap) -> dict[Path, str]:
    paths = sorted({p for s in scans for p in (s.image, s.mask, s.segmentation) if p is not None})
    digests = dict(zip(paths, parallel_map(_digest, paths), strict=True))
    _refuse([d.message for d in digests.values() if isinstance(d, _Failure)])
    return digests


def _digest(path: Path) -> str | _Failure:
    try:
        return artifact.file_digest(present(path))
    except OSError as error:
        return _Failure(f"{path}: cannot be read ({error.strerror}); correct its split file or restore it")


def _cohorts(rows: list[ScanRow], scans: list[ScanRow]) -> list[dict[str, Any]]:
    index = {(s.dataset, s.subject): i for i, s in enumerate(scans)}
    return [
        {"dataset": r.dataset, "split": r.split, "fold": r.fold, "volume": index[r.dataset, r.subject]} for r in rows
    ]


def _prepare_scan(data: DataConfig, change: ScannerChange | None, row: ScanRow) -> dict[str, Any] | _Failure:
    """Arrays (S, H, W) and geometry of one scan, of all of its brain where ``data`` say so.

    Runs in a worker; a bad file must not hide the others.
    """
    from cddpm.data import volume  # nibabel and SimpleITK: who only reads a store needs neither
    from cddpm.data.brain import unseen_ml
    from cddpm.data.prepare import aligned, prepare, prepare_whole
    from cddpm.data.scanner import as_scanned

    try:
        image, mask = volume.read_image(row.image), volume.read_mask(row.mask)
        segmentation = volume.read_segmentation(row.segmentation, labels_of(data, row)) if row.segmentation else None
        seen = as_scanned(image, aligned(image, mask), change, f"{row.dataset}/{row.subject}") if change else image
        done = (prepare_whole if data.whole_brain else prepare)(seen, mask, segmentation, data)
    except VolumeError as error:
        return _Failure(str(error))
    labels = [aligned(image, label) for label in (mask, segmentation) if label]
    for one in (image, *labels):
        for note in one.notes:
            logger.warning("%s: %s", told(str(one.path)), note)
    truth = axial(np.zeros_like(done.mask) if done.segmentation is None else done.segmentation)
    return {
        "image": axial(done.image.astype(np.float16)),
        "mask": axial(done.mask),
        "segmentation": (truth == 1).astype(np.uint8),
        "ignored": np.flatnonzero(truth == volume.IGNORED).astype(np.int32),
        "geometry": json.dumps(done.geometry.to_dict()),
        "brain_unseen_ml": unseen_ml(labels[0].data > 0, image, done.geometry),
        "lesion_unseen_ml": unseen_ml(labels[1].data == 1, image, done.geometry) if segmentation else 0.0,
    }


def _records(
    scans: list[ScanRow], results: Iterable[dict[str, Any] | _Failure], digests: dict[Path, str], modality: str
) -> Iterator[dict[str, Any]]:
    failures = []
    for row, result in zip(scans, results, strict=True):
        if isinstance(result, _Failure):
            failures.append(result.message)
        elif not failures:
            facts = {
                "dataset": row.dataset,
                "subject": row.subject,
                "modality": modality,
                "label": row.label,
                "age": row.age,
            }
            yield {**result, **facts, "digest": digests[row.image]}
    _refuse(failures)


def _refuse(messages: list[str]) -> None:
    if messages:
        raise DataError(told("\n".join(messages)))


def _relative(path: Path, root: Path) -> str:
    return str(path.relative_to(root)) if path.is_relative_to(root) else str(path)
