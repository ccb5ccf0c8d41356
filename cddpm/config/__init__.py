"""The configuration: typed, frozen, closed.

A file in ``tune_configs/`` is an ``ExperimentConfig`` as YAML. ``load`` reads one, applies overrides with dotted paths and
lists all faults at once, each with file, dotted path, value and what is allowed.
"""

from cddpm.config.benchmark import BenchmarkConfig, CohortConfig, MethodConfig
from cddpm.config.experiment import FIELDS, ExperimentConfig
from cddpm.config.loading import explain, load, override, parse, read_yaml, resolve_paths, to_dict, with_values
from cddpm.config.paths import field_paths
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
from cddpm.config.space import AshaConfig, Choice, Float, Integer, LevelConfig, Parameter, SearchConfig, Space

__all__ = [
    "FIELDS",
    "SSIM_WINDOW",
    "AshaConfig",
    "AugmentationConfig",
    "BenchmarkConfig",
    "Choice",
    "CohortConfig",
    "ComputeConfig",
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
    "Parameter",
    "PatchConfig",
    "PhantomConfig",
    "PretrainingConfig",
    "ReconstructionConfig",
    "ScoringConfig",
    "SearchConfig",
    "Space",
    "TrackingConfig",
    "TrainingConfig",
    "explain",
    "field_paths",
    "load",
    "override",
    "parse",
    "read_yaml",
    "resolve_paths",
    "to_dict",
    "with_values",
]
