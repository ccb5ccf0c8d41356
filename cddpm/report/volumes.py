"""The champion's best, median and worst test volumes: to look through, and as pictures."""

from collections.abc import Iterator
from typing import Any
from urllib.parse import unquote

from numpy.typing import NDArray

from cddpm.config import ScoringConfig
from cddpm.data.geometry import Geometry, reorient, reorient_sizes
from cddpm.data.store import SliceStore
from cddpm.errors import ArtifactError, CddpmError
from cddpm.reconstruct.cohort import Cohort
from cddpm.reconstruct.reconstruction import Reconstruction
from cddpm.report.document import Block, Heading, Picture, Section, Viewer, Words
from cddpm.report.exhibit import Exhibit, packed
from cddpm.report.viewer import described
from cddpm.scoring.calibration import given
from cddpm.scoring.figures import OverviewRow, overview_rows
from cddpm.scoring.score import Scorer
from cddpm.search.champion import PICTURES, Contender
from cddpm.search.record import SweepRecord, TrialRecord
from cddpm.training import stages

ANCHOR, TITLE = "pictures", "Best, median and worst test volumes"
MOST_VOLUME_BYTES = 12_000_000
"""All volumes of a page together."""
MOST_PICTURE_BYTES = 3_000_000
"""All pictures of a page together; they grow by a third inside of it."""


def section(record: SweepRecord) -> Section:
    """A viewer of the volumes, if what they are made of is still there, and their pictures."""
    if not record.contenders or record.champion is None:
        words = "Volumes are shown when test is scored, at the sweep's end."
        return Section(ANCHOR, TITLE, [Words(words, "missing")])
    return Section(ANCHOR, TITLE, [*_pictures(record), *_viewer(record, record.champion, record.contenders[0])])


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
        name = unquote(path.stem) if path.parent.name == PICTURES else "all data sets"
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
    if record.origin is None:
        raise ArtifactError(f"{record.folder}: this sweep does not say which slice store it was made from")
    config = record.trial_config(trial)
    place = stages.Place(record.artifacts, record.artifacts / "store" / record.origin.store)
    cohort = Cohort.of(SliceStore.open(place.store, verify=False), config.data, "test")
    checkpoint = place.artifacts / stages.CHECKPOINT / trial.result.checkpoint
    path = stages.wanted_of(config, place, checkpoint, cohort.volumes).reconstruction(place.artifacts)
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
