"""All settings of an experiment, section by section."""

from pathlib import Path
from typing import Literal

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


class Settings(Frozen):
    """Every setting, each right by itself; ``ExperimentConfig`` adds that they fit together."""

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
