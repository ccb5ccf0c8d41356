"""Check all data before a GPU is asked for: every file is read once, every fault is in one report.

One bad file never hides the others: each fault becomes a ``Finding`` and reading goes on.
"""

import functools
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from cddpm.config import DataConfig
from cddpm.data import geometry as grid
from cddpm.data import volume
from cddpm.data.afar import told
from cddpm.data.brain import signs
from cddpm.data.finding import Finding, Report, Truth, alike, follow
from cddpm.data.geometry import Geometry
from cddpm.data.layout import Layout, ScanRow, scan_layout
from cddpm.data.many import ParallelMap, in_threads
from cddpm.data.prepare import aligned, label_on_working_grid, require_finite
from cddpm.data.reach import reaching
from cddpm.data.split import labels_of
from cddpm.data.volume import Volume, VolumeFileError
from cddpm.labels import PUBLISHED

__all__ = ["Finding", "Reading", "Report", "check", "read_scan"]


@dataclass(frozen=True)
class Reading:
    """One scan as far as its files could be read, and what is wrong with it; labels are on the image's grid where they can be."""

    row: ScanRow
    findings: tuple[Finding, ...]
    image: Volume | None
    mask: Volume | None
    segmentation: Volume | None
    geometry: Geometry | None
    """The way to the working grid; None after any error."""
    truth: Truth | None


@dataclass(frozen=True)
class _Scan:
    """What reading one scan gave: findings, and the digest of its voxels if it was readable."""

    row: ScanRow
    findings: tuple[Finding, ...]
    digest: str | None
    truth: Truth | None


def check(data: DataConfig, root: Path, parallel_map: ParallelMap | None = None) -> Report:
    """Read every split file and every scan that ``data`` names below ``root``, by ``parallel_map`` or in threads.

    Returns a ``Report`` with all faults of tables and files; raises nothing for them.
    """
    layout = scan_layout(data, root)
    scans = list((parallel_map or in_threads())(functools.partial(_look, data), layout.volumes()))
    truths = tuple(scan.truth for scan in scans if scan.truth and scan.row.dataset != data.healthy)
    findings = [
        *layout.findings,
        *alike(f for scan in scans for f in scan.findings),
        *_same_voxels(scans),
        *_nothing_to_score(data, layout, scans),
        *_several_labels(data, scans),
    ]
    findings = sorted(map(_named, findings), key=lambda f: f.severity != "error")
    return Report(tuple(findings), len(scans), layout.divisions, truths)


def _named(finding: Finding) -> Finding:
    """With the URIs of scans that lie in an object store."""
    others = tuple(map(told, finding.others))
    return replace(
        finding, file=told(finding.file), found=told(finding.found), allowed=told(finding.allowed), others=others
    )


def _look(data: DataConfig, row: ScanRow) -> _Scan:
    read = read_scan(data, row)
    digest = volume.voxel_digest(read.image) if read.image else None
    return _Scan(row, read.findings, digest, read.truth)


def read_scan(data: DataConfig, row: ScanRow) -> Reading:
    """Read all files of one scan; every fault becomes a finding."""
    findings: list[Finding] = []
    labels, segmentation, truth, geometry = labels_of(data, row), None, None, None
    image = _attempt(findings, volume.read_image, row.image)
    mask = _attempt(findings, volume.read_mask, row.mask)
    if row.segmentation:
        reading = functools.partial(volume.read_segmentation, labels=labels)
        segmentation = _attempt(findings, reading, row.segmentation)
    if image:
        mask, segmentation = (_attempt_aligned(findings, image, label) for label in (mask, segmentation))
        if mask:
            _attempt_finite(findings, image, mask)
    if segmentation:
        findings += _segmentation_findings(row, mask, segmentation)
    if not any(f.severity == "error" for f in findings) and image and mask:
        try:
            window = grid.plan(image, data, mask.data > 0)
            findings += _nothing_left(row, mask, window)
            geometry = reaching(window, mask.data > 0, data.smoothing_iterations) if data.whole_brain else window
            findings += _scan_findings(data, row, image, mask, geometry)
            if segmentation:
                truth = follow(row.dataset, row.subject, segmentation, labels, geometry)
                findings += _loss(row, truth)
        except Exception as error:  # noqa: BLE001 - as of reading: a brain of kilometres, say
            findings.append(_fault(row.image, error))
    return Reading(row, tuple(findings), image, mask, segmentation, geometry, truth)


def _scan_findings(
    data: DataConfig, row: ScanRow, image: Volume, mask: Volume, geometry: Geometry
) -> Iterator[Finding]:
    """What ``cddpm predict`` would warn of."""
    for sign in signs(image, mask, geometry, data.modality):
        yield Finding("warning", "suspicion", str(row.image), sign, "look at this scan before it is trained on")


def _nothing_left(row: ScanRow, mask: Volume, window: Geometry) -> Iterator[Finding]:
    """A brain of which nothing is left in the model's window."""
    if not label_on_working_grid(mask.data, window).any():
        found = f"{int(np.count_nonzero(mask.data))} brain voxels, none of them left on the working grid"
        allowed = "centre the scan, correct its voxel size, or change data.volume_shape"
        yield Finding("error", "empty-mask", str(row.mask), found, allowed)


def _loss(row: ScanRow, truth: Truth) -> Iterator[Finding]:
    if truth.loss:
        left_out = "left out of Dice and AUPRC" if not truth.working_voxels else "scored against what is left"
        allowed = f"{row.subject} is {left_out}; data.volume_shape and data.rescale_factor decide"
        yield Finding("warning", "lost-lesion", str(row.segmentation), truth.loss, allowed)


def _nothing_to_score(data: DataConfig, layout: Layout, scans: Iterable[_Scan]) -> Iterator[Finding]:
    """A cohort without any lesion on the working grid ends a sweep, after all its trainings."""
    by_key = {(scan.row.dataset, scan.row.subject): scan for scan in scans}
    cohorts: defaultdict[tuple[str, str], list[_Scan]] = defaultdict(list)
    for row in layout.rows:
        if row.dataset in data.unhealthy and row.fold in (None, data.fold):
            cohorts[row.dataset, row.split].append(by_key[row.dataset, row.subject])
    for (dataset, split), members in cohorts.items():
        told = any(f.severity == "error" for scan in members for f in scan.findings)
        missed = any(scan.row.label and not scan.row.segmentation for scan in members)  # told by the tables
        if not told and not missed and not any(scan.truth and scan.truth.working_voxels for scan in members):
            found = f"{dataset} {split}: none of its {len(members)} scans has a lesion voxel on the working grid"
            allowed = "at least one is needed to score; see its scans' labels, segmentations and warnings"
            yield Finding("error", "no-lesion", members[0].row.source, found, allowed)


def _several_labels(data: DataConfig, scans: Iterable[_Scan]) -> Iterator[Finding]:
    """Several labels that nobody gave a meaning all count as lesion."""
    there: defaultdict[str, dict[int, ScanRow]] = defaultdict(dict)
    for scan in scans:
        row = scan.row
        said = row.labels or row.dataset in {*data.lesion_labels, *data.ignored_labels, *PUBLISHED}
        for label in scan.truth.labels if scan.truth and not said else ():
            there[row.dataset].setdefault(label, row)
    for dataset, found in there.items():
        if len(found) > 1:
            told = f"{dataset}: labels {', '.join(map(str, sorted(found)))} all count as lesion"
            allowed = "if that is not right, set data.lesion_labels or data.ignored_labels"
            yield Finding("warning", "labels", str(found[max(found)].segmentation), told, allowed)


def _attempt(findings: list[Finding], read: Callable[[Path], Volume], path: Path) -> Volume | None:
    try:
        found = read(path)
    except Exception as error:  # noqa: BLE001 - a fault that nobody foresaw must not hide the other files
        findings.append(_fault(path, error))
        return None
    findings += [_mended(path, note) for note in found.notes]
    return found


def _fault(path: Path, error: Exception) -> Finding:
    if isinstance(error, VolumeFileError):
        return Finding("error", error.code, error.path, error.found, error.allowed)
    said = " ".join(str(error).split())
    return Finding("error", "unreadable", str(path), f"{type(error).__name__}: {said}", "replace this file")


def _attempt_aligned(findings: list[Finding], image: Volume, label: Volume | None) -> Volume | None:
    """``label`` on the grid of ``image``; as it is, with a finding, where that cannot be."""
    if label is None:
        return None
    try:
        found = aligned(image, label)
    except VolumeFileError as error:
        findings.append(_fault(label.path, error))
        return label
    findings += [_mended(label.path, note) for note in found.notes[len(label.notes) :]]
    return found


def _attempt_finite(findings: list[Finding], image: Volume, mask: Volume) -> None:
    if image.data.shape != mask.data.shape:
        return
    try:
        require_finite(image, mask)
    except VolumeFileError as error:
        findings.append(_fault(image.path, error))


def _mended(path: Path, note: str) -> Finding:
    return Finding("warning", "mended", str(path), note, "no need to act if that is right")


def _segmentation_findings(row: ScanRow, mask: Volume | None, segmentation: Volume) -> Iterator[Finding]:
    lesion = segmentation.data == 1
    voxels = int(np.count_nonzero(lesion))
    if row.label != 0 and not voxels:
        found = f"empty segmentation of {row.subject}, which has label {row.label}"
        yield Finding(
            "error", "empty-segmentation", str(segmentation.path), found, "correct the file or the label in its row"
        )
    if row.label == 0 and voxels:
        found = f"{voxels} voxels segmented in {row.subject}, which has label 0"
        yield Finding("error", "label", str(segmentation.path), found, "correct the file or the label in its row")
    if mask is not None and mask.data.shape == segmentation.data.shape and voxels:
        outside = int(np.count_nonzero(lesion & (mask.data == 0)))
        if outside > 0.5 * voxels:
            found = f"{outside} of {voxels} segmented voxels lie outside of the brain mask"
            yield Finding(
                "warning", "outside-mask", str(segmentation.path), found, "they cannot be found; look at the mask"
            )


def _same_voxels(scans: Iterable[_Scan]) -> Iterator[Finding]:
    by_digest: defaultdict[str, list[ScanRow]] = defaultdict(list)
    for scan in scans:
        if scan.digest:
            by_digest[scan.digest].append(scan.row)
    for first, *others in by_digest.values():
        for row in others:
            found = f"same voxels as {first.image} (subjects {row.subject} and {first.subject})"
            yield Finding(
                "error", "same-voxels", str(row.image), found, "one scan may stand for one subject only; remove one"
            )
