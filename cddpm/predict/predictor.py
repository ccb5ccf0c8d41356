"""From one scan and a model package to an anomaly map, a reconstruction and a segmentation on the scan's own grid.

The way is the one on which the model was chosen: preparation, rounding to float16, noise seeded by the volume's name, and
the scorer itself. For a volume of a slice store, under its name there, the anomaly map on the working grid is equal to
the scorer's (on the same kind of device) with the ``package`` window. The ``whole`` brain continues that window: the same inputs,
noise and predictions inside of it, so that maps differ there no further from its edges than the median filter reaches. In slices
where brain lies beside the window its predictions are blended with those of the tiles beside it, and any voxel may differ; with
``scoring.match_histogram``, which compares whole volumes, all of them.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage

from cddpm.config import ExperimentConfig, to_dict
from cddpm.data import brain
from cddpm.data.brain import suspicions
from cddpm.data.geometry import Geometry, reorient, to_input_grid
from cddpm.data.prepare import Prepared, aligned, prepare, prepare_whole
from cddpm.data.slices import OneScan, ScanRecord, axial, volumetric
from cddpm.data.volume import Volume, VolumeFileError
from cddpm.errors import ConfigError
from cddpm.models import precision
from cddpm.predict.coverage import Coverage, Window, looked_at
from cddpm.predict.scans import stem
from cddpm.reconstruct.cohort import Cohort
from cddpm.reconstruct.predict import Networks
from cddpm.scoring.calibration import given
from cddpm.scoring.figures import OverviewRow, slice_to_show
from cddpm.scoring.postprocess import bounding_box
from cddpm.scoring.score import ALL, Scorer
from cddpm.tracking.package import WEIGHTS, Package
from cddpm.training.checkpoint import trained, unpacked
from cddpm.training.stages import guide_config

INTENSITIES = "the scan's own, smoothed, between those that became 0 and 1"
IMPLAUSIBLE_FRACTION = 0.3
"""A larger part of the brain above the threshold speaks against the scan, not for a lesion."""
_TOUCHING = np.ones((3, 3, 3), bool)


@dataclass(frozen=True)
class WorkingGrid:
    """What the scorer made of the volume; (S, H, W) on the working grid."""

    image: NDArray[np.float16]
    reconstruction: NDArray[np.float32]
    """0 outside of the brain's bounding box."""
    anomaly_map: NDArray[np.float16]
    segmentation: NDArray[np.bool_]
    geometry: Geometry


@dataclass(frozen=True)
class BrainScores:
    """What an operating point needs of a scan: (s, h, w) in the smallest box of the working grid with all that scores."""

    anomaly_map: NDArray[np.float16]
    brain: NDArray[np.bool_]
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class Prediction:
    """Results on the scan's own grid (X, Y, Z), 0 outside of the brain mask and of what was looked at (``coverage``)."""

    anomaly_map: NDArray[np.float32]
    """Residual in units of [0, 1], to which the scan's intensities were brought."""
    reconstruction: NDArray[np.float32]
    """In intensities of the scan (see ``INTENSITIES``)."""
    segmentation: NDArray[np.uint8]
    coverage: Coverage
    working: WorkingGrid
    volume_key: str
    threshold: float
    scores: dict[str, float]
    intensities: tuple[float, float]
    """The scan's intensities that became 0 and 1."""
    warnings: tuple[str, ...]


class Predictor:
    """The network of a package, on a device, ready for scans."""

    def __init__(self, package: Package, device: torch.device | str = "cpu", window: Window = "whole") -> None:
        """Raises ``ArtifactError`` if the weights are of another architecture than the package's configuration says."""
        self.package, self.device = package, torch.device(device)
        self.window = looked_at(window, package.config.data)
        guide, source = guide_config(self.config), str(package.directory / WEIGHTS)
        own, guiding = unpacked(package.weights) if guide else (package.weights, {})
        self._model = trained(self.config, own, source, self.device)
        self._guide = trained(guide, guiding, source, self.device) if guide else None

    def predict_scan(
        self, image: Volume, mask: Volume | None = None, volume_key: str | None = None, dataset: str = ALL
    ) -> Prediction:
        """Find anomalies in a scan.

        Without ``mask`` one is estimated, with a warning. ``volume_key`` seeds the noise; empty: the file's name. The
        threshold is that of ``dataset``. Raises ``VolumeFileError`` for a scan that cannot be used, ``ConfigError`` for a
        data set without threshold, ``CddpmError`` if the network gives infinite values.
        """
        threshold = threshold_of(self.package, dataset)
        brain_mask, prepared = self._prepared(image, mask)
        key = stem(image.path) if volume_key is None else volume_key
        scorer, scoring = self._scorer(prepared, key), self.package.pipeline.scoring
        working = WorkingGrid(
            image=scorer.store.image(0),
            reconstruction=scorer.reconstruction(0, scoring),
            anomaly_map=scorer.anomaly_map(0, scoring),
            segmentation=scorer.segmentation(0, scoring, threshold),
            geometry=prepared.geometry,
        )
        geometry, coverage = prepared.geometry, self._coverage(brain_mask, prepared)
        inside = coverage.looked_at
        segmentation = to_input_grid(volumetric(working.segmentation).astype(np.uint8), geometry, 0) * inside
        anomaly = to_input_grid(volumetric(working.anomaly_map).astype(np.float32), geometry, 1)
        reconstruction = prepared.mapping.back(to_input_grid(volumetric(working.reconstruction), geometry, 1))
        scores = _scores(working, prepared, segmentation, brain_mask)
        return Prediction(
            anomaly_map=np.where(inside, anomaly, np.float32(0)),
            reconstruction=np.where(inside, reconstruction, np.float32(0)).astype(np.float32),
            segmentation=segmentation,
            coverage=coverage,
            working=working,
            volume_key=key,
            threshold=threshold,
            scores=scores,
            intensities=prepared.intensities,
            warnings=self._warnings(image, brain_mask, geometry, coverage, scores),
        )

    def _coverage(self, brain_mask: Volume, prepared: Prepared) -> Coverage:
        return Coverage.of(self.window, brain_mask, prepared, self.config.training.minimum_brain_fraction)

    def _warnings(
        self,
        image: Volume,
        brain_mask: Volume,
        geometry: Geometry,
        coverage: Coverage,
        scores: Mapping[str, float],
    ) -> tuple[str, ...]:
        """What speaks against a scan or its result, each once."""
        found = suspicions(image, brain_mask, geometry, self.package.config.data.modality)
        unlike = coverage.unlike(self.package.config.data.whole_brain)
        found += [unlike] if unlike else []
        fraction = scores.get("segmented_fraction_of_brain", 0.0)
        if fraction > IMPLAUSIBLE_FRACTION:
            found.append(
                f"{fraction:.0%} of the brain is above the threshold; this scan is probably of another kind than those that the "
                "model was made from"
            )
        return tuple(dict.fromkeys([*found, *self._here[1]]))

    def brain_scores(self, image: Volume, mask: Volume | None = None, volume_key: str | None = None) -> BrainScores:
        """The anomaly map of a scan, as ``predict_scan`` makes it, without a threshold. Raises as that does."""
        brain_mask, prepared = self._prepared(image, mask)
        scorer = self._scorer(prepared, stem(image.path) if volume_key is None else volume_key)
        scores, inside = scorer.anomaly_map(0, self.package.pipeline.scoring), scorer.store.mask(0) > 0
        box = bounding_box(inside | (scores > 0))  # the median filter may score beside the brain
        assert box is not None  # there is a brain
        coverage = self._coverage(brain_mask, prepared)
        return BrainScores(
            scores[box].copy(), inside[box].copy(), self._warnings(image, brain_mask, prepared.geometry, coverage, {})
        )

    def _prepared(self, image: Volume, mask: Volume | None) -> tuple[Volume, Prepared]:
        """The brain mask, estimated without one, and both as the network sees them."""
        brain_mask = brain.estimate_mask(image) if mask is None else aligned(image, mask)
        data = self.package.config.data
        whole = self.window == "whole"
        prepared = prepare_whole(image, brain_mask, None, data) if whole else prepare(image, brain_mask, None, data)
        if not prepared.mask.any():
            found = f"{int(np.count_nonzero(brain_mask.data))} brain voxels, none left at the model's resolution"
            raise VolumeFileError(str(image.path), "empty-mask", found, "a mask of the whole brain is needed")
        return brain_mask, prepared

    @property
    def config(self) -> ExperimentConfig:
        """The package's configuration in the number format that the device computes."""
        return self._here[0]

    @property
    def _here(self) -> tuple[ExperimentConfig, tuple[str, ...]]:
        return _computed_here(self.package.config, self.device)

    @property
    def settings(self) -> dict[str, Any]:
        """All settings that a prediction here depends on, as plain JSON data."""
        return settings(dataclasses.replace(self.package, config=self.config), self.window)

    def _scorer(self, prepared: Prepared, key: str) -> Scorer:
        """The scorer of a cohort of this one scan, as a healthy one."""
        pipeline, image = self.package.pipeline, axial(prepared.image.astype(np.float16))
        cohort = Cohort(OneScan(ScanRecord(key, prepared.geometry), image, axial(prepared.mask)), healthy=[0])
        networks = Networks(self.config, self._model, self._guide, self.device)
        reconstruction = cohort.reconstruct(networks, pipeline.scoring)
        return cohort.scorer(reconstruction, calibrated=given(pipeline.healthy_statistics))


def threshold_of(package: Package, dataset: str) -> float:
    """The operating point of a data set, fixed on validation. Raises ``ConfigError`` naming those that there are."""
    thresholds = package.pipeline.thresholds
    if dataset not in thresholds:
        raise ConfigError(
            f"data set '{dataset}': this model has no threshold for it; there are {', '.join(thresholds)}"
        )
    return thresholds[dataset]


def settings(package: Package, window: Window) -> dict[str, Any]:
    """All settings of a model that a prediction depends on, as plain JSON data; ``window`` where it is not the package's own."""
    config, window = package.config, looked_at(window, package.config.data)
    return {
        "data": to_dict(config.data.model_copy(update={"data_dir": None})),
        "noise": to_dict(config.diffusion.noise),
        "patch": to_dict(config.diffusion.patch),
        "reconstruction": to_dict(config.reconstruction),
        "scoring": to_dict(package.pipeline.scoring),
        "healthy_statistics": package.pipeline.healthy_statistics,
        "seed": config.seed,
        **({} if window == "package" else {"window": window}),
    }


def _computed_here(config: ExperimentConfig, device: torch.device) -> tuple[ExperimentConfig, tuple[str, ...]]:
    """``config`` in a number format that ``device`` computes, and what to tell if it is not the model's own."""
    kind: precision.Device = "cuda" if device.type == "cuda" else "cpu"
    config = precision.settled_for(config, kind)
    if config.reconstruction.precision == "float32" or (here := precision.hardware(kind)).bfloat16:
        return config, ()
    reconstruction = config.reconstruction.model_copy(update={"precision": "float32"})
    told = (
        f"computed in float32: the model was chosen in bfloat16, which {here.why} only emulates; anomaly scores differ in the "
        "third digit"
    )
    return config.model_copy(update={"reconstruction": reconstruction}), (told,)


def overview_rows(prediction: Prediction) -> list[OverviewRow]:
    """What to draw: the slice with most segmented voxels (else the highest sum of the map), and two through the brain."""
    working = prediction.working
    code = working.geometry.working_orientation
    image, reconstruction, anomaly, segmentation = (
        axial(reorient(volumetric(a), code, "LPS"))
        for a in (working.image, working.reconstruction, working.anomaly_map, working.segmentation)
    )
    brain_slices = np.flatnonzero((image > 0).any((1, 2)))
    shown = {slice_to_show(segmentation, anomaly): "most anomalous slice"}
    for label, part in (("lower", 0.35), ("upper", 0.65)):
        shown.setdefault(int(brain_slices[int(part * (len(brain_slices) - 1))]), f"{label} slice")
    return [
        OverviewRow(
            label,
            "",
            prediction.volume_key,
            None,
            prediction.threshold,
            image,
            reconstruction,
            anomaly,
            segmentation,
            None,
            i,
        )
        for i, label in shown.items()
    ]


def _scores(
    working: WorkingGrid, prepared: Prepared, segmentation: NDArray[np.uint8], mask: Volume
) -> dict[str, float]:
    in_brain = working.anomaly_map[axial(prepared.mask) > 0].astype(np.float64)
    _, components = ndimage.label(working.segmentation, _TOUCHING)
    voxels = int(np.count_nonzero(segmentation))
    return {
        "segmented_ml": voxels * brain.voxel_ml(mask),
        "segmented_fraction_of_brain": voxels / int(np.count_nonzero(mask.data)),
        "components": components,
        "brain_ml": brain.brain_ml(mask),
        "anomaly_mean": float(in_brain.mean()),
        "anomaly_99th_percentile": float(np.percentile(in_brain, 99)),
        "anomaly_maximum": float(in_brain.max()),
    }
