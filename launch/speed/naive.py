"""One setting evaluated the plain way: networks run again, SciPy's median, a ten-step search, scikit-learn's curves.

The comparison for the search on cached reconstructions. It stays on the generous side: no Hausdorff distance, our own
component filter, and its steps spread over all cores without loss. Only a sample is run: a few slices through the networks
(all noise levels, both branches, since guidance is searched) and one volume through the rest.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from cddpm.config import ExperimentConfig
from cddpm.data.store import SliceStore
from cddpm.models.cddpm import ConditionedDiffusion
from cddpm.published.scoring import ReferenceVolume, reference_anomaly_map
from cddpm.reconstruct.predict import Manner, Request, predict_volumes
from cddpm.scoring.metrics import dice
from cddpm.scoring.operating_point import ten_step_search
from cddpm.scoring.postprocess import remove_small_components
from speed.cohort import LEVELS, Cohort
from speed.timing import seconds

SAMPLE_SLICES = 1


@dataclass(frozen=True)
class NaiveSeconds:
    """What one setting costs on one core, for a whole volume."""

    networks: float
    """Extrapolated from ``SAMPLE_SLICES`` slice(s)."""
    filters: float
    """Residual, erosion, median."""
    measures: float
    """Ten-step search, component filter, curves of scikit-learn."""

    @property
    def volume(self) -> float:
        """All of it."""
        return self.networks + self.filters + self.measures


class NaiveTrial:
    """The plain evaluation of ``config`` on the first volume of a cohort, with networks of the standard size."""

    def __init__(self, cohort: Cohort, config: ExperimentConfig) -> None:
        store = SliceStore.open(cohort.store, verify=False)
        self.config = config
        self.model = ConditionedDiffusion(config.model, config.encoder, config.diffusion).eval()
        self.image, self.truth = store.image(0), store.segmentation(0) > 0
        self.volume = ReferenceVolume(self.image, np.zeros_like(self.image), store.mask(0), store.segmentation(0))

    def measure(self) -> NaiveSeconds:
        """Run the sample on one core."""
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            networks = seconds(self.reconstruct) * len(self.image) / SAMPLE_SLICES
        finally:
            torch.set_num_threads(threads)
        filters = seconds(lambda: reference_anomaly_map(self.volume, self.config.scoring))
        scores = reference_anomaly_map(self.volume, self.config.scoring)
        return NaiveSeconds(networks, filters, seconds(lambda: self.detect(scores)))

    def reconstruct(self) -> None:
        """A few slices of the middle, at every noise level, with and without condition."""
        middle = len(self.image) // 2
        slices = self.image[middle : middle + SAMPLE_SLICES]
        noise = self.config.diffusion.noise  # larger batches would be filled up with copies
        request = Request("naive", slices, tuple((level, 0) for level in LEVELS))
        list(predict_volumes(self.model, [request], Manner(noise, 0, SAMPLE_SLICES)))

    def detect(self, scores: NDArray[np.float32]) -> tuple[float, float, float]:
        """Dice at the threshold of the ten-step search, area under the ROC curve, average precision."""
        from sklearn.metrics import average_precision_score, roc_auc_score

        found = ten_step_search(lambda t: _number(dice(scores > t, self.truth)), float(scores.max()))
        kept = remove_small_components(scores > found.threshold, self.config.scoring.minimum_component_voxels)
        truth, flat = self.truth.ravel(), scores.ravel()
        areas = roc_auc_score(truth, flat), average_precision_score(truth, flat)
        return _number(dice(kept, self.truth)), float(areas[0]), float(areas[1])


def _number(value: float | None) -> float:
    return math.nan if value is None else value
