"""What every column of an evaluation means: one table that documentation and reports read.

Columns that depend on settings stand here once, with a placeholder: ``{rate}`` is a healthy false-positive rate in percent
(``dice_at_fpr_5pct``), ``{size}`` a stratum of lesion volumes (``lesion_recall_0.1_to_1ml``).
"""

import re
from typing import Literal, NamedTuple

Better = Literal["higher", "lower"]


class Measure(NamedTuple):
    """A number of an evaluation."""

    unit: str
    """Empty for ratios and counts."""
    meaning: str
    better: Better | None
    """None: neither."""


MEASURES: dict[str, Measure] = {
    # which volume
    "dataset": Measure("", "data set, or 'healthy'", None),
    "volume": Measure("", "name of the volume", None),
    "volume_index": Measure("", "number of the volume in its store", None),
    "volumes": Measure("", "volumes of the data set", None),
    # voxels at the operating point fixed on validation
    "threshold": Measure("anomaly score", "operating point; voxels strictly above it are predicted", None),
    "lesion_voxels": Measure("voxels", "lesion voxels of the truth", None),
    "predicted_voxels": Measure("voxels", "predicted voxels", None),
    "lesion_ml": Measure("ml", "volume of the lesions", None),
    "predicted_ml": Measure("ml", "predicted volume", None),
    "false_positive_ml": Measure("ml", "predicted volume outside of lesions, per scan", "lower"),
    "healthy_false_positive_ml": Measure("ml", "predicted volume per healthy scan at this operating point", "lower"),
    "lesion_fraction": Measure("", "part of the brain voxels that is lesion: AUPRC (brain) of a guess", None),
    "dice": Measure("", "Dice at the operating point, after the component filter", "higher"),
    "dice_before_component_filter": Measure("", "Dice at the operating point, before the component filter", "higher"),
    "precision": Measure("", "part of the predicted voxels that is lesion", "higher"),
    "recall": Measure("", "part of the lesion voxels that is predicted", "higher"),
    "specificity": Measure("", "part of the brain voxels outside of lesions that is not predicted", "higher"),
    "false_positive_rate": Measure("", "part of the brain voxels outside of lesions that is predicted", "lower"),
    "false_discovery_rate": Measure("", "part of the predicted voxels that is no lesion", "lower"),
    "hd95": Measure("mm", "95th percentile Hausdorff distance; only of volumes with lesion and prediction", "lower"),
    # bounds: thresholds chosen on the very data that is measured
    "oracle_dice": Measure(
        "", "best Dice over all thresholds of this very volume, after the filter: a bound", "higher"
    ),
    "oracle_dice_before_component_filter": Measure("", "the same before the component filter: a bound", "higher"),
    "oracle_threshold": Measure("anomaly score", "threshold of oracle_dice", None),
    "dataset_oracle_dice": Measure(
        "", "best mean Dice at one threshold chosen on this very data set, after the filter: a bound", "higher"
    ),
    "dataset_oracle_threshold": Measure("anomaly score", "threshold of dataset_oracle_dice", None),
    # over all thresholds
    "auprc": Measure("", "area under the precision-recall curve over all voxels, as published", "higher"),
    "auroc": Measure("", "area under the ROC curve over all voxels, as published", "higher"),
    "auprc_brain": Measure("", "area under the precision-recall curve over brain voxels", "higher"),
    "auroc_brain": Measure("", "area under the ROC curve over brain voxels", "higher"),
    "auprc_pooled": Measure("", "AUPRC of all voxels of all volumes taken together", "higher"),
    "auroc_pooled": Measure("", "AUROC of all voxels of all volumes taken together", "higher"),
    "auprc_brain_pooled": Measure("", "AUPRC of the brain voxels of all volumes taken together", "higher"),
    "auroc_brain_pooled": Measure("", "AUROC of the brain voxels of all volumes taken together", "higher"),
    # lesion by lesion at the operating point (rule: cddpm/scoring/metrics.py, evaluation.lesion_overlap)
    "lesions": Measure("lesions", "26-connected components of the truth", None),
    "lesions_found": Measure("lesions", "lesions that the prediction meets", "higher"),
    "components": Measure("components", "26-connected components of the prediction", None),
    "components_right": Measure("components", "predicted components that meet a lesion", None),
    "lesion_recall": Measure("", "found lesions / lesions", "higher"),
    "lesion_precision": Measure("", "right components / predicted components", "higher"),
    "lesion_f1": Measure("", "harmonic mean of lesion precision and lesion recall", "higher"),
    "lesion_recall_pooled": Measure("", "found lesions / lesions of the whole data set", "higher"),
    "lesion_precision_pooled": Measure("", "right / predicted components of the whole data set", "higher"),
    "lesion_f1_pooled": Measure("", "harmonic mean of the pooled lesion precision and recall", "higher"),
    "lesions_{size}": Measure("lesions", "lesions of this volume", None),
    "lesions_found_{size}": Measure("lesions", "found lesions of this volume", "higher"),
    "lesion_recall_{size}": Measure("", "found lesions / lesions of this volume, of the whole data set", "higher"),
    # at thresholds that leave this part of healthy validation brains above them; after the component filter
    "threshold_at_fpr_{rate}pct": Measure("anomaly score", "threshold of this healthy false-positive rate", None),
    "dice_at_fpr_{rate}pct": Measure("", "Dice at this healthy false-positive rate", "higher"),
    "lesions_found_at_fpr_{rate}pct": Measure("lesions", "found lesions at this healthy false-positive rate", "higher"),
    "lesion_recall_at_fpr_{rate}pct": Measure("", "lesion recall at this healthy false-positive rate", "higher"),
    "lesion_recall_pooled_at_fpr_{rate}pct": Measure(
        "", "lesion recall of the whole data set at this healthy false-positive rate", "higher"
    ),
    "false_positive_rate_at_fpr_{rate}pct": Measure(
        "", "false-positive rate that this threshold has here, after the component filter", "lower"
    ),
    "false_positive_ml_at_fpr_{rate}pct": Measure("ml", "predicted volume outside of lesions, at this rate", "lower"),
    # reconstruction against input inside the brain mask
    "l1": Measure("intensity", "mean absolute difference, healthy volumes", "lower"),
    "l2": Measure("intensity^2", "mean squared difference, healthy volumes", "lower"),
    "ssim": Measure("", "structural similarity of axial slices, 11x11 Gaussian window, healthy volumes", "higher"),
    "psnr": Measure("dB", "peak signal-to-noise ratio at data range 1, healthy volumes", "higher"),
    "l1_lesion": Measure("intensity", "mean absolute difference in lesions", None),
    "l1_tissue": Measure("intensity", "mean absolute difference outside of lesions", "lower"),
    "l1_ratio": Measure("", "l1_lesion / l1_tissue of the same volume", "higher"),
    # what lies beyond the model's window (data.volume_shape), which no other number knows of
    "brain_unseen": Measure("", "part of the brain that lies beyond the model's window: it is not looked at", None),
    "brain_unseen_ml": Measure("ml", "volume of the brain there", None),
    "lesion_unseen_ml": Measure("ml", "volume of the lesions there", None),
    "dice_with_unseen": Measure("", "Dice if lesions beyond the model's window count as missed", "higher"),
    "recall_with_unseen": Measure("", "recall if lesions beyond the model's window count as missed", "higher"),
}

_RATE = re.compile(r"_at_fpr_[0-9.e+-]+pct$")
_SIZE = re.compile(r"_(below_[0-9.e+-]+ml|[0-9.e+-]+_to_[0-9.e+-]+ml|from_[0-9.e+-]+ml)$")
_SPREAD, _COUNT = "_std", "_volumes"


def at_rate(measure: str, rate: float) -> str:
    """Column of ``measure`` at a healthy false-positive rate: ``at_rate("dice", 0.05)`` is ``dice_at_fpr_5pct``."""
    return f"{measure}_at_fpr_{100 * rate:g}pct"


def describe(column: str) -> Measure:
    """What a column of rows or aggregates means, also with ``_std`` or ``_volumes`` behind it.

    Raises ``KeyError`` for a column that no evaluation makes.
    """
    name = _SIZE.sub("_{size}", _RATE.sub("_at_fpr_{rate}pct", column))
    if name in MEASURES:
        return MEASURES[name]
    if column.endswith(_SPREAD):
        inner = describe(column.removesuffix(_SPREAD))
        return Measure(inner.unit, f"standard deviation over volumes: {inner.meaning}", None)
    if column.endswith(_COUNT):
        inner = describe(column.removesuffix(_COUNT))
        return Measure("volumes", f"volumes with a value: {inner.meaning}", None)
    raise KeyError(column)
