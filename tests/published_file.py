"""Files as PyTorch Lightning would have written them, with random networks of this project under published names."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cddpm.config import ExperimentConfig, override, parse
from cddpm.models.cddpm import ConditionedDiffusion
from cddpm.models.diffusion import schedule_buffers
from cddpm.models.spark import SparK

UNET, ENCODER, SCHEDULE, SPARK = "diffusion.model.", "encoder.encoder.", "diffusion.", "model."

TINY: dict[str, Any] = {
    "name": "tiny",
    "seed": 3,
    "data": {"voxel_size_mm": 2.0, "volume_shape": [96, 96, 42], "rescale_factor": 3, "unhealthy": ["Brats21"]},
    "encoder": {"max_pool": False},
    "pretraining": {"mask_ratio": 0.5},
    "model": {"attention_head_width": 32},
    "reconstruction": {"noise_levels": [5, 20], "batch_size": 16},
    "diffusion": {"noise": {"kind": "gaussian"}},
    "scoring": {"median_kernel": 3},
}
"""What a person knows of the file; ``SHAPES`` is what its tensors tell."""
SHAPES = {
    "encoder.architecture": "resnet18",
    "encoder.width": 8,
    "model.base_width": 32,
    "model.width_multipliers": [1, 2],
    "model.residual_blocks": 1,
    "model.condition_width": 16,
    "diffusion.timesteps": 40,
    "diffusion.schedule": "linear",
    "pretraining.decoder_width": 16,
}


def known(**values: Any) -> ExperimentConfig:
    """The configuration without what the tensors tell; ``values`` by dotted path with ``__`` for the dots."""
    changed = {path.replace("__", "."): value for path, value in values.items()}
    return parse(override(TINY, changed, "test"), "test")


def whole(**values: Any) -> ExperimentConfig:
    """The configuration with everything."""
    changed = {path.replace("__", "."): value for path, value in values.items()}
    return parse(override(TINY, {**SHAPES, **changed}, "test"), "test")


def network(config: ExperimentConfig) -> ConditionedDiffusion:
    """A model with random weights everywhere, batch statistics too, in evaluation mode."""
    torch.manual_seed(0)
    model = ConditionedDiffusion(config.model, config.encoder, config.diffusion)
    return _drawn(model).eval()


def _drawn(model: Any) -> Any:
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if name.endswith("running_var"):
                tensor.uniform_(0.5, 1.5)
            elif tensor.is_floating_point():  # layers that start at zero would hide mistakes
                tensor += 0.05 * torch.randn_like(tensor)
            else:
                tensor.fill_(7)
    return model


def spark(config: ExperimentConfig) -> SparK:
    """A pretraining with random weights."""
    torch.manual_seed(1)
    return _drawn(SparK(config.encoder, config.pretraining.decoder_width, config.pretraining.mask_ratio)).eval()


def diffusion_state(model: ConditionedDiffusion, config: ExperimentConfig) -> dict[str, Tensor]:
    """The model's tensors and schedule under the names of a published diffusion checkpoint."""
    prefixes = {"unet.": UNET, "encoder.": ENCODER}
    state = {
        p + name.removeprefix(own): t
        for name, t in model.state_dict().items()
        for own, p in prefixes.items()
        if name.startswith(own)
    }
    diffusion = config.diffusion
    buffers = schedule_buffers(diffusion.schedule, diffusion.timesteps, diffusion.p2_gamma, diffusion.p2_k)
    return {**state, **{SCHEDULE + name: values for name, values in buffers.items()}}


def pretraining_state(model: SparK) -> dict[str, Tensor]:
    """The tensors under the names of a published pretraining checkpoint, display constants too."""
    unread = {"imn_m": torch.zeros(1, 3, 1, 1), "imn_s": torch.ones(1, 3, 1, 1), "norm_black": torch.zeros(1, 3, 8, 8)}
    return {SPARK + name: tensor for name, tensor in {**model.state_dict(), **unread}.items()}


def save(path: Path, state: Any, **more: Any) -> Path:
    """Write the file of a Lightning checkpoint."""
    about = {"epoch": 12, "global_step": 345, "pytorch-lightning_version": "1.9.3", "optimizer_states": [{"state": {}}]}
    torch.save({**about, "state_dict": state, **more}, path)
    return path
