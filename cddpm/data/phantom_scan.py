"""From tissue to picture: T1 and T2 contrast, receive field, blur and Rician noise of one scan."""

from typing import Literal, get_args

import numpy as np
from scipy import ndimage

from cddpm.data.phantom_anatomy import Anatomy
from cddpm.data.phantom_grid import Canvas
from cddpm.data.phantom_lesions import Lesion

Contrast = Literal["t1", "t2"]
CONTRASTS: tuple[str, ...] = get_args(Contrast)
SIGNAL: dict[str, dict[str, float]] = {
    "t1": {"csf": 0.16, "grey": 0.52, "white": 0.80, "nuclei": 0.60, "pallidum": 0.73},
    "t2": {"csf": 1.00, "grey": 0.58, "white": 0.40, "nuclei": 0.52, "pallidum": 0.36},
}
"""Mean signal of each tissue, relative to fluid on T2."""
TOP = 30000
"""Largest stored value: scans are int16."""


def scan(
    rng: np.random.Generator, canvas: Canvas, anatomy: Anatomy, lesion: Lesion | None, contrast: str
) -> np.ndarray:
    """One skull-stripped scan on the canvas' grid: (X, Y, Z) int16, 0 outside the brain mask.

    Noise is Rician: the magnitude of a complex signal with Gaussian noise in both parts (Gudbjartsson and Patz, 1995, eq. 1).
    """
    signal = _signal(rng, canvas, anatomy, contrast)
    if lesion is not None:
        signal += lesion.share * (lesion.intensity[contrast] - signal)
    signal *= np.exp(np.float32(rng.uniform(0.04, 0.10)) * canvas.noise(rng, 80.0))
    signal = ndimage.gaussian_filter(canvas.paint(signal), 0.45)[canvas.inside]
    noise = rng.standard_normal((2, signal.size), dtype=np.float32) * np.float32(rng.uniform(0.018, 0.032))
    magnitude = np.hypot(signal + noise[0], noise[1])
    stored = np.rint(magnitude * np.float32(rng.uniform(450, 1200)))
    return canvas.paint((np.clip(stored, 1, TOP) * anatomy.mask).astype(np.int16))


def _signal(rng: np.random.Generator, canvas: Canvas, anatomy: Anatomy, contrast: str) -> np.ndarray:
    shares = {name: getattr(anatomy, name) for name in SIGNAL[contrast]}
    values = {name: value * (1 + np.clip(rng.normal(0, 0.03), -0.07, 0.07)) for name, value in SIGNAL[contrast].items()}
    signal = np.zeros(anatomy.mask.shape, np.float32)
    for name, share in shares.items():
        signal += share * np.float32(values[name])
    return signal * (1 + np.float32(0.025) * canvas.noise(rng, 12.0))
