"""Domain shift: the same model on test scans that look otherwise than those it learnt from.

Two kinds: simulated contrasts (every voxel to a power, Behrendt et al. 2025) and another modality of the same subjects. A
shift is a slice store of its own, so prediction and scoring are the very same code; thresholds stay those of validation.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cddpm import artifact
from cddpm.config import EvaluationConfig, ScoringConfig
from cddpm.data.contrast import apply_power
from cddpm.data.slices import KIND, copy_cohort
from cddpm.data.store import SliceStore
from cddpm.scoring.divergence import divergences
from cddpm.scoring.measures import measure
from cddpm.scoring.metrics import mean
from cddpm.scoring.score import Scorer

UNSHIFTED = "none"
"""Label of the test cohort as it is, beside the shifted ones."""


@dataclass(frozen=True)
class Shift:
    """A shifted test cohort."""

    label: str
    """``power 0.5`` or ``modality t1``."""
    store: Path


def contrast_store(store: Path, power: float, artifacts: Path) -> Path:
    """The test scans of a slice store with every image to the voxelwise ``power``, made once."""
    origin = SliceStore.open(store, verify=False)
    made_from = {"store": origin.fingerprint, "power": power}
    name = artifact.fingerprint(KIND, made_from)

    def changed(v: int) -> np.ndarray[Any, np.dtype[np.float16]]:
        return apply_power(origin.image(v).astype(np.float32), power, origin.mask(v)).astype(np.float16)

    path = artifacts / "store" / name
    return artifact.ensure(path, KIND, name, made_from, lambda folder: copy_cohort(origin, folder, "test", changed))[0]


def shifted(
    label: str,
    scorer: Scorer,
    scoring: ScoringConfig,
    thresholds: Mapping[str, float],
    evaluation: EvaluationConfig,
    validation: Scorer,
) -> list[dict[str, Any]]:
    """One row per data set: its measures, and how far the reconstruction's histogram moved away from the input's."""
    measured = measure(scorer, scoring, thresholds, evaluation, validation)
    rows = []
    for dataset, values in measured.datasets.items():
        volumes = [row["volume_index"] for row in measured.rows if row["dataset"] == dataset]
        rows.append({"shift": label, "dataset": dataset, **values, **_divergence(scorer, scoring, volumes)})
    return rows


def _divergence(scorer: Scorer, scoring: ScoringConfig, volumes: list[int]) -> dict[str, float | None]:
    """Mean over volumes of each histogram divergence between input and reconstruction inside the brain."""
    found = [_of_volume(scorer, scoring, v) for v in volumes]
    return {name: mean(each[name] for each in found) for name in (found[0] if found else {})}


def _of_volume(scorer: Scorer, scoring: ScoringConfig, v: int) -> dict[str, float]:
    mask = scorer.store.mask(v) > 0
    mask.ravel()[scorer.store.ignored(v)] = False
    return divergences(scorer.store.image(v).astype(np.float32)[mask], scorer.reconstruction(v, scoring)[mask])
