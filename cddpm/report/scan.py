"""Predicted scans as one page to look through: what ``cddpm predict`` left of them, beside their truth where there is one."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cddpm import artifact
from cddpm.config import DataConfig, ScoringConfig
from cddpm.data import volume
from cddpm.data.geometry import reorient, reorient_sizes
from cddpm.data.prepare import aligned
from cddpm.data.volume import Volume
from cddpm.errors import ArtifactError
from cddpm.labels import Labels
from cddpm.predict.result import ANOMALY_MAP, RECONSTRUCTION, RESULT, SEGMENTATION, scan_of
from cddpm.report.document import Block, Cell, Facts, Heading, Section, Table, Words, cell, page
from cddpm.report.viewer import Exhibit, described, viewer
from cddpm.scoring import metrics
from cddpm.text import printable
from cddpm.text.numbers import percent, score

MOST_BYTES = 200_000_000
"""A larger page is refused: browsers do not open it in reasonable time."""


@dataclass(frozen=True)
class PredictedScan:
    """A scan with its prediction, all on the scan's own grid."""

    folder: Path
    result: Mapping[str, Any]
    exhibit: Exhibit

    @property
    def dice(self) -> float | None:
        """Of the kept segmentation; none without truth, or where both are empty."""
        truth = self.exhibit.truth
        return None if truth is None else metrics.dice(self.exhibit.segmentation, truth)


def find(places: Sequence[Path]) -> list[Path]:
    """Folders with a prediction: each place is one, or holds some at any depth; those of one place by their paths.

    Raises ``ArtifactError`` for a place without any.
    """
    found: list[Path] = []
    for place in places:
        folders = sorted(path.parent for path in place.rglob(RESULT))
        if not folders:
            raise ArtifactError(
                f"{place}: no prediction here (no {RESULT}, nor in any folder below); give what 'cddpm predict --out' named"
            )
        found += folders
    return list(dict.fromkeys(found))


def names(folders: Sequence[Path]) -> list[str]:
    """What each prediction is called: its folder, with as much of the way to it as tells it from the others."""
    places = [folder.resolve() for folder in folders]
    shared = Path(os.path.commonpath([place.parent for place in places])) if places else Path()
    return [printable(place.relative_to(shared).as_posix()) for place in places]


def read(folder: Path, truth: Path | None = None, name: str | None = None) -> PredictedScan:
    """Read a prediction, its scan and ``truth``, a segmentation on the scan's grid; it is called ``name``, or as its folder.

    The labels are those of the data set whose threshold was used, or of the model's only one if that of all was.

    Raises ``ArtifactError`` for a folder that is no whole prediction, or a scan that has changed since; ``VolumeFileError``
    for a file that cannot be read or lies on another grid.
    """
    result = _result(folder)
    try:
        file = scan_of(folder, result)
        image = volume.read_image(file)
        low, high = float(result["intensities"]["at_0"]), float(result["intensities"]["at_1"])
        threshold, note = float(result["threshold"]), _note(result)
    except (KeyError, TypeError, ValueError) as error:
        raise ArtifactError(
            f"{folder / RESULT}: not the result of a prediction ({error!r}); predict this scan again"
        ) from error
    anomaly, reconstruction = (volume.read_map(folder / file) for file in (ANOMALY_MAP, RECONSTRUCTION))
    kept = volume.read_segmentation(folder / SEGMENTATION)
    true = None if truth is None else aligned(image, volume.read_segmentation(truth, _labels(result)))
    for other in (anomaly, reconstruction, kept):
        volume.require_same_grid(image, other)
    if true is not None:
        for found in (anomaly, kept):
            found.data[true.data == volume.IGNORED] = 0  # counts neither way, at no threshold
    exhibit = Exhibit(
        name=names([folder])[0] if name is None else name,
        image=_lps(image),
        reconstruction=_lps(reconstruction),
        window=(low, high),
        anomaly_map=_lps(anomaly),
        segmentation=_lps(kept) > 0,
        truth=None if true is None else _lps(true) == 1,
        threshold=threshold,
        voxel_size_mm=reorient_sizes(image.voxel_size_mm, volume.axis_codes(image.affine), "LPS"),
        note=" ".join([note, *(f"The truth: {told}." for told in (true.notes if true else ()))]),
    )
    return PredictedScan(folder, {**result, "scan": str(file)}, exhibit)


def write(scans: Sequence[PredictedScan], path: Path) -> Path:
    """Write the page of ``scans`` to the file ``path``; returns it.

    Raises ``ArtifactError`` for more than a page can hold, ``StorageError`` if the disk refuses.
    """
    text = html(scans)
    if len(text) > MOST_BYTES:
        raise ArtifactError(
            f"{len(scans)} scans make a page of {len(text) / 1e6:.0f} MB; browsers open up to {MOST_BYTES / 1e6:.0f} MB: give "
            "fewer scans at a time"
        )
    artifact.write_text(path, text)
    return path


def html(scans: Sequence[PredictedScan]) -> str:
    """The page of one scan or several."""
    title = f"Scan {scans[0].exhibit.name}" if len(scans) == 1 else f"{len(scans)} scans"
    sections = [
        Section("viewer-section", "Look through", [viewer([scan.exhibit for scan in scans])]),
        Section("findings", "Findings", [_findings(scans)]),
        Section("provenance", "Provenance", [block for scan in scans for block in _origin(scan, len(scans) > 1)]),
    ]
    warnings = [
        Words(f"{scan.exhibit.name}: {text}", "missing") for scan in scans for text in scan.result.get("warnings", [])
    ]
    words = Words("Anomalies by a model that was trained on healthy scans. For research, not for diagnosis.")
    return page(title, [words, *warnings], sections)


def _findings(scans: Sequence[PredictedScan]) -> Table:
    measured = list(dict.fromkeys(name for scan in scans for name in scan.result["scores"]))
    lines = [
        [
            Cell(scan.exhibit.name),
            cell(scan.exhibit.threshold),
            *([cell(scan.dice, score)] if any(s.exhibit.truth is not None for s in scans) else []),
            *(cell(scan.result["scores"].get(name)) for name in measured),
        ]
        for scan in scans
    ]
    dice = ["Dice"] if any(s.exhibit.truth is not None for s in scans) else []
    caption = (
        "At the operating point, after the component filter. Dice is that of the kept segmentation, on the scan's grid."
    )
    return Table(caption, ["scan", "threshold", *dice, *(name.replace("_", " ") for name in measured)], lines)


def _origin(scan: PredictedScan, several: bool) -> list[Block]:
    result, model = scan.result, scan.result.get("model", {})
    known = {
        "scan": result.get("scan"),
        "brain mask": result.get("mask"),
        "prediction": str(scan.folder),
        "threshold of": result.get("dataset"),
        "looked at": _looked_at(result.get("coverage")),
        "registered model": model.get("registered_model"),
        "version": model.get("version"),
        "sweep": model.get("sweep"),
        "trial": model.get("trial"),
        "package": model.get("fingerprint"),
        **{f"{kind} (fingerprint)": name for kind, name in model.get("made_from", {}).items()},
        **result.get("versions", {}),
    }
    facts = Facts({name: str(value) for name, value in known.items() if value is not None})
    return [Heading(scan.exhibit.name), facts] if several else [facts]


def _looked_at(coverage: Mapping[str, Any] | None) -> str | None:
    if coverage is None:
        return None
    beyond = (
        f", {coverage['beyond_window_ml']:.0f} ml of it beyond the model's window"
        if coverage["beyond_window_ml"]
        else ""
    )
    return f"{percent(coverage['looked_at_fraction_of_brain'])} of the brain{beyond}"


def _result(folder: Path) -> dict[str, Any]:
    return artifact.read_json(folder / RESULT, dict[str, Any], "the result of a prediction", "predict this scan again")


def _labels(result: Mapping[str, Any]) -> Labels:
    data = DataConfig.model_validate(result.get("settings", {}).get("data", {}))
    named = [name for name in data.unhealthy if name == result.get("dataset")] or data.unhealthy
    return data.labels_of(named[0]) if len(named) == 1 else Labels()


def _note(result: Mapping[str, Any]) -> str:
    grid, working = result["grid"], result["working_grid"]
    shape, size = (" x ".join(f"{n:.3g}" for n in grid[key]) for key in ("shape", "voxel_size_mm"))
    own = " x ".join(str(n) for n in working["working_shape"])
    scoring = ScoringConfig.model_validate(result["settings"]["scoring"])
    return (
        f"Everything is on the scan's own grid ({shape} voxels of {size} mm). The threshold acts on {ANOMALY_MAP}, the model's "
        f"map (on {own} voxels) brought to this grid by linear interpolation; a voxel counts if its score is strictly above, "
        f"and Dice is over all voxels of the scan. {described(scoring)} The kept segmentation was made on the model's grid and "
        "brought here by the nearest voxel, so that its Dice may differ from that at the operating point. The best Dice of a "
        "volume is looked up in its truth: a bound, not a result."
    )


def _lps(scan: Volume) -> Any:
    return reorient(scan.data, volume.axis_codes(scan.affine), "LPS")
