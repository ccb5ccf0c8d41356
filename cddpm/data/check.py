"""Check all data before a GPU is asked for: every file is read once, every fault is in one report.

One bad file never hides the others: each fault becomes a ``Finding`` and reading goes on.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from cddpm.config import DataConfig
from cddpm.data import volume
from cddpm.data.alignment import aligned, require_finite
from cddpm.data.finding import Finding, Report
from cddpm.data.layout import ScanRow, scan_layout
from cddpm.data.volume import Volume, VolumeFileError

__all__ = ["Finding", "Report", "check"]


@dataclass(frozen=True)
class _Scan:
    """What reading one scan gave: findings, and the digest of its voxels if it was readable."""

    row: ScanRow
    findings: tuple[Finding, ...]
    digest: str | None


def check(data: DataConfig, root: Path, parallel: int = 1) -> Report:
    """Read every split file and every scan that ``data`` names below ``root``, ``parallel`` scans at a time.

    Returns a ``Report`` with all faults of tables and files; raises nothing for them.
    """
    layout = scan_layout(data, root)
    # Threads, not processes: decompression, digests and numpy release the lock, and start-up costs nothing.
    with ThreadPoolExecutor(max_workers=max(1, parallel)) as pool:
        scans = list(pool.map(_read_scan, layout.volumes()))
    findings = [*layout.findings, *(f for scan in scans for f in scan.findings), *_same_voxels(scans)]
    findings.sort(key=lambda f: f.severity != "error")
    return Report(tuple(findings), len(scans), layout.divisions)


def _read_scan(row: ScanRow) -> _Scan:
    findings: list[Finding] = []
    image = _attempt(findings, volume.read_image, row.image)
    mask = _attempt(findings, volume.read_mask, row.mask)
    segmentation = _attempt(findings, volume.read_segmentation, row.segmentation) if row.segmentation else None
    if image:
        mask, segmentation = (_attempt_aligned(findings, image, label) for label in (mask, segmentation))
        if mask:
            _attempt_finite(findings, image, mask)
    if segmentation:
        findings += _segmentation_findings(row, mask, segmentation)
    return _Scan(row, tuple(findings), volume.voxel_digest(image) if image else None)


def _attempt(findings: list[Finding], read: Callable[[Path], Volume], path: Path) -> Volume | None:
    try:
        found = read(path)
    except VolumeFileError as error:
        findings.append(_error(error))
        return None
    except Exception as error:  # noqa: BLE001 - a fault that nobody foresaw must not hide the other files
        findings.append(
            Finding("error", "unreadable", str(path), f"{type(error).__name__}: {error}", "replace this file")
        )
        return None
    findings += [_mended(path, note) for note in found.notes]
    return found


def _attempt_aligned(findings: list[Finding], image: Volume, label: Volume | None) -> Volume | None:
    """``label`` on the grid of ``image``; as it is, with a finding, where that cannot be."""
    if label is None:
        return None
    try:
        found = aligned(image, label)
    except VolumeFileError as error:
        findings.append(_error(error))
        return label
    findings += [_mended(label.path, note) for note in found.notes[len(label.notes) :]]
    return found


def _attempt_finite(findings: list[Finding], image: Volume, mask: Volume) -> None:
    if image.data.shape != mask.data.shape:
        return
    try:
        require_finite(image, mask)
    except VolumeFileError as error:
        findings.append(_error(error))


def _error(error: VolumeFileError) -> Finding:
    return Finding("error", error.code, error.path, error.found, error.allowed)


def _mended(path: Path, note: str) -> Finding:
    return Finding("warning", "mended", str(path), note, "no need to act if that is right")


def _segmentation_findings(row: ScanRow, mask: Volume | None, segmentation: Volume) -> Iterator[Finding]:
    voxels = int(segmentation.data.sum(dtype=int))
    if row.label != 0 and not voxels:
        found = f"empty segmentation of {row.subject}, which has label {row.label}"
        yield Finding(
            "error", "empty-segmentation", str(segmentation.path), found, "correct the file or the label in its row"
        )
    if row.label == 0 and voxels:
        found = f"{voxels} voxels segmented in {row.subject}, which has label 0"
        yield Finding("error", "label", str(segmentation.path), found, "correct the file or the label in its row")
    if mask is not None and mask.data.shape == segmentation.data.shape and voxels:
        outside = int((segmentation.data > mask.data).sum(dtype=int))
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
