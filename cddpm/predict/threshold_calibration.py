"""A threshold for somebody's own scans, where there are no lesions to tune on: the quantile of their healthy brains.

It is the operating point ``healthy-fpr``, on healthy scans that are not the model's own. What comes out is a small JSON file
beside the package, which stays as it is; ``cddpm predict --threshold-from`` takes it. How far the rate holds for other
people is told by leaving one scan out: the threshold of all the others, and the rate that the scan has there.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from cddpm import artifact
from cddpm.config import Frozen, to_dict
from cddpm.data.volume import read_image, read_mask
from cddpm.errors import ArtifactError, ConfigError, DataError, StorageError
from cddpm.predict.batch import told
from cddpm.predict.coverage import Window
from cddpm.predict.predictor import BrainScores, Predictor, settings
from cddpm.predict.scans import Job
from cddpm.scoring import operating_point
from cddpm.scoring.operating_point import Histogram
from cddpm.scoring.postprocess import component_rule, segment
from cddpm.scoring.score import ALL
from cddpm.text import command, printable
from cddpm.tracking.package import Package, weights_fingerprint

FEWEST_ABOVE = 10
"""Voxels above a threshold that a quantile needs to be more than chance."""
_NOTHING = np.empty(0, np.int64)
_LARGEST_FILE_BYTES = 64 * 2**20

Rate = Annotated[float, Field(ge=0, le=1)]


class LeftOut(Frozen):
    """One scan left out: what the threshold of all the others is, and the rate that the scan has there."""

    threshold: Annotated[float, Field(ge=0)]
    false_positive_rate: Rate


class CalibrationScan(Frozen):
    """A healthy scan that the threshold comes from."""

    scan: str
    scan_sha256: str
    mask_sha256: str | None
    """None: the mask was estimated."""
    volume_id: str
    brain_voxels: Annotated[int, Field(ge=1)]
    """Of the working grid."""
    false_positive_rate: Rate
    """Brain voxels above the threshold, over all."""
    after_component_filter: Rate
    """As that, of what a prediction segments."""
    left_out: LeftOut | None
    """None of the only scan."""


class CalibratedModel(Frozen):
    """What the threshold belongs to."""

    package: str
    """Fingerprint of the package; one with the same weights and settings takes the threshold too."""
    weights: str
    settings: str
    found: dict[str, Any]
    """Where the model was found."""


class ThresholdCalibration(Frozen):
    """What the file holds."""

    format: Literal[1] = 1
    operating_point: Literal["healthy-fpr"] = "healthy-fpr"
    healthy_false_positive_rate: Annotated[float, Field(gt=0, lt=1)]
    """Asked for: fraction of healthy brain voxels above the threshold, all scans pooled."""
    threshold: Annotated[float, Field(ge=0)]
    """The lowest with at most that rate."""
    false_positive_rate: Rate
    """The rate at it; scores are float16 numbers, of which many voxels may have the same."""
    after_component_filter: Rate
    """As that, of what a prediction segments."""
    brain_voxels: int
    scans: Annotated[tuple[CalibrationScan, ...], Field(min_length=1)]
    unused: tuple[str, ...] = ()
    """Why the others could not be used."""
    model: CalibratedModel
    settings: dict[str, Any]
    """All that the anomaly maps depend on but the weights."""
    device: str
    versions: dict[str, str]

    @property
    def left_out(self) -> tuple[LeftOut, ...]:
        """Of each scan; empty if there is but one."""
        return tuple(scan.left_out for scan in self.scans if scan.left_out is not None)


@dataclass(frozen=True)
class Measured:
    """A healthy scan, or why it cannot be used."""

    job: Job
    scores: BrainScores | None = None
    scan_sha256: str = ""
    mask_sha256: str | None = None
    error: str | None = None


def check_rate(rate: float) -> float:
    """``rate`` itself. Raises ``ConfigError`` outside of (0, 1)."""
    if not 0 < rate < 1:
        raise ConfigError(f"--fpr {rate:g}: allowed is more than 0 and less than 1, as 0.01 for one voxel in a hundred")
    return rate


def measure(predictor: Predictor, jobs: Iterable[Job]) -> Iterator[Measured]:
    """The anomaly map of each scan, in order; one that cannot be used, or comes again, says why and the others go on.

    Raises ``ConfigError`` and ``StorageError``, which concern all of them.
    """
    seen: dict[str, Path] = {}
    for job in jobs:
        try:
            image = read_image(job.scan)
            mask = read_mask(job.mask) if job.mask else None
            digests = [artifact.file_digest(path) if path else None for path in (job.scan, job.mask)]
            first = seen.setdefault(str(digests[0]), job.scan)
            if first is not job.scan:
                yield Measured(job, error=f"{job.scan}: the same scan as {first}; it counts once")
                continue
            scores = predictor.brain_scores(image, mask, job.key)
        except (StorageError, ConfigError):
            raise
        except Exception as error:  # noqa: BLE001 - as in a prediction
            yield Measured(job, error=told(job, error))
        else:
            yield Measured(job, scores, str(digests[0]), digests[1])


def calibrate(
    package: Package,
    measured: Sequence[Measured],
    rate: float,
    found: Mapping[str, Any],
    device: str,
    window: Window = "whole",
) -> ThresholdCalibration:
    """The threshold that at most the fraction ``rate`` of all brain voxels of ``measured`` lies above, and how sure it is.

    ``found``: where the model was found; ``window``: what of the brains was measured. Raises ``ConfigError`` for
    a rate outside of (0, 1), ``DataError`` without a usable scan or with too few voxels for that rate.
    """
    check_rate(rate)
    good = [(one, one.scores) for one in measured if one.scores is not None]
    if not good:
        raise DataError(f"none of {len(measured)} healthy scans can be used; a threshold needs at least one")
    histograms = [_brain(scores) for _, scores in good]
    voxels = sum(h.normal_voxels for h in histograms)
    if rate * voxels < FEWEST_ABOVE:
        raise DataError(
            f"--fpr {rate:g} of {voxels} brain voxels in {len(good)} scans is {rate * voxels:.2g} voxels; at least "
            f"{FEWEST_ABOVE} are needed: give more scans, or a rate of {_rounded_up(FEWEST_ABOVE / voxels):g} or more"
        )
    threshold = operating_point.quantile_threshold(histograms, rate)
    above = [operating_point.voxels_above(h, threshold) for h in histograms]
    kept = [_segmented(scores, package, threshold) for _, scores in good]
    scans = [
        CalibrationScan(
            scan=printable(str(one.job.scan.absolute())),
            scan_sha256=one.scan_sha256,
            mask_sha256=one.mask_sha256,
            volume_id=one.job.key,
            brain_voxels=h.normal_voxels,
            false_positive_rate=over / h.normal_voxels,
            after_component_filter=segmented / h.normal_voxels,
            left_out=left_out,
        )
        for (one, _), h, over, segmented, left_out in zip(
            good, histograms, above, kept, _left_out(histograms, rate), strict=True
        )
    ]
    return ThresholdCalibration(
        healthy_false_positive_rate=rate,
        threshold=threshold,
        false_positive_rate=sum(above) / voxels,
        after_component_filter=sum(kept) / voxels,
        brain_voxels=voxels,
        scans=tuple(scans),
        unused=tuple(one.error for one in measured if one.error is not None),
        model=_model(package, found, window),
        settings=settings(package, window),
        device=device,
        versions={name: version(name) for name in ("cddpm", "torch")},
    )


def write(path: Path, calibration: ThresholdCalibration) -> None:
    """Replace ``path``. Raises ``StorageError`` if the disk refuses."""
    artifact.write_json(path, to_dict(calibration))


def read(path: Path) -> ThresholdCalibration:
    """Read a calibration. Raises ``ArtifactError`` if it is none."""
    if path.is_file() and path.stat().st_size > _LARGEST_FILE_BYTES:
        raise ArtifactError(f"{path}: {path.stat().st_size} bytes; at most {_LARGEST_FILE_BYTES} are read")
    return artifact.read_json(
        path, ThresholdCalibration, "a calibration of this program", "'cddpm registry calibrate' makes one"
    )


def check_belongs(calibration: ThresholdCalibration, package: Package, what: str, window: Window = "whole") -> None:
    """Raises ``ConfigError`` that begins with ``what`` if it was made with other weights or settings than ``package``'s.

    What of a brain is looked at, ``window``, is one of the settings.
    """
    own = _model(package, {}, window)
    if calibration.model.weights != own.weights:
        raise ConfigError(
            f"{what}: was made for other weights ({calibration.model.weights}, these are {own.weights}); calibrate this model: "
            f"{_again(calibration)}"
        )
    if calibration.model.settings != own.settings:
        differing = sorted(_differences(calibration.settings, settings(package, window)))
        told = ", ".join(differing[:5]) or "those of the network"
        raise ConfigError(
            f"{what}: was made with other settings of the model ({told}); calibrate it again: {_again(calibration)}"
        )


def _again(calibration: ThresholdCalibration) -> str:
    rate = f"{calibration.healthy_false_positive_rate:g}"
    return command("cddpm", "registry", "calibrate", "REF", "--healthy", "FOLDER", "--fpr", rate)


def check_free(path: Path, package: Package, window: Window = "whole") -> None:
    """Raises ``ConfigError`` if ``path`` holds anything but a calibration of ``package``, which may be replaced."""
    if not path.exists():
        return
    try:
        check_belongs(read(path), package, f"--out {path}", window)
    except (ArtifactError, ConfigError) as error:
        raise ConfigError(f"{error}\n--out {path} is not replaced; name another file") from None


def applied(package: Package, calibration: ThresholdCalibration) -> Package:
    """``package`` with this threshold alone, for scans of any origin, and a fingerprint that tells it from the package's own.

    What was measured with other thresholds is left out.
    """
    threshold = calibration.threshold
    pipeline = package.pipeline.model_copy(update={"thresholds": {ALL: threshold}, "validation": {}})
    return replace(
        package, pipeline=pipeline, fingerprint=artifact.fingerprint(package.fingerprint, "threshold", threshold)
    )


def _brain(scores: BrainScores) -> Histogram:
    return operating_point.histogram(scores.anomaly_map[scores.brain], _NOTHING)


def _segmented(scores: BrainScores, package: Package, threshold: float) -> int:
    """Brain voxels that a prediction segments."""
    scoring = package.pipeline.scoring
    segmentation: NDArray[np.bool_] = segment(
        scores.anomaly_map, threshold, scoring.minimum_component_voxels, component_rule(scoring)
    )
    return int(np.count_nonzero(segmentation & scores.brain))


def _left_out(histograms: Sequence[Histogram], rate: float) -> Iterator[LeftOut | None]:
    whole = operating_point.pooled(histograms)
    for h in histograms:
        if len(histograms) == 1:
            yield None
            continue
        threshold = operating_point.quantile_threshold([operating_point.without(whole, h)], rate)
        above = operating_point.voxels_above(h, threshold)
        yield LeftOut(threshold=threshold, false_positive_rate=above / h.normal_voxels)


def _model(package: Package, found: Mapping[str, Any], window: Window) -> CalibratedModel:
    config = package.config
    networks = [to_dict(section) for section in (config.encoder, config.model, config.diffusion)]
    return CalibratedModel(
        package=package.fingerprint,
        weights=weights_fingerprint(package.weights),
        settings=artifact.fingerprint(networks, settings(package, window)),
        found=dict(found),
    )


def _differences(one: Mapping[str, Any], other: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for name in one.keys() | other.keys():
        before, now = one.get(name), other.get(name)
        if isinstance(before, Mapping) and isinstance(now, Mapping):
            yield from _differences(before, now, f"{prefix}{name}.")
        elif before != now:
            yield f"{prefix}{name}"


def _rounded_up(value: float) -> float:
    """To two digits, upwards: a rate that is told must be enough."""
    scale = 10.0 ** (math.floor(math.log10(value)) - 1)
    return math.ceil(value / scale) * scale
