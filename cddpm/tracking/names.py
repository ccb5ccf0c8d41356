"""The names under which runs, metrics, tags and model versions are filed. Nothing else in the project spells them.

Metrics of the final scoring are ``<split>/<metric>`` (mean over data sets) and ``<split>/<data set>/<metric>``; curves that
a training draws over few volumes are ``monitor/...``, so that they never mix with a final score at the same step.
"""

import re
from collections.abc import Mapping
from typing import Any

# Tags of runs
RUN = "cddpm.run"
KIND = "cddpm.kind"
SWEEP = "cddpm.sweep"
TRIAL = "cddpm.trial"
POINT = "cddpm.point"
STAGE = "cddpm.stage"
FINGERPRINT = "cddpm.fingerprint"
FINGERPRINT_STORE = "cddpm.fingerprint.store"
FINGERPRINT_ENCODER = "cddpm.fingerprint.encoder"
FINGERPRINT_GUIDE = "cddpm.fingerprint.guide"
FINGERPRINT_CHECKPOINT = "cddpm.fingerprint.checkpoint"
FINGERPRINT_RECONSTRUCTION = "cddpm.fingerprint.reconstruction"
FINGERPRINTS = {
    "store": FINGERPRINT_STORE,
    "encoder": FINGERPRINT_ENCODER,
    "guide": FINGERPRINT_GUIDE,
    "checkpoint": FINGERPRINT_CHECKPOINT,
    "reconstruction": FINGERPRINT_RECONSTRUCTION,
}
"""Stage -> tag of the fingerprint of what it made."""
FINGERPRINT_PACKAGE = "cddpm.fingerprint.package"
MADE_BY = "cddpm.made_by"
MADE = "cddpm.made"
REUSED = "cddpm.reused"
ENDING = "cddpm.ending"
ERROR = "cddpm.error"
CHAMPION = "cddpm.champion"
FOLD_RUN = "cddpm.fold_run"
CAMPAIGN = "cddpm.campaign"
PUBLISHED = "cddpm.published"
NONFINITE = "cddpm.nonfinite"
VERSION = "cddpm.version"
COMMIT = "cddpm.commit"
LOCK = "cddpm.lock"
HOST = "cddpm.host"
PROCESSOR = "cddpm.processor"
CPUS = "cddpm.cpus"
MEMORY = "cddpm.memory_gb"
GPUS = "cddpm.gpus"
TORCH = "cddpm.torch"
RAY = "cddpm.ray"

# Tags of model versions and registered models
FINGERPRINT_CONFIG = "cddpm.fingerprint.config"
DATA = "cddpm.data"
SETTING = "cddpm.setting"
METRICS = "cddpm.metrics"
RECORD = "cddpm.record"
AIM = "cddpm.aim"
ARCHIVED = "cddpm.archived"
PROMOTION = "cddpm.promotion"

TAGS = {
    RUN: "identity of the run, the same after every restart: `SWEEP`, `SWEEP/0003`, `SWEEP/checkpoint-FINGERPRINT`",
    KIND: "`sweep`, `evaluation`, `trial`, `fold`, `stage` or `point`",
    SWEEP: "name of the sweep or evaluation",
    TRIAL: "number of the trial",
    POINT: "number of the scoring point within its trial",
    STAGE: "of a stage: `store`, `encoder`, `guide`, `checkpoint` or `reconstruction`",
    FINGERPRINT: "of a stage: fingerprint of what it made",
    FINGERPRINT_STORE: "slice store that the run used",
    FINGERPRINT_ENCODER: "pretrained encoder that the run used",
    FINGERPRINT_GUIDE: "checkpoint of the DDPM that guides the model",
    FINGERPRINT_CHECKPOINT: "trained model of the run",
    FINGERPRINT_RECONSTRUCTION: "validation predictions of the run",
    FINGERPRINT_PACKAGE: "of a version, in its record: the model package",
    f"{MADE_BY}.*": "run id of the stage that made the run's store, encoder, checkpoint ...; maybe one of an earlier sweep",
    MADE: "stages that this trial computed",
    REUSED: "stages that this trial found ready",
    ENDING: "how a trial ended: `finished`, `stopped` (early, by the pruner), `failed` or `interrupted`",
    ERROR: "message of the error that ended a run",
    CHAMPION: "identity of the sweep's best trial",
    FOLD_RUN: "name of the method, modality and fold of an evaluation",
    CAMPAIGN: "identity of the folder of the sweep or evaluation; one of the same name from elsewhere has another",
    PUBLISHED: "digest of all that the run shows, once it is all there; what matches it is not sent again",
    f"{NONFINITE}.*": "which value of a metric was no finite number, and after how many images",
    VERSION: "version of this program",
    COMMIT: "commit of the code; `+` behind it: tracked files were changed",
    LOCK: "SHA-256 of `requirements.lock`; without that file, of the list of installed packages",
    HOST: "name of the machine that drove the run, or made the stage",
    PROCESSOR: "its processor",
    CPUS: "its CPU threads",
    MEMORY: "its memory in GB",
    GPUS: "its GPUs",
    TORCH: "version of PyTorch",
    RAY: "version of Ray",
    FINGERPRINT_CONFIG: "of a version, in its record: digest of all settings, which are its package's `config.json`",
    DATA: "of a version: modality, data sets, fold and place of the data",
    f"{SETTING}.*": "of a version, in its record: what the searches chose for a setting, by dotted path",
    METRICS: "of a version: its metrics as JSON",
    RECORD: "of a version: what is for machines, such as fingerprints and settings, as JSON of these names",
    AIM: "of a version: what its sweep searched for on validation, as in `dice on Brats21, MSLUB`",
    ARCHIVED: "of a version that is hidden from lists: JSON of who, when, why",
    f"{PROMOTION}.*": "of a registered model: one per promotion, JSON of version, alias, previous version, who, when, why",
}
"""What each tag means; ``*`` stands for more words. The table of this folder's README is this one."""

# Values of KIND
KIND_SWEEP = "sweep"
KIND_TRIAL = "trial"
KIND_STAGE = "stage"
KIND_POINT = "point"
KIND_EVALUATION = "evaluation"
KIND_FOLD = "fold"

# MLflow's own tags
RUN_NAME = "mlflow.runName"
PARENT = "mlflow.parentRunId"
NOTE = "mlflow.note.content"
SOURCE_COMMIT = "mlflow.source.git.commit"
LOGGED_ARTIFACTS = "mlflow.loggedArtifacts"
"""JSON that says which files of a run are tables."""

# Metrics
IMAGES, TIME = "images", "time"
"""Keys of a history row that hold its step (slices seen) and when it was written (seconds since 1970)."""
TRAIN_LOSS = "train/loss"
VAL_LOSS = "val/loss"
IMAGES_PER_SECOND = "train/images_per_second"
PRETRAIN_LOSS = "pretrain/loss"
PRETRAIN_VAL_LOSS = "pretrain/val_loss"
PRETRAIN_IMAGES_PER_SECOND = "pretrain/images_per_second"
MONITOR_OBJECTIVE = "monitor/objective"
OBJECTIVE = "objective"
SECONDS = "cost/seconds"
CPU_HOURS = "cost/cpu_hours"
GPU_SECONDS = "cost/gpu_seconds"
CPU_USED = "system/cpu_utilization_percentage"
MEMORY_USED = "system/system_memory_usage_megabytes"
MEMORY_USED_PERCENT = "system/system_memory_usage_percentage"
PROCESS_MEMORY = "system/process_memory_megabytes"

CURVES = {
    TRAIN_LOSS: "training loss, mean since the last validation",
    VAL_LOSS: "loss on healthy validation slices",
    IMAGES_PER_SECOND: "training slices per second since the last validation",
    PRETRAIN_LOSS: "loss of the encoder's pretraining on training slices",
    PRETRAIN_VAL_LOSS: "the same on validation slices",
    PRETRAIN_IMAGES_PER_SECOND: "pretraining slices per second",
    MONITOR_OBJECTIVE: "objective over a few validation volumes while training goes on",
    "monitor/*": "the same per data set and metric; never a final score",
    OBJECTIVE: "best validation value of the trial: what the sweep compares by",
    "val/*": "final scores on validation: `val/METRIC` is the mean over data sets, `val/DATASET/METRIC` one data set; "
    "`METRIC_std` the standard deviation over its volumes",
    "test/*": "the same on test: of the champion (on the sweep's run) and of evaluations",
    "unswept_defaults/test/*": "the same of the configuration without any search, beside the champion",
    "intensity_threshold/test/*": "the same of a threshold on the plain image, beside the champion",
    SECONDS: "wall-clock seconds of the stage, trial or sweep (of a sweep: of running trials, over all its starts)",
    CPU_HOURS: "booked CPU-hours of a sweep",
    GPU_SECONDS: "booked GPU-seconds of the stage, trial or sweep",
    CPU_USED: "CPUs in use on the node of the first worker, in percent; step: number of the sample",
    MEMORY_USED: "memory in use on that node",
    MEMORY_USED_PERCENT: "the same in percent",
    PROCESS_MEMORY: "memory of the first worker's process",
    "system/gpu_*_memory_usage_megabytes": "memory in use on its GPU",
    "system/gpu_*_utilization_percentage": "time in which its GPU did anything, in percent",
}
"""What each metric means; ``*`` stands for more words. The step is slices seen, where nothing else is said."""

SPLITS = ("val", "test")
CONTENDER = "champion"
"""Name of a sweep's best trial in its table of test volumes; the others are what it had to beat."""
VOLUMES = {"val": "val_volumes.json", "test": "test_volumes.json"}
"""Tables with a row per volume, by split: of validation with each trial's run, of test with the sweep's (its champion alone)."""
LOWER_IS_BETTER = frozenset({"loss", "hd95", "surface_distance", "fpr", "false_positive_rate", "threshold"})

_UNSAFE = re.compile(r"[^A-Za-z0-9_\-. /]")
_LONGEST_KEY = 250


def metric(split: str, name: str, dataset: str | None = None) -> str:
    """Name of a final score: ``metric("val", "dice", "Brats21")`` is ``val/Brats21/dice``; without data set the mean."""
    if split not in SPLITS:
        raise ValueError(f"split: '{split}': allowed are {', '.join(SPLITS)}")
    return safe("/".join(part for part in (split, dataset, name) if part))


def safe(name: str) -> str:
    """``name`` as MLflow takes it for a metric, param or tag: other characters become ``_``, no empty or dotted path parts.

    At most 250 characters are kept.
    """
    parts = _UNSAFE.sub("_", name)[:_LONGEST_KEY].split("/")
    return "/".join(part for part in parts if part not in ("", ".", "..")) or "_"


def gpu_metric(number: int, what: str) -> str:
    """Name of a system metric of a GPU, as MLflow has it: ``system/gpu_0_utilization_percentage``."""
    return f"system/gpu_{number}_{what}"


def child_key(parent: str, slug: str) -> str:
    """Identity of a child run of a sweep: ``child_key("demo", "checkpoint-0a1b")`` is ``demo/checkpoint-0a1b``."""
    return f"{parent}/{slug}"


_SHORT = {
    "learning_rate": "lr",
    "batch_size": "batch",
    "condition_dropout": "dropout",
    "guidance_scale": "guidance",
    "noise_levels": "levels",
    "minimum_component_voxels": "component",
    "median_kernel": "median",
}
_LONGEST_RUN_NAME = 90


def run_name(number: str, params: Mapping[str, Any]) -> str:
    """What a person reads in a list of runs: ``run_name("0003", {"training.learning_rate": 3e-4})`` is ``0003 lr 3e-4``."""
    words = {path: _SHORT.get(leaf := path.rsplit(".", 1)[-1], leaf.replace("_", " ")) for path in params}
    for path, word in dict(words).items():
        if list(words.values()).count(word) > 1 and "." in path:
            words[path] = f"{path.split('.')[-2]} {word}"
    name = " ".join([number, *(f"{words[path]} {_brief(value)}" for path, value in params.items())])
    return name if len(name) <= _LONGEST_RUN_NAME else name[: _LONGEST_RUN_NAME - 3] + "..."


def _brief(value: Any) -> str:
    match value:
        case bool():
            return "on" if value else "off"
        case None:
            return "none"
        case float() if value != 0 and (abs(value) < 1e-3 or abs(value) >= 1e5):
            mantissa, exponent = f"{value:.1e}".split("e")
            return f"{mantissa.removesuffix('.0')}e{int(exponent)}"
        case float():
            return f"{value:.3g}"
        case list() | tuple():
            return "+".join(_brief(part) for part in value)
    return str(value)


def trial_key(sweep: str, number: int) -> str:
    """Identity of a trial's run: ``trial_key("demo", 3)`` is ``demo/0003``."""
    return f"{sweep}/{number:04d}"


def higher_is_better(metric_name: str) -> bool:
    """Direction of a metric by the last part of its name."""
    return metric_name.rsplit("/", 1)[-1] not in LOWER_IS_BETTER
