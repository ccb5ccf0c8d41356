"""A whole experiment: every section, and the check that they fit together."""

from pathlib import Path
from typing import Literal, Self

from pydantic import model_validator

from cddpm.config.faults import faults
from cddpm.config.paths import field_paths
from cddpm.config.scoring import ScoringConfig
from cddpm.config.sections import (
    ComputeConfig,
    DataConfig,
    DiffusionConfig,
    EncoderConfig,
    EvaluationConfig,
    Frozen,
    ModelConfig,
    Name,
    PretrainingConfig,
    ReconstructionConfig,
    TrackingConfig,
    TrainingConfig,
)
from cddpm.config.space import SearchConfig


class ExperimentConfig(Frozen):
    """A whole experiment: data, networks, training, scoring, evaluation, search."""

    name: Name
    method: Literal["diffusion", "intensity-threshold"] = "diffusion"
    """``intensity-threshold``: the image itself takes the place of the residual; nothing is trained."""
    seed: int = 0
    output_dir: Path = Path("outputs")
    data: DataConfig = DataConfig()
    encoder: EncoderConfig = EncoderConfig()
    model: ModelConfig = ModelConfig()
    diffusion: DiffusionConfig = DiffusionConfig()
    pretraining: PretrainingConfig = PretrainingConfig()
    training: TrainingConfig = TrainingConfig()
    reconstruction: ReconstructionConfig = ReconstructionConfig()
    scoring: ScoringConfig = ScoringConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    compute: ComputeConfig = ComputeConfig()
    search: SearchConfig = SearchConfig()
    tracking: TrackingConfig = TrackingConfig()

    @model_validator(mode="after")
    def _possible(self) -> Self:
        found = list(faults(self))
        if found:
            raise ValueError("\n".join(found))
        return self


FIELDS = frozenset(field_paths(ExperimentConfig))
"""Dotted paths of all settings."""
