"""How much of a brain was looked at, and which of its slices a model has not seen the like of in training.

A model was trained on a window of each brain (``data.volume_shape``); a prediction looks at all of the brain, or at what the
model was scored on. What lies beyond the window is counted, and told where it is more than a trifle.
"""

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from cddpm.config import DataConfig
from cddpm.data.brain import voxel_ml
from cddpm.data.geometry import CUT_FRACTION, Geometry, field_of_view
from cddpm.data.prepare import Prepared
from cddpm.data.volume import Volume

Window = Literal["whole", "package"]
"""What of a brain is looked at: all of it, or the window that the package's model was scored on."""


def looked_at(window: Window, data: DataConfig) -> Window:
    """``window``, or ``whole`` for a model that was scored on all of each brain: its own window is no other."""
    return "whole" if data.whole_brain else window


@dataclass(frozen=True)
class Coverage:
    """What was looked at; millilitres of brain, and axial slices of the working grid with brain."""

    window: Window
    looked_at: NDArray[np.bool_]
    """(X, Y, Z) of the scan: brain voxels that were."""
    brain_ml: float
    looked_at_ml: float
    slices: int
    slices_beyond_window: int
    """Below and above the window that the model was trained on; of 0 no other count is needed."""
    beyond_window_ml: float
    """Of them, and of rows and columns beside the window."""
    slices_with_less_brain: int
    """Than any slice of training had, where that was bounded (``training.minimum_brain_fraction``)."""

    @classmethod
    def of(cls, window: Window, brain: Volume, prepared: Prepared, least_fraction: float) -> "Coverage":
        """Of the mask ``brain`` of a scan, prepared for a model that was trained on slices with so much brain at least."""
        geometry, mask = prepared.geometry, prepared.mask > 0
        looked_at = (brain.data > 0) & field_of_view(geometry)
        inside = mask[geometry.window]
        filled = np.count_nonzero(mask, (0, 1))
        below, above = geometry.window[2].start, geometry.window[2].stop
        return cls(
            window=window,
            looked_at=looked_at,
            brain_ml=np.count_nonzero(brain.data) * voxel_ml(brain),
            looked_at_ml=np.count_nonzero(looked_at) * voxel_ml(brain),
            slices=int(np.count_nonzero(filled)),
            slices_beyond_window=int(np.count_nonzero(filled[:below]) + np.count_nonzero(filled[above:])),
            beyond_window_ml=float(np.count_nonzero(mask) - np.count_nonzero(inside)) * _working_ml(geometry),
            slices_with_less_brain=int(
                np.count_nonzero((filled > 0) & (filled < least_fraction * inside[..., 0].size))
            ),
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON data, without the map."""
        fraction = self.looked_at_ml / self.brain_ml
        counts = {name: value for name, value in vars(self).items() if name != "looked_at"}
        return {**counts, "looked_at_fraction_of_brain": fraction}

    def unlike(self, scored: bool) -> str | None:
        """What is unlike the slices of training; None for a trifle. ``scored``: the threshold knows all of a brain."""
        fraction = self.beyond_window_ml / self.brain_ml
        if fraction <= CUT_FRACTION:
            return None
        threshold = "" if scored else ", and that its threshold was fixed on unless by calibration"
        return (
            f"{fraction:.0%} of the brain ({self.beyond_window_ml:.0f} ml, {self.slices_beyond_window} of {self.slices} axial "
            f"slices) lies beyond the window that the model was trained on{threshold}; what is found there is less certain"
        )


def _working_ml(geometry: Geometry) -> float:
    return math.prod(geometry.working_voxel_size_mm) / 1000
