"""Every scan of a DATA_DIR or a table looked at: findings, figures, pictures, and which are odd among the others.

What a scan's files tell is kept in this node's cache under their places, sizes and times of change, so that a second page of the
same scans reads none of them.
"""

import base64
import functools
import itertools
import json
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from cddpm import artifact
from cddpm.config import DataConfig
from cddpm.data import quality, volume
from cddpm.data.afar import present, told
from cddpm.data.check import read_scan
from cddpm.data.exclusion import Exclusion, exclusion_file, read_exclusions
from cddpm.data.finding import Finding, refuse_errors
from cddpm.data.layout import ScanRow, whole_layout
from cddpm.data.many import ParallelMap, in_threads
from cddpm.data.outlier import FEWEST, ODD, Judged, further_figures, judge
from cddpm.data.prepared import Preparation, prepared
from cddpm.data.quality import FIGURES, Figure, Measured
from cddpm.data.split import labels_of
from cddpm.errors import DataError
from cddpm.report.thumbnail import Thumbnail, thumbnail
from cddpm.shelf import cache_root

VERSION = 1
"""Raised whenever what is kept of a scan changes."""
FOLDER = "cohort-page"
"""Below this node's cache."""
PREPARATION = "preparation"
"""Code of the findings that are warnings of a manifest."""
MOST_THREADS = 8
"""Each holds a scan and its distances, up to 300 MB at 1 mm."""
_NO_MODALITIES = {"mask", "seg"}
_OF_NO_MATTER = {
    "data_dir",
    "table",
    "phantom",
    "fold",
    "splits",
    "healthy",
    "unhealthy",
    "lesion_labels",
    "ignored_labels",
}
"""Settings that say which scans are looked at; what labels mean is told by the scan's own."""


@dataclass(frozen=True)
class Look:
    """What one scan's files tell: findings, figures, pictures; without figures and pictures if they could not be read."""

    findings: tuple[Finding, ...]
    digest: str | None
    """Of the voxels."""
    measured: Measured | None
    picture: Thumbnail | None


@dataclass(frozen=True)
class Scan:
    """One row of the page."""

    row: ScanRow
    modality: str
    splits: tuple[str, ...]
    """Of the fold that is looked at."""
    look: Look
    judged: Judged
    warned: bool
    """Whether preparation warns of its subject, and not of most others alike."""

    @property
    def score(self) -> float:
        """The largest |z|; one that preparation warns of stands behind no scan that is no outlier."""
        return max(self.judged.score, ODD) if self.warned else self.judged.score

    @property
    def key(self) -> str:
        """Its subject, in all modalities."""
        return f"{self.row.dataset}/{self.row.subject}"

    @property
    def unreadable(self) -> bool:
        """Whether its files have an error that forbids training."""
        return any(finding.severity == "error" for finding in self.look.findings)


@dataclass(frozen=True)
class Survey:
    """All scans, the oddest first, and what belongs to none of them."""

    place: str
    """DATA_DIR or the table, as a person names it."""
    scans: tuple[Scan, ...]
    figures: tuple[Figure, ...]
    listed: tuple[Exclusion, ...]
    """Those who are taken out already."""
    list_file: str
    findings: tuple[Finding, ...]
    """Of the tables."""
    common: Mapping[tuple[str, str], int]
    """Code and words of what was found of more than half of all scans, and of how many: said once, not in every row."""
    prepared: int
    """Subjects with a manifest of preparation."""

    def own(self, scan: Scan) -> list[Finding]:
        """What was found of ``scan``, but for what is ``common``."""
        return [one for one in scan.look.findings if (one.code, one.found) not in self.common]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON data."""
        out = {f"{one.dataset}/{one.subject}" for one in self.listed}
        return {
            "place": self.place,
            "exclusions": self.list_file,
            "scans": [
                {
                    "dataset": scan.row.dataset,
                    "subject": scan.row.subject,
                    "modality": scan.modality,
                    "image": told(str(scan.row.image)),
                    "splits": list(scan.splits),
                    "excluded": scan.key in out,
                    "score": scan.score,
                    "reasons": scan.judged.reasons(self.figures),
                    "findings": [finding.code for finding in scan.look.findings],
                    "warnings": [one.found for one in scan.look.findings if one.code == PREPARATION],
                    "figures": {key: asdict(one) for key, one in scan.judged.values.items()},
                }
                for scan in self.scans
            ],
        }


def modalities_in(root: Path) -> tuple[str, ...]:
    """Modalities that a DATA_DIR has folders of."""
    folders = (path for part in ("Train", "Test") for path in (root / part).glob("*/*") if path.is_dir())
    return tuple(sorted({path.name for path in folders} - _NO_MODALITIES))


def survey(
    data: DataConfig,
    root: Path,
    modalities: Sequence[str],
    parallel_map: ParallelMap | None = None,
    done: Callable[[int, int], None] = lambda count, of: None,
) -> Survey:
    """Look at every scan that ``data`` names below ``root``, in each of ``modalities``, excluded ones too.

    ``done(count, of)`` is called after each scan, from any thread. A data set that has no file of a modality is left out of it.
    Raises ``DataError`` when there is nothing to look at or the list of excluded subjects cannot be read, ``StorageError`` when
    the cache cannot be written.
    """
    listed, faults = read_exclusions(exclusion_file(data, root))
    refuse_errors(faults)
    items: list[tuple[DataConfig, ScanRow]] = []
    splits: dict[tuple[str, str, str], dict[str, None]] = {}
    findings: dict[Finding, None] = {}
    for modality in modalities:
        one = data.model_copy(update={"modality": modality})
        layout = whole_layout(one, root)
        findings |= dict.fromkeys(layout.findings)
        there = {row.dataset for row in layout.rows if row.image.exists()}
        items += [(one, row) for row in layout.volumes() if row.dataset in there]
        for row in layout.rows:
            if row.fold in (None, data.fold):
                splits.setdefault((row.dataset, row.subject, modality), {})[row.split] = None
    if not items:
        refuse_errors(findings)
        raise DataError(
            f"{root}: no scan of the modalities {', '.join(modalities)} is there; name another with --modality"
        )
    mapped = parallel_map or in_threads(MOST_THREADS)
    looks = list(mapped(functools.partial(_counted, itertools.count(1), len(items), done), items))
    manifests, none = prepared(root), Preparation({}, ())
    told_before = [manifests.get((row.dataset, row.subject), none) for _, row in items]
    looks = [_with_warnings(look, one.warnings) for look, one in zip(_twins(items, looks), told_before, strict=True)]
    known = [
        ((row.dataset, one.modality), look.measured, before.figures)
        for (one, row), look, before in zip(items, looks, told_before, strict=True)
    ]
    further = further_figures(name for _, _, figures in known for name in figures)
    figures = tuple(sorted((*FIGURES, *further), key=lambda figure: figure.logarithmic))  # lesions last
    common = _common(looks)
    scans = [
        Scan(
            row,
            one.modality,
            tuple(splits.get((row.dataset, row.subject, one.modality), ())),
            look,
            judged,
            any(found.code == PREPARATION and (found.code, found.found) not in common for found in look.findings),
        )
        for (one, row), look, judged in zip(items, looks, judge(known, figures), strict=True)
    ]
    scans.sort(key=lambda scan: (not scan.unreadable, -scan.score, scan.key, scan.modality))
    return Survey(
        place=told(str(root if data.table is None else data.table)),
        scans=tuple(scans),
        figures=figures,
        listed=tuple(listed),
        list_file=told(str(exclusion_file(data, root))),
        findings=tuple(findings),
        common=common,
        prepared=len({(row.dataset, row.subject) for _, row in items} & manifests.keys()),
    )


def _counted(
    counter: "itertools.count[int]", of: int, done: Callable[[int, int], None], item: tuple[DataConfig, ScanRow]
) -> Look:
    look = kept_look(*item)
    done(next(counter), of)
    return look


def _twins(items: Sequence[tuple[DataConfig, ScanRow]], looks: Sequence[Look]) -> list[Look]:
    """With a finding more for every scan that has the voxels of another one."""
    same: defaultdict[str, list[int]] = defaultdict(list)
    for index, look in enumerate(looks):
        if look.digest:
            same[look.digest].append(index)
    found = list(looks)
    for group in same.values():
        for index in group if len(group) > 1 else ():
            others = ", ".join(f"{items[i][1].subject} ({items[i][0].modality})" for i in group if i != index)
            finding = Finding(
                "error", "same-voxels", str(items[index][1].image), f"same voxels as {others}", "remove one"
            )
            found[index] = replace(found[index], findings=(*found[index].findings, finding))
    return found


def _with_warnings(look: Look, warnings: Sequence[str]) -> Look:
    """With a finding for each warning of preparation, behind what forbids training."""
    found = [Finding("warning", PREPARATION, "", one, "") for one in warnings]
    errors = [one for one in look.findings if one.severity == "error"]
    others = [one for one in look.findings if one.severity != "error"]
    return replace(look, findings=(*errors, *found, *others))


def _common(looks: Sequence[Look]) -> dict[tuple[str, str], int]:
    said = Counter((one.code, one.found) for look in looks for one in look.findings)
    return {finding: count for finding, count in said.items() if count > max(len(looks) / 2, FEWEST)}


def kept_look(data: DataConfig, row: ScanRow) -> Look:
    """What the files of a scan tell: from the cache, if they are as they were, or read now and kept there."""
    files = [path for path in (row.image, row.mask, row.segmentation) if path is not None]
    path = cache_root() / FOLDER / f"{artifact.fingerprint(str(row.image))}.json"
    try:
        stats = [(str(file), (stat := present(file).stat()).st_size, stat.st_mtime_ns) for file in files]
    except OSError:  # reading tells which, and why
        return look_at(data, row)
    settings = data.model_dump(mode="json", exclude=_OF_NO_MATTER)
    key = artifact.fingerprint(VERSION, quality.VERSION, stats, settings, asdict(labels_of(data, row)), row.label)
    try:
        kept = json.loads(path.read_bytes())
        if kept["key"] == key:
            return _unpacked(kept)
    except (OSError, ValueError, KeyError, TypeError):
        pass  # none yet, or of another form
    look = look_at(data, row)
    artifact.write_text(path, json.dumps({"key": key, **_packed(look)}))
    return look


def look_at(data: DataConfig, row: ScanRow) -> Look:
    """What the files of a scan tell, read now."""
    read = read_scan(data, row)
    digest = volume.voxel_digest(read.image) if read.image else None
    measured = quality.measure(read)
    if measured is None or read.image is None or read.mask is None:
        return Look(read.findings, digest, None, None)
    on_grid = read.segmentation is not None and read.segmentation.data.shape == read.image.data.shape
    return Look(
        read.findings, digest, measured, thumbnail(read.image, read.mask, read.segmentation if on_grid else None)
    )


def _packed(look: Look) -> dict[str, Any]:
    findings = [asdict(finding) for finding in look.findings]
    if look.measured is None or look.picture is None:
        return {"findings": findings, "digest": look.digest}
    measured = look.measured
    return {
        "findings": findings,
        "digest": look.digest,
        "figures": dict(measured.figures),
        "quantiles": measured.quantiles,
        "grid": measured.grid,
        "shape": measured.mask.shape,
        "mask": base64.b64encode(np.packbits(measured.mask).tobytes()).decode(),
        "picture": asdict(look.picture),
    }


def _unpacked(kept: dict[str, Any]) -> Look:
    findings = tuple(Finding(**{**one, "others": tuple(one["others"])}) for one in kept["findings"])
    if "figures" not in kept:
        return Look(findings, kept["digest"], None, None)
    shape, affine = kept["grid"]
    bits = np.frombuffer(base64.b64decode(kept["mask"]), np.uint8)
    mask = np.unpackbits(bits, count=int(np.prod(kept["shape"]))).reshape(kept["shape"]) > 0
    measured = Measured(kept["figures"], tuple(kept["quantiles"]), (tuple(shape), tuple(affine)), mask)
    return Look(findings, kept["digest"], measured, Thumbnail(**kept["picture"]))
