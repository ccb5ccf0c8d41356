"""What the voxels of one scan say of its quality: figures that a person looks through a cohort by.

None of them is good or bad by itself; ``outlier`` tells which are unlike those of the other scans. Offset and scale of the
intensities change none. Letters: I intensity above the background, b bias field.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import product

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from cddpm.data import brain
from cddpm.data.check import Reading
from cddpm.data.prepare import background_of
from cddpm.data.volume import Volume

VERSION = 2
"""Raised whenever a figure's value changes under the same voxels."""

QUANTILES = 101
MOST_SAMPLES = 200_000
"""Voxels of a brain that its histogram is told from, evenly taken."""
COARSE_MM = 4.0
"""Masks are compared on voxels of about this size."""
CLASSES, ORDER, ROUNDS, FIELD_SAMPLES = 3, 3, 15, 10_000
"""Of the bias field: tissue classes, order of the polynomial, iterations, voxels (evenly taken)."""
FAINT, NARROWEST = 0.05, 0.03
"""Share of the median intensity below which a voxel tells nothing of the field; least width of a class (log intensity)."""
FEWEST_VOXELS = 500
_MAD_TO_SIGMA = 1.4826

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Figure:
    """One column: its name, what it means, and the smallest difference that is worth a word (``least``)."""

    key: str
    name: str
    meaning: str
    least: float
    percent: bool = False
    logarithmic: bool = False
    """Compared by its logarithm: lesions differ by factors."""


FIGURES = (
    Figure("brain_ml", "brain ml", "volume of the brain mask", 10),
    Figure("noise", "noise", "standard deviation of the noise, of the median intensity in the brain", 0.003, True),
    Figure("bias", "bias", "standard deviation of the bias field over the brain, of the intensity", 0.005, True),
    Figure(
        "histogram", "histogram", "Wasserstein-1 distance of the intensities in the brain to the cohort's median", 0.005
    ),
    Figure("contrast", "contrast", "intensity at the brain's surface minus that of its depth, of their range", 0.02),
    Figure("mask_overlap", "overlap", "Dice of the brain mask with the cohort's mean mask, on one grid", 0.005),
    Figure("dark_surface", "dark rim", "share of the mask's surface that is as dark as the background", 0.02, True),
    Figure("signal_outside", "outside", "voxels outside of the mask as bright as brain, of its size", 0.005, True),
    Figure("cut", "cut", "share of the brain outside of the field of view of the network", 0.005, True),
    Figure("lesion_ml", "lesion ml", "volume of the segmented lesion", 0.5, logarithmic=True),
    Figure("lesions", "lesions", "segmented lesions (26 neighbours)", 0.5, logarithmic=True),
)


@dataclass(frozen=True)
class Measured:
    """Figures of one scan, and what is needed to compare it with others."""

    figures: Mapping[str, float | None]
    quantiles: tuple[float, ...]
    """Of the intensities in the brain, of which the 1st and 99th percentile are 0 and 1."""
    grid: tuple[tuple[int, ...], tuple[float, ...]]
    """Shape, and affine in hundredths of a millimetre: equal on one grid."""
    mask: npt.NDArray[np.bool_]
    """The brain mask on voxels of about ``COARSE_MM``."""


def measure(reading: Reading) -> Measured | None:
    """All that one scan tells by itself; None if its image or mask could not be read, or lie on two grids."""
    image, mask = reading.image, reading.mask
    if image is None or mask is None or image.data.shape != mask.data.shape:
        return None
    level = background_of(image.data, mask.data > 0)
    inner, box = _boxed(replace(image, data=image.data - level), mask)
    lesion = None if reading.segmentation is None else reading.segmentation.data == 1
    figures: dict[str, float | None] = {
        "brain_ml": brain.brain_ml(mask),
        "noise": noise(inner, box),
        "bias": bias(inner, box),
        "contrast": brain.rim_contrast(inner, box),
        "dark_surface": brain.dark_surface(image, mask),
        "signal_outside": brain.signal_outside(image, mask),
        "cut": None if reading.geometry is None else brain.cut_fraction(mask, reading.geometry),
        "lesion_ml": None if lesion is None else float(np.count_nonzero(lesion)) * brain.voxel_ml(image),
        "lesions": None if lesion is None else float(ndimage.label(lesion, np.ones((3, 3, 3)))[1]),
    }
    affine = tuple(float(n) for n in np.round(mask.affine, 2).ravel())
    return Measured(
        figures, tuple(intensity_quantiles(inner, box).tolist()), (mask.data.shape, affine), coarse_mask(mask)
    )


def _boxed(image: Volume, mask: Volume) -> tuple[Volume, Volume]:
    """Both without the planes that hold no brain: figures of the brain need no more, and cost less."""
    (box,) = ndimage.find_objects((mask.data > 0).astype(np.int8))
    return replace(image, data=image.data[box]), replace(mask, data=mask.data[box])


def noise(image: Volume, mask: Volume) -> float | None:
    """Robust standard deviation of the noise in the brain, over the median intensity there.

    The median of |HHH| / 0.6745, HHH being the finest diagonal coefficients of Haar's wavelet: of all that is in a scan only
    noise changes along three axes from voxel to voxel (Coupe et al., Medical Image Analysis 14 (2010) 483; the estimate is
    Donoho's, 1995). ``image`` is above its background. Smoothed and interpolated scans have less.
    """
    fine: npt.NDArray[np.float32] = image.data
    inside: npt.NDArray[np.bool_] = mask.data > 0
    for axis in range(3):
        ahead, behind = (tuple(part if a == axis else slice(None) for a in range(3)) for part in _SHIFTS)
        fine, inside = (fine[ahead] - fine[behind]) / np.float32(np.sqrt(2)), inside[ahead] & inside[behind]
    signal = float(np.median(image.data[mask.data > 0]))
    if np.count_nonzero(inside) < FEWEST_VOXELS or signal <= 0:
        return None
    return float(_MAD_TO_SIGMA * np.median(np.abs(fine[inside]))) / signal


_SHIFTS = (slice(1, None), slice(None, -1))


def bias(image: Volume, mask: Volume) -> float | None:
    """Standard deviation over the brain of a smooth field b that the intensities of each tissue are multiplied by.

    log I = log b + tissue + noise: ``CLASSES`` normal classes and a polynomial of order ``ORDER`` in space for log b, by
    expectation and maximisation in turn (Van Leemput et al., IEEE Transactions on Medical Imaging 18 (1999) 885).
    ``image`` is above its background. None for a brain of too few voxels.
    """
    faint = max(FAINT * float(np.median(image.data[mask.data > 0])), 0.0)
    inside = (mask.data > 0) & (image.data > faint)
    places = np.argwhere(inside)
    if len(places) < FEWEST_VOXELS:
        return None
    places = places[:: max(1, len(places) // FIELD_SAMPLES)]
    log = np.log(image.data[tuple(places.T)].astype(np.float64))
    basis = _polynomials(places)
    field = np.zeros_like(log)
    means = np.quantile(log, (np.arange(CLASSES) + 0.5) / CLASSES)
    widths, shares = np.full(CLASSES, max(float(log.std()) / CLASSES, NARROWEST)), np.full(CLASSES, 1 / CLASSES)
    for _ in range(ROUNDS):
        flat = (log - field)[:, None]
        chance = shares / widths * np.exp(-0.5 * ((flat - means) / widths) ** 2) + 1e-12
        chance /= chance.sum(1, keepdims=True)
        counts = chance.sum(0)
        means, shares = (chance * flat).sum(0) / counts, counts / len(log)
        widths = np.maximum(np.sqrt((chance * (flat - means) ** 2).sum(0) / counts), NARROWEST)
        weights = chance / widths**2
        whole = weights.sum(1)
        aside = log - (weights * means).sum(1) / whole
        steep = basis * whole[:, None]
        field = basis @ np.linalg.lstsq(basis.T @ steep, steep.T @ aside, rcond=None)[0]
    return float(field.std())


def _polynomials(places: npt.NDArray[np.int64]) -> Array:
    """(voxels, terms): all products of the coordinates up to ``ORDER`` but the constant, each of mean 0."""
    centred = places - places.mean(0)
    axes = centred / np.maximum(np.abs(centred).max(0), 1)
    powers = [p for p in product(range(ORDER + 1), repeat=3) if 0 < sum(p) <= ORDER]
    terms = np.stack([np.prod(axes**p, axis=1) for p in powers], axis=1)
    return np.asarray(terms - terms.mean(0), np.float64)


def intensity_quantiles(image: Volume, mask: Volume) -> Array:
    """Quantiles (``QUANTILES``,) of the intensities in the brain, whose 1st and 99th percentile become 0 and 1.

    The mean absolute difference of two of them is the Wasserstein-1 distance of the two histograms (Vallender 1974).
    """
    values = image.data[mask.data > 0]
    values = values[:: max(1, values.size // MOST_SAMPLES)].astype(np.float64)
    low, high = np.percentile(values, (1, 99))
    found = np.quantile(values, (np.arange(QUANTILES) + 0.5) / QUANTILES)
    return np.asarray(np.round((found - low) / max(high - low, 1e-12), 6))


def coarse_mask(mask: Volume) -> npt.NDArray[np.bool_]:
    """Every so many voxels of the mask, so that about ``COARSE_MM`` lie between them."""
    steps = [max(1, round(COARSE_MM / size)) for size in mask.voxel_size_mm]
    return np.ascontiguousarray(mask.data[tuple(slice(step // 2, None, step) for step in steps)] > 0)
