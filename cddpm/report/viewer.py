"""Volumes to look through in a page: slices, overlays, and a threshold with the Dice that it has; those of a sweep's champion.

A page carries one byte per voxel; scores lose nothing at any threshold on offer. A slider has up to 255 thresholds, its
**stops**. A voxel's score is kept as the number of stops strictly below it, its **level**: "score > stop i" is then exactly
"level > i", so that every count in the page, and every Dice of counts, is the one of the map itself, whatever its number type.
"""

import base64
import gzip
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

import numpy as np
from numpy.typing import NDArray

from cddpm.config import ScoringConfig
from cddpm.data.geometry import Geometry, reorient, reorient_sizes
from cddpm.data.store import SliceStore
from cddpm.errors import ArtifactError, CddpmError
from cddpm.reconstruct.cohort import Cohort
from cddpm.reconstruct.reconstruction import Reconstruction
from cddpm.report.document import Block, Heading, Picture, Section, Viewer, Words
from cddpm.scoring import metrics
from cddpm.scoring.calibration import given
from cddpm.scoring.figures import OverviewRow, overview_rows, slice_to_show
from cddpm.scoring.score import Scorer
from cddpm.search.champion import PICTURES, Contender
from cddpm.search.record import SweepRecord, TrialRecord
from cddpm.text.numbers import number
from cddpm.training import prediction, stages

MOST_STOPS = 255
SEGMENTED, LESION = 1, 2
"""Bits of a voxel's mark."""


@dataclass(frozen=True)
class Exhibit:
    """One volume to look at. Arrays (X, Y, Z) point to the patient's left, back and head (LPS)."""

    name: str
    image: NDArray[np.floating]
    reconstruction: NDArray[np.floating]
    """In the unit of ``image``."""
    window: tuple[float, float]
    """Intensities that are drawn black and white, in both."""
    anomaly_map: NDArray[np.floating]
    """>= 0; what the threshold acts on."""
    segmentation: NDArray[np.bool_]
    """As it was kept, at ``threshold``."""
    truth: NDArray[np.bool_] | None
    """None where nobody has segmented the volume."""
    threshold: float
    """The operating point, fixed before this volume was seen."""
    voxel_size_mm: tuple[float, float, float]
    note: str
    """What is in the map and in the segmentation, and on which grid."""


def stops(anomaly_map: NDArray[np.floating], threshold: float) -> NDArray[np.float64]:
    """Thresholds on offer, rising: even steps, and ``threshold`` itself to the last bit.

    The steps go from 0 to the largest score, or to ``threshold`` if that is larger, and are float32 numbers.
    """
    top = max(float(anomaly_map.max(initial=0.0)), threshold)
    even = np.linspace(0.0, top, MOST_STOPS - 1).astype(np.float32).astype(np.float64)
    return np.unique(np.append(even[even <= top], threshold))


def levels(anomaly_map: NDArray[np.floating], thresholds: NDArray[np.float64]) -> NDArray[np.uint8]:
    """Per voxel the number of ``thresholds`` (rising, up to 255) strictly below its score."""
    return np.searchsorted(thresholds, anomaly_map.astype(np.float64), side="left").astype(np.uint8)


def packed(exhibit: Exhibit) -> str:
    """The volume as JSON that may stand inside a script element: what is known of it, and its voxels as base64 of gzip.

    Voxels outside of the smallest box with anything in it are left out. Four blocks of (Z, Y, X) bytes follow each other:
    image, reconstruction, levels, marks; each byte is kept as its difference (mod 256) to the one before, which packs smaller.
    """
    thresholds = stops(exhibit.anomaly_map, exhibit.threshold)
    box = _box(exhibit)
    truth = np.zeros(exhibit.segmentation.shape, bool) if exhibit.truth is None else exhibit.truth
    blocks = [
        _shades(exhibit.image[box], exhibit.window),
        _shades(exhibit.reconstruction[box], exhibit.window),
        levels(exhibit.anomaly_map[box], thresholds),
        SEGMENTED * exhibit.segmentation[box].astype(np.uint8) + LESION * truth[box].astype(np.uint8),
    ]
    voxels = np.concatenate([block.transpose(2, 1, 0).ravel() for block in blocks])
    steps = np.diff(voxels, prepend=np.uint8(0))
    found = {
        "name": exhibit.name,
        "shape": [part.stop - part.start for part in box],
        "first": [part.start for part in box],
        "whole": list(exhibit.anomaly_map.shape),
        "voxel_size_mm": list(exhibit.voxel_size_mm),
        "stops": thresholds.tolist(),
        "threshold": exhibit.threshold,
        "truth": exhibit.truth is not None,
        "kept_dice": None if exhibit.truth is None else metrics.dice(exhibit.segmentation, truth),
        "slice": _first_slice(exhibit) - box[2].start,
        "note": exhibit.note,
        "voxels": base64.b64encode(gzip.compress(steps.tobytes(), compresslevel=6, mtime=0)).decode(),
    }
    return json.dumps(found).replace("<", "\\u003c")


def _box(exhibit: Exhibit) -> tuple[slice, slice, slice]:
    """Smallest box with everything that is not 0; the whole volume if all is."""
    there: NDArray[np.bool_] = (exhibit.image != 0) | (exhibit.anomaly_map > 0) | exhibit.segmentation
    if exhibit.truth is not None:
        there = there | exhibit.truth
    sides: list[Any] = []
    for axis in range(3):
        used = np.flatnonzero(there.any(axis=tuple(a for a in range(3) if a != axis)))
        sides.append(slice(int(used[0]), int(used[-1]) + 1) if used.size else slice(0, there.shape[axis]))
    return sides[0], sides[1], sides[2]


def _shades(array: NDArray[np.floating], window: tuple[float, float]) -> NDArray[np.uint8]:
    low, high = window
    return np.rint(255 * np.clip((array.astype(np.float32) - low) / max(high - low, 1e-9), 0, 1)).astype(np.uint8)


def _first_slice(exhibit: Exhibit) -> int:
    """The axial slice with most lesion, else with most that is segmented, else of the highest summed score."""
    truth = exhibit.truth if exhibit.truth is not None and exhibit.truth.any() else exhibit.segmentation
    return slice_to_show(truth.transpose(2, 0, 1), exhibit.anomaly_map.transpose(2, 0, 1))


def viewer(exhibits: Sequence[Exhibit]) -> Viewer:
    """The viewer of one or more volumes."""
    return Viewer([packed(exhibit) for exhibit in exhibits])


def described(scoring: ScoringConfig) -> str:
    """What stands between residual and threshold, and what comes after it, in words."""
    eroded = "" if scoring.erosion_divisor is None else f", brain mask eroded (divisor {scoring.erosion_divisor})"
    median = "no median filter" if scoring.median_kernel == 1 else f"3D median filter of {scoring.median_kernel} voxels"
    before = f"The anomaly map is post-processed: residual {scoring.residual}{eroded}, {median}."
    if scoring.minimum_component_voxels <= 1:
        return f"{before} The kept segmentation has no component filter either."
    size = "holes filled" if scoring.component_size == "filled" else "holes not counted"
    return (
        f"{before} The kept segmentation is also without components of fewer than {number(scoring.minimum_component_voxels)} "
        f"voxels ({scoring.connectivity} neighbours, {size}); the live threshold works without that filter."
    )


_ANCHOR, _TITLE = "pictures", "Best, median and worst test volumes"
MOST_VOLUME_BYTES = 12_000_000
"""All volumes of a page together."""
MOST_PICTURE_BYTES = 3_000_000
"""All pictures of a page together; they grow by a third inside of it."""


def section(record: SweepRecord) -> Section:
    """A viewer of the volumes, if what they are made of is still there, and their pictures."""
    if not record.contenders or record.champion is None:
        words = "Volumes are shown when test is scored, at the sweep's end."
        return Section(_ANCHOR, _TITLE, [Words(words, "missing")])
    return Section(_ANCHOR, _TITLE, [*_pictures(record), *_viewer(record, record.champion, record.contenders[0])])


def _viewer(record: SweepRecord, trial: TrialRecord, tested: Contender) -> list[Block]:
    packs: list[str] = []
    missing: list[str] = []
    left = MOST_VOLUME_BYTES
    try:
        for exhibit in exhibits(record, trial, tested):
            pack = packed(exhibit)
            left -= len(pack)
            (packs if left >= 0 else missing).append(pack if left >= 0 else exhibit.name)
    except CddpmError as error:
        return [Words(f"The volumes cannot be looked through: {error}", "missing")]
    small = f"Left out to keep this page small: {', '.join(missing)}."
    shown: list[Block] = [Heading("Look through them"), Viewer(packs)] if packs else []
    return [*shown, *([Words(small, "missing")] if missing else [])]


def _pictures(record: SweepRecord) -> list[Block]:
    files = sorted((record.folder / PICTURES).glob("*.png")) or sorted(record.folder.glob("champion.png"))
    found: list[Block] = []
    left = MOST_PICTURE_BYTES
    for path in files:
        name = unquote(path.stem) if path.parent.name == PICTURES.name else "all data sets"
        left -= path.stat().st_size
        if left < 0:
            found.append(Words(f"{name}: left out to keep this page small; see {path}", "missing"))
            continue
        words = (
            f"{name}: the champion's best, median and worst test volume by Dice, at the operating point of validation; input, "
            "reconstruction, anomaly map (green line: threshold), segmentation (red) and truth (green)."
        )
        found.append(Picture(path.read_bytes(), words))
    return found or [Words("No picture of a test volume was kept.", "missing")]


def exhibits(record: SweepRecord, trial: TrialRecord, tested: Contender) -> Iterator[Exhibit]:
    """Best, median and worst test volume of each data set, scored once more from the reconstructions that are kept.

    Raises ``CddpmError`` if these or the store are gone.
    """
    scorer = _scorer(record, trial)
    for dataset in scorer.datasets:
        rows = [row for row in tested.test.rows if row["dataset"] == dataset]
        indices = {row["volume"]: row["volume_index"] for row in rows}
        for row in overview_rows(scorer, tested.scoring, rows):
            yield _exhibit(row, scorer.store.volumes[indices[row.volume]].geometry, tested.scoring)


def _scorer(record: SweepRecord, trial: TrialRecord) -> Scorer:
    """Of the test volumes under the champion's settings."""
    assert trial.result is not None  # a champion has one
    store, config = record.store_of(trial), record.trial_config(trial)
    if store is None:
        raise ArtifactError(f"{record.folder}: this sweep does not say which slice store it was made from")
    place = stages.Place(record.artifacts, record.artifacts / "store" / store)
    cohort = Cohort.of(SliceStore.open(place.store, verify=False), config.data, "test")
    checkpoint = place.artifacts / stages.CHECKPOINT / trial.result.checkpoint
    path = prediction.wanted_of(config, place, checkpoint, cohort.volumes).reconstruction
    return cohort.scorer(Reconstruction.open(path), calibrated=given(trial.result.best.statistics))


def _exhibit(row: OverviewRow, geometry: Geometry, scoring: ScoringConfig) -> Exhibit:
    def lps(array: NDArray[Any]) -> NDArray[Any]:
        return reorient(array.transpose(1, 2, 0), geometry.working_orientation, "LPS")

    dice = "no lesion" if row.dice is None else f"Dice {row.dice:.3f}"
    sizes = " x ".join(f"{size:.3g}" for size in geometry.working_voxel_size_mm)
    return Exhibit(
        name=f"{row.dataset}, {row.label}: {row.volume} ({dice})",
        image=lps(row.image),
        reconstruction=lps(row.reconstruction),
        window=(0.0, 1.0),
        anomaly_map=lps(row.anomaly_map),
        segmentation=lps(row.segmentation),
        truth=None if row.truth is None else lps(row.truth),
        threshold=row.threshold,
        voxel_size_mm=reorient_sizes(geometry.working_voxel_size_mm, geometry.working_orientation, "LPS"),
        note=(
            f"Everything is on the model's grid (voxels of {sizes} mm), where the sweep has scored. A voxel counts if its score "
            f"is strictly above the threshold, and Dice is over all voxels of the volume. {described(scoring)} The operating "
            "point is that of validation. The best Dice of a volume is looked up in its truth: a bound, not a result."
        ),
    )
