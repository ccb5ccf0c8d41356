"""The names under which runs, metrics, tags and model versions are filed. Nothing else in the project spells them.

Metrics of the final scoring are ``<split>/<metric>`` (mean over data sets) and ``<split>/<data set>/<metric>``; curves that
a training draws over few volumes are ``monitor/...``, so that they never mix with a final score at the same step.
"""

import re

# Tags of runs
RUN = "cddpm.run"
"""Identity of a run: the sweep's name, or ``<sweep>/<trial number, 4 digits>``."""
KIND = "cddpm.kind"
SWEEP = "cddpm.sweep"
TRIAL = "cddpm.trial"
VERSION = "cddpm.version"
FINGERPRINT_DATA = "cddpm.fingerprint.data"
FINGERPRINT_STORE = "cddpm.fingerprint.store"
FINGERPRINT_ENCODER = "cddpm.fingerprint.encoder"
FINGERPRINT_GUIDE = "cddpm.fingerprint.guide"
FINGERPRINT_CHECKPOINT = "cddpm.fingerprint.checkpoint"
FINGERPRINT_RECONSTRUCTION = "cddpm.fingerprint.reconstruction"
FINGERPRINT_PACKAGE = "cddpm.fingerprint.package"
NONFINITE = "cddpm.nonfinite"
"""Prefix: ``cddpm.nonfinite.<metric>`` says which value was dropped and after how many images."""
ERROR = "cddpm.error"
"""Message of the error that ended a trial."""

# Tags of model versions and registered models
METRICS = "cddpm.metrics"
"""JSON of a version's metrics."""
PROMOTION = "cddpm.promotion"
"""Prefix: one tag per promotion, JSON of {version, alias, previous, who, when, why}."""

# Values of KIND
KIND_SWEEP = "sweep"
KIND_TRIAL = "trial"
KIND_TRAINING = "training"
KIND_PRETRAINING = "pretraining"
KIND_EVALUATION = "evaluation"
KIND_FOLD = "fold"

# MLflow's own tags
PARENT = "mlflow.parentRunId"
NOTE = "mlflow.note.content"
LOGGED_ARTIFACTS = "mlflow.loggedArtifacts"
"""JSON that says which files of a run are tables."""

# Metrics
IMAGES = "images"
"""Key of a history row that holds its step: slices seen."""
TRAIN_LOSS = "train/loss"
VAL_LOSS = "val/loss"
LEARNING_RATE = "train/learning_rate"
IMAGES_PER_SECOND = "train/images_per_second"
PRETRAIN_LOSS = "pretrain/loss"
PRETRAIN_VAL_LOSS = "pretrain/val_loss"
OBJECTIVE = "objective"
SPLITS = ("val", "test")
LOWER_IS_BETTER = frozenset({"loss", "hd95", "surface_distance", "fpr", "false_positive_rate", "threshold"})

_UNSAFE = re.compile(r"[^A-Za-z0-9_\-. /]")
_LONGEST_KEY = 250


def metric(split: str, name: str, dataset: str | None = None) -> str:
    """Name of a final score: ``metric("val", "dice", "Brats21")`` is ``val/Brats21/dice``; without data set the mean."""
    if split not in SPLITS:
        raise ValueError(f"split: '{split}': allowed are {', '.join(SPLITS)}")
    return safe("/".join(part for part in (split, dataset, name) if part))


def monitor(name: str, dataset: str | None = None) -> str:
    """Name of a curve drawn during training over a few validation volumes: ``monitor/Brats21/dice``."""
    return safe("/".join(part for part in ("monitor", dataset, name) if part))


def safe(name: str) -> str:
    """``name`` as MLflow takes it for a metric, param or tag: other characters become ``_``, no empty or dotted path parts.

    At most 250 characters are kept.
    """
    parts = _UNSAFE.sub("_", name)[:_LONGEST_KEY].split("/")
    return "/".join(part for part in parts if part not in ("", ".", "..")) or "_"


def trial_key(sweep: str, number: int) -> str:
    """Identity of a trial's run: ``trial_key("demo", 3)`` is ``demo/0003``."""
    return f"{sweep}/{number:04d}"


def higher_is_better(metric_name: str) -> bool:
    """Direction of a metric by the last part of its name."""
    return metric_name.rsplit("/", 1)[-1] not in LOWER_IS_BETTER
