"""The configuration: typed, frozen, closed.

A file in ``tune_configs/`` is an ``ExperimentConfig`` as YAML. ``load`` reads one, applies overrides with dotted paths and
lists all faults at once, each with file, dotted path, value and what is allowed.
"""

from cddpm.config.benchmark import BenchmarkConfig, CohortConfig, MethodConfig
from cddpm.config.condition import Test, same
from cddpm.config.experiment import FIELDS, ExperimentConfig
from cddpm.config.loading import explain, load, override, parse, read_yaml, resolve_paths, setting, to_dict, with_values
from cddpm.config.paths import changed, did_you_mean, field_paths, value_at
from cddpm.config.scoring import ScoringConfig
from cddpm.config.sections import (
    SSIM_WINDOW,
    AugmentationConfig,
    ComputeConfig,
    DataConfig,
    DiffusionConfig,
    EncoderConfig,
    EvaluationConfig,
    Frozen,
    ModelConfig,
    NoiseConfig,
    PatchConfig,
    PhantomConfig,
    PretrainingConfig,
    ReconstructionConfig,
    TrackingConfig,
    TrainingConfig,
)
from cddpm.config.space import (
    GOALS,
    AshaConfig,
    Choice,
    Conditional,
    Float,
    Integer,
    LevelConfig,
    ObjectiveConfig,
    Parameter,
    SearchConfig,
    Space,
    active,
    ordered,
)

__all__ = [
    "FIELDS",
    "GOALS",
    "SSIM_WINDOW",
    "AshaConfig",
    "AugmentationConfig",
    "BenchmarkConfig",
    "Choice",
    "CohortConfig",
    "ComputeConfig",
    "Conditional",
    "DataConfig",
    "DiffusionConfig",
    "EncoderConfig",
    "EvaluationConfig",
    "ExperimentConfig",
    "Float",
    "Frozen",
    "Integer",
    "LevelConfig",
    "MethodConfig",
    "ModelConfig",
    "NoiseConfig",
    "ObjectiveConfig",
    "Parameter",
    "PatchConfig",
    "PhantomConfig",
    "PretrainingConfig",
    "ReconstructionConfig",
    "ScoringConfig",
    "SearchConfig",
    "Space",
    "Test",
    "TrackingConfig",
    "TrainingConfig",
    "active",
    "changed",
    "did_you_mean",
    "explain",
    "field_paths",
    "load",
    "ordered",
    "override",
    "parse",
    "read_yaml",
    "resolve_paths",
    "same",
    "setting",
    "to_dict",
    "value_at",
    "with_values",
]
