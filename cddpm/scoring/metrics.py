"""Voxel counts of a segmentation against the truth, and the numbers made of them, each under its right name.

A number that is undefined (a ratio with nothing below the line) is ``None``: never NaN, and left out of means.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

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
    predicted, lesion = int(np.count_nonzero(prediction)), int(np.count_nonzero(truth))
    both = int(np.count_nonzero(prediction & truth))
    return Confusion(both, predicted - both, lesion - both, prediction.size - predicted - lesion + both)


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
