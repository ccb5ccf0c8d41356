"""Numbers of one volume, each under its right name: voxels, lesions and surfaces against the truth; fidelity to the input.

A number that is undefined (a ratio with nothing below the line) is ``None``: never NaN, and left out of means.

**Lesion by lesion.** Lesions and predictions are 26-connected components. The rule: a lesion is *found* if more than a given
fraction of its voxels is predicted, and a predicted component is *right* if more than that fraction of its voxels is lesion.
With 0 (the default) one common voxel is enough. Recall = found lesions / lesions, precision = right components / components,
F1 = their harmonic mean. One component may find several lesions, and several components may be right about one lesion.

**Surfaces.** The surface of a mask are its voxels with a face neighbour outside of it. From every surface voxel the distance to
the nearest one of the other mask is taken; the Hausdorff distance is the largest of these in both directions, and HD95 the
larger of the two directions' 95th percentiles (MONAI's definition, as in the BraTS challenge).

**Fidelity.** How faithfully a reconstruction gives back its input, in the brain, in lesions and in healthy tissue. Intensities
are those of the slice store, [0, 1] but for a little overshoot; the data range of SSIM and PSNR is 1.
"""

import math
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from cddpm.scoring.postprocess import bounding_box

METRICS = (
    "dice",
    "dice_before_component_filter",
    "oracle_dice",
    "oracle_dice_before_component_filter",
    "auprc",
    "auroc",
    "precision",
    "recall",
    "specificity",
    "false_positive_rate",
    "false_discovery_rate",
)
"""Per-volume numbers that are averaged over volumes."""


@dataclass(frozen=True)
class Confusion:
    """Voxels by prediction and truth."""

    true_positive: int
    false_positive: int
    false_negative: int
    true_negative: int

    @property
    def dice(self) -> float | None:
        """2 TP / (2 TP + FP + FN); none if neither prediction nor truth has a voxel."""
        return _ratio(2 * self.true_positive, 2 * self.true_positive + self.false_positive + self.false_negative)

    @property
    def precision(self) -> float | None:
        """TP / (TP + FP): which part of the prediction is lesion; none for an empty prediction."""
        return _ratio(self.true_positive, self.true_positive + self.false_positive)

    @property
    def recall(self) -> float | None:
        """TP / (TP + FN), also called sensitivity or true positive rate; none without lesion."""
        return _ratio(self.true_positive, self.true_positive + self.false_negative)

    @property
    def specificity(self) -> float | None:
        """TN / (TN + FP)."""
        return _ratio(self.true_negative, self.true_negative + self.false_positive)

    @property
    def false_positive_rate(self) -> float | None:
        """FP / (FP + TN) = 1 - specificity."""
        return _ratio(self.false_positive, self.false_positive + self.true_negative)

    @property
    def false_discovery_rate(self) -> float | None:
        """FP / (FP + TP) = 1 - precision (what the reference calls "fpr"); none for an empty prediction."""
        return _ratio(self.false_positive, self.false_positive + self.true_positive)


def _ratio(part: int, whole: int) -> float | None:
    return part / whole if whole else None


def confusion(prediction: NDArray[np.bool_], truth: NDArray[np.bool_]) -> Confusion:
    """Count voxels; two boolean arrays of one shape. Raises ``ValueError`` if the shapes differ."""
    if prediction.shape != truth.shape:
        raise ValueError(f"prediction {prediction.shape} and truth {truth.shape} differ in shape")
    both, predicted, lesion = (int(np.count_nonzero(a)) for a in (prediction & truth, prediction, truth))
    return counted(both, predicted, lesion, prediction.size)


def counted(both: int, predicted: int, lesion: int, every: int) -> Confusion:
    """Of ``every`` voxel how many are ``predicted``, ``lesion`` and ``both``."""
    return Confusion(both, predicted - both, lesion - both, every - predicted - lesion + both)


def dice(prediction: NDArray[np.bool_], truth: NDArray[np.bool_]) -> float | None:
    """Dice overlap; none if both are empty."""
    return confusion(prediction, truth).dice


def mean(values: Iterable[float | None]) -> float | None:
    """Mean of the defined values; none if there is none."""
    defined = [value for value in values if value is not None]
    return math.fsum(defined) / len(defined) if defined else None


def standard_deviation(values: Iterable[float | None]) -> float | None:
    """Population standard deviation of the defined values; none if there is none."""
    defined = [value for value in values if value is not None]
    centre = mean(defined)
    if centre is None:
        return None
    return math.sqrt(math.fsum((value - centre) ** 2 for value in defined) / len(defined))


@dataclass(frozen=True)
class Evaluation:
    """Per-volume table and aggregates per data set, at given thresholds."""

    rows: list[dict[str, Any]]
    aggregates: dict[str, dict[str, float]]


def aggregate(rows: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """Mean, standard deviation and number of volumes with a value, per metric, over rows of volumes.

    Keys are ``dice``, ``dice_std``, ``dice_volumes`` and so on for ``METRICS``; undefined means are absent.
    """
    table = list(rows)
    result: dict[str, float] = {"volumes": len(table)}
    for name in METRICS:
        values = [row[name] for row in table if row.get(name) is not None]
        centre, spread = mean(values), standard_deviation(values)
        if centre is not None and spread is not None:
            result |= {name: centre, f"{name}_std": spread, f"{name}_volumes": len(values)}
    return result


_TOUCHING = np.ones((3, 3, 3), bool)


@dataclass(frozen=True)
class Components:
    """The 26-connected components of a mask."""

    labels: NDArray[np.int32]
    """(S, H, W): 0 is background, component i has label i + 1."""
    voxels: NDArray[np.int64]
    """(N,): size of each component."""


@dataclass(frozen=True)
class Detection:
    """Counts by which detection is judged; those of several volumes are added to pool them."""

    lesions: int
    found: int
    components: int
    right: int

    @property
    def recall(self) -> float | None:
        """Found lesions / lesions; none without a lesion."""
        return self.found / self.lesions if self.lesions else None

    @property
    def precision(self) -> float | None:
        """Right components / predicted components; none without a prediction."""
        return self.right / self.components if self.components else None

    @property
    def f1(self) -> float | None:
        """Harmonic mean of precision and recall; 0 if lesions were met by no prediction, none without a lesion."""
        if self.recall is None:
            return None
        if not self.found or self.precision is None or not self.right:
            return 0.0
        return 2 * self.precision * self.recall / (self.precision + self.recall)


def components(mask: NDArray[np.bool_]) -> Components:
    """Label the components of a mask (S, H, W)."""
    labels = np.zeros(mask.shape, np.int32)
    box = bounding_box(mask)
    if box is not None:
        ndimage.label(mask[box], _TOUCHING, output=labels[box])
    return Components(labels, np.bincount(labels.ravel(), minlength=1)[1:])


def overlapping(parts: Components, other: NDArray[np.bool_], overlap: float) -> NDArray[np.bool_]:
    """Which components have more than the fraction ``overlap`` of their voxels in the mask ``other`` (S, H, W); (N,).

    Raises ``ValueError`` if the shapes differ.
    """
    if parts.labels.shape != other.shape:
        raise ValueError(f"components {parts.labels.shape} and mask {other.shape} differ in shape")
    common = np.bincount(parts.labels[other], minlength=parts.voxels.size + 1)[1:]
    return common / parts.voxels > overlap


def detect(prediction: Components, truth: Components, overlap: float) -> Detection:
    """Count found lesions and right components of one volume under the rule at the top."""
    found = overlapping(truth, prediction.labels > 0, overlap)
    right = overlapping(prediction, truth.labels > 0, overlap)
    return Detection(found.size, int(found.sum()), right.size, int(right.sum()))


def pooled(detections: Iterable[Detection]) -> Detection:
    """All lesions and components of several volumes as those of one."""
    counts = [(d.lesions, d.found, d.components, d.right) for d in detections]
    lesions, found, predicted, right = (sum(column) for column in zip(*counts, strict=True)) if counts else (0,) * 4
    return Detection(lesions, found, predicted, right)


@dataclass(frozen=True)
class Stratum:
    """Lesions of at least ``from_ml`` and less than ``below_ml``."""

    from_ml: float
    below_ml: float | None
    """None: no upper limit."""

    @property
    def name(self) -> str:
        """For columns of a table: ``below_0.1ml``, ``0.1_to_1ml``, ``from_10ml``."""
        if self.below_ml is None:
            return f"from_{self.from_ml:g}ml"
        return f"{self.from_ml:g}_to_{self.below_ml:g}ml" if self.from_ml else f"below_{self.below_ml:g}ml"

    def holds(self, volumes_ml: NDArray[np.floating]) -> NDArray[np.bool_]:
        """Which lesions of these volumes (N,) belong here."""
        return (volumes_ml >= self.from_ml) & (volumes_ml < (np.inf if self.below_ml is None else self.below_ml))


def strata(limits_ml: Sequence[float]) -> tuple[Stratum, ...]:
    """The strata between limits (in any order), which hold every lesion exactly once; a limit belongs to the larger one."""
    limits = sorted(set(limits_ml))
    return tuple(Stratum(low, high) for low, high in zip([0.0, *limits], [*limits, None], strict=True))


def hausdorff_mm(
    prediction: NDArray[np.bool_], truth: NDArray[np.bool_], voxel_size_mm: Sequence[float]
) -> float | None:
    """Hausdorff distance of two masks (S, H, W) with voxels of ``voxel_size_mm`` along (S, H, W).

    None if either mask is empty: there is no distance to nothing. A mean over volumes is then one over the volumes where
    something was predicted; tell their number beside it. Raises ``ValueError`` if the shapes differ.
    """
    return _distance_mm(prediction, truth, voxel_size_mm, None)


def hd95_mm(prediction: NDArray[np.bool_], truth: NDArray[np.bool_], voxel_size_mm: Sequence[float]) -> float | None:
    """95th percentile Hausdorff distance; the rest is as in ``hausdorff_mm``."""
    return _distance_mm(prediction, truth, voxel_size_mm, 95.0)


def _distance_mm(
    prediction: NDArray[np.bool_], truth: NDArray[np.bool_], voxel_size_mm: Sequence[float], percentile: float | None
) -> float | None:
    if prediction.shape != truth.shape:
        raise ValueError(f"prediction {prediction.shape} and truth {truth.shape} differ in shape")
    box = bounding_box(prediction | truth)
    if box is None or not prediction.any() or not truth.any():
        return None
    one, other = (mask[box][None, None] for mask in (prediction, truth))
    spacing = [float(size) for size in voxel_size_mm]
    distance = _monai()(one, other, include_background=True, percentile=percentile, spacing=spacing)
    return float(distance[0, 0])


@cache
def _monai() -> Callable[..., Any]:
    from monai.metrics.hausdorff_distance import compute_hausdorff_distance  # takes seconds to import

    # MONAI 1.6 warns of an argument that it gives itself
    warnings.filterwarnings("ignore", ".*always_return_as_numpy", FutureWarning)
    return compute_hausdorff_distance


SSIM_SIGMA = 1.5
SSIM_RADIUS = 5
"""Pixels: the window is 11 x 11."""
_C1, _C2 = 0.01**2, 0.03**2


@dataclass(frozen=True)
class Fidelity:
    """Differences over the brain voxels of one volume."""

    l1: float
    """Mean absolute difference."""
    l2: float
    """Mean squared difference."""
    ssim: float
    """Mean structural similarity, at most 1."""
    psnr: float | None
    """Peak signal-to-noise ratio in dB, 10 log10(1 / l2); none for equal images."""


@dataclass(frozen=True)
class LesionError:
    """L1 of one volume in lesions and in the rest of the brain; none where there is no such voxel."""

    lesion: float | None
    tissue: float | None

    @property
    def ratio(self) -> float | None:
        """Lesion / tissue: above 1 if the model restores lesions worse than healthy tissue, as it should."""
        return self.lesion / self.tissue if self.lesion is not None and self.tissue else None


def fidelity(
    image: NDArray[np.floating], reconstruction: NDArray[np.floating], brain: NDArray[np.bool_]
) -> Fidelity | None:
    """Compare inside the brain mask; three (S, H, W) arrays. None for an empty mask; ``ValueError`` for other shapes."""
    _same_shape(image, reconstruction, brain)
    box = bounding_box(brain)
    if box is None:
        return None
    inside = brain[box]
    x, y = (np.where(inside, a[box].astype(np.float64), 0.0) for a in (image, reconstruction))
    difference = (x - y)[inside]
    l2 = float(np.mean(difference**2))
    return Fidelity(
        l1=float(np.mean(np.abs(difference))),
        l2=l2,
        ssim=float(np.mean(ssim_map(x, y)[inside])),
        psnr=-10 * math.log10(l2) if l2 > 0 else None,
    )


def ssim_map(x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
    """Structural similarity of each axial slice of two volumes (S, H, W), voxel by voxel.

    Wang et al. 2004, equation 13: Gaussian window of 11 x 11 pixels and sigma 1.5, K1 = 0.01, K2 = 0.03, data range 1.
    Beyond the border everything is 0, like the background of a brain mask.
    """
    mean_x, mean_y = _window(x), _window(y)
    variance_x, variance_y = _window(x * x) - mean_x**2, _window(y * y) - mean_y**2
    covariance = _window(x * y) - mean_x * mean_y
    luminance = (2 * mean_x * mean_y + _C1) / (mean_x**2 + mean_y**2 + _C1)
    return luminance * (2 * covariance + _C2) / (variance_x + variance_y + _C2)


def _window(array: NDArray[np.float64]) -> NDArray[np.float64]:
    return ndimage.gaussian_filter(array, SSIM_SIGMA, mode="constant", radius=SSIM_RADIUS, axes=(1, 2))


def lesion_error(
    image: NDArray[np.floating],
    reconstruction: NDArray[np.floating],
    brain: NDArray[np.bool_],
    lesion: NDArray[np.bool_],
) -> LesionError:
    """L1 inside the brain mask, of lesion voxels and of the others; four (S, H, W) arrays.

    Lesion voxels outside of the brain mask are left out: no reconstruction is asked for there. Raises ``ValueError`` if
    the shapes differ.
    """
    _same_shape(image, reconstruction, brain, lesion)
    error = np.abs(image[brain].astype(np.float64) - reconstruction[brain])
    ill = lesion[brain]
    return LesionError(_mean(error[ill]), _mean(error[~ill]))


def _mean(values: NDArray[np.float64]) -> float | None:
    return float(np.mean(values)) if values.size else None


def _same_shape(*arrays: NDArray) -> None:
    if len({array.shape for array in arrays}) > 1:
        raise ValueError(f"arrays of shapes {', '.join(str(array.shape) for array in arrays)}; one shape is needed")
