"""Domain shift: the same model on test scans that look otherwise than those it learnt from.

Three kinds: simulated contrasts (every voxel of the prepared scan to a power, Behrendt et al. 2025), other scanners (changes
before preparation, ``cddpm.data.scanner``, which harmonised intensities may undo) and another modality of the same subjects. A
shift is a slice store of its own, so prediction and scoring are the very same code; thresholds stay those of validation.

Under a shift, a model that restores the contrast it was trained on, not the one it is shown, moves the histogram of the whole
brain; then the residual tells the contrast and not the lesion. ``divergences`` say how far.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import stats

from cddpm import artifact
from cddpm.config import EvaluationConfig, ScoringConfig
from cddpm.data.slices import KIND, copy_cohort
from cddpm.data.store import SliceStore
from cddpm.scoring.measures import measure
from cddpm.scoring.metrics import mean
from cddpm.scoring.score import Scorer
from cddpm.shelf import Shelf

UNSHIFTED = "none"
"""Label of the test cohort as it is, beside the shifted ones."""


@dataclass(frozen=True)
class Shift:
    """A shifted test cohort."""

    label: str
    """``power 0.5``, ``scanner noise`` or ``modality t1``."""
    store: Path


def contrast_store(store: Path, power: float, shelf: Shelf) -> Path:
    """The test scans of a slice store with every image to the voxelwise ``power``, made once."""
    origin = SliceStore.open(store, verify=False)
    made_from = {"store": origin.fingerprint, "power": power}
    name = artifact.fingerprint(KIND, made_from)

    def changed(v: int) -> np.ndarray[Any, np.dtype[np.float16]]:
        return apply_power(origin.image(v).astype(np.float32), power, origin.mask(v)).astype(np.float16)

    path = shelf.path("store", name)
    return shelf.ensure(path, KIND, made_from, lambda folder: copy_cohort(origin, folder, "test", changed))[0]


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


def apply_power(
    image: npt.NDArray[np.floating[Any]], power: float, mask: npt.NDArray[Any] | None = None
) -> npt.NDArray[np.floating[Any]]:
    """sign(x) |x|^power for every voxel x of an image (S, H, W) scaled to [0, 1]; same shape and type.

    Powers below 1 brighten, above 1 darken; 0 and 1 stay, and so does the order of intensities. Resampling overshoots
    [0, 1] a little: below 0 the curve is mirrored, above 1 it goes on. Outside of ``mask`` (S, H, W; empty: nowhere)
    nothing changes. Behrendt et al. 2025 (arXiv 2312.04215) use powers from 0.3 to 2.0.

    Raises ``ValueError`` for a power that is not above 0, or a mask of another shape.
    """
    if not 0 < power < np.inf:
        raise ValueError(f"power {power}: allowed is a number above 0")
    if mask is not None and mask.shape != image.shape:
        raise ValueError(f"mask of shape {mask.shape}: the image has {image.shape}")
    curve = np.sign(image) * np.abs(image).astype(np.float64) ** power
    changed = curve if mask is None else np.where(mask > 0, curve, image)
    return changed.astype(image.dtype)


BINS = 100
"""Bins of equal width over [0, 1]; what lies outside counts in the outermost."""


def divergences(
    image: npt.NDArray[np.floating[Any]], reconstruction: npt.NDArray[np.floating[Any]], bins: int = BINS
) -> dict[str, float]:
    """Between the brain voxels (N,) of an image p and those (M,) of its reconstruction q. All are 0 for equal histograms.

    - ``kl_image_reconstruction``, ``kl_reconstruction_image``: Kullback-Leibler, KL(p || q) = sum p ln(p / q) and KL(q || p),
      in nats; half a voxel is added to every bin, so that empty ones leave both finite (Krichevsky and Trofimov 1981);
    - ``jensen_shannon``: (KL(p || m) + KL(q || m)) / 2, m the mean of p and q, in nats, at most ln 2; nothing is added
      (Lin 1991, eq. 3.5);
    - ``wasserstein``: the distance of the two distributions in units of intensity, from the voxels, without bins.

    Raises ``ValueError`` when a side has no voxel, or not finite ones.
    """
    for name, values in (("image", image), ("reconstruction", reconstruction)):
        if not values.size or not np.isfinite(values).all():
            raise ValueError(f"{name}: {values.size} voxels, {np.isfinite(values).sum()} of them finite; all must be")
    p, q = (_histogram(values, bins) for values in (image, reconstruction))
    smooth_p, smooth_q = ((h + 0.5) / (h.sum() + 0.5 * bins) for h in (p, q))
    p, q = p / p.sum(), q / q.sum()
    middle = (p + q) / 2
    return {
        "kl_image_reconstruction": float(stats.entropy(smooth_p, smooth_q)),
        "kl_reconstruction_image": float(stats.entropy(smooth_q, smooth_p)),
        "jensen_shannon": float((stats.entropy(p, middle) + stats.entropy(q, middle)) / 2),
        "wasserstein": float(stats.wasserstein_distance(image.ravel(), reconstruction.ravel())),
    }


def _histogram(values: npt.NDArray[np.floating[Any]], bins: int) -> npt.NDArray[np.float64]:
    inside = np.clip(values.ravel().astype(np.float64), 0.0, 1.0)
    return np.histogram(inside, bins, (0.0, 1.0))[0].astype(np.float64)
