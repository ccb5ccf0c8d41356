"""Training of the conditioned diffusion model as an objective of the training loop."""

import numpy as np
import torch
from torch import Tensor, nn

from cddpm.config import ExperimentConfig
from cddpm.data.augment import augment
from cddpm.data.store import SliceStore
from cddpm.models.cddpm import ConditionedDiffusion, memory_format
from cddpm.models.noise import noise, slice_seed
from cddpm.training.loop import Recipe
from cddpm.training.order import Rows, evenly_spaced
from cddpm.training.preview import Preview
from cddpm.training.ranks import Ranks

STAGE = "train"


def recipe(config: ExperimentConfig) -> Recipe:
    """The loop's settings for the diffusion model."""
    settings = config.training
    return Recipe(
        images=settings.images,
        batch_size=settings.batch_size,
        learning_rate=settings.learning_rate,
        weight_decay=settings.weight_decay,
        evaluations=settings.evaluations,
        seed=slice_seed(config.seed, STAGE),
        optimizer="adam",
        warmup_images=settings.warmup_images,
        decay=settings.learning_rate_decay,
        gradient_clip=settings.gradient_clip,
        ema_decay=settings.ema_decay,
        precision=settings.precision,
    )


class DiffusionObjective:
    """Predict x_0 (or eps) of a noised slice; t uniform over 1..T, noise and condition dropout drawn per slice."""

    def __init__(
        self,
        config: ExperimentConfig,
        store: SliceStore,
        validation_rows: Rows,
        preview: Preview,
        device: torch.device,
    ) -> None:
        torch.manual_seed(slice_seed(config.seed, STAGE, "weights"))
        self.model = ConditionedDiffusion(config.model, config.encoder, config.diffusion)
        self.module: nn.Module = self.model
        self.config, self.store, self.device, self.preview = config, store, device, preview
        self.validation_rows = evenly_spaced(validation_rows, config.training.validation_slices)

    def batch(self, rows: Rows, positions: Rows) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Slices (B, 1, H, W) in [0, 1], noise level indices (B,), noise (B, 1, H, W), dropped conditions (B,) or None."""
        seed, diffusion = self.config.seed, self.config.diffusion
        slices = torch.from_numpy(self.store.images(rows)).unsqueeze(1)
        if self.config.training.augmentation.enabled:
            seeds = torch.tensor([slice_seed(seed, "augmentation", int(p)) for p in positions])
            voxel_size_mm = (self.config.data.voxel_size_mm or 1.0) * self.config.data.rescale_factor
            slices = augment(slices, seeds, self.config.training.augmentation, voxel_size_mm)
        levels = torch.tensor([slice_seed(seed, "level", int(p)) % diffusion.timesteps for p in positions])
        dropped = None
        if diffusion.condition_dropout:
            draws = [slice_seed(seed, "dropout", int(p)) / 2**63 for p in positions]
            dropped = (torch.tensor(draws) < diffusion.condition_dropout).to(self.device)
        return (*self._noised(slices, levels, [slice_seed(seed, "noise", int(p)) for p in positions]), dropped)

    def _noised(self, slices: Tensor, levels: Tensor, seeds: list[int]) -> tuple[Tensor, Tensor, Tensor]:
        height, width = slices.shape[2:]
        fields = noise(self.config.diffusion.noise, seeds, (height, width))
        on_device = [t.to(self.device, memory_format=memory_format(self.device)) for t in (slices, fields)]
        return on_device[0], levels.to(self.device), on_device[1]

    def validate(self, module: nn.Module, ranks: Ranks) -> dict[str, float]:
        """Loss on fixed healthy slices (fixed noise, levels spread over 1..T) and the score of a few unhealthy volumes."""
        metrics = {"val/loss": self._validation_loss(module, ranks)}
        return {**metrics, **self.preview.score(self.model, ranks)}

    def _validation_loss(self, module: nn.Module, ranks: Ranks) -> float:
        count, batch = len(self.validation_rows), self.config.training.batch_size
        levels = torch.linspace(0, self.config.diffusion.timesteps - 1, count).round().long()
        order = np.random.Generator(np.random.Philox(key=count)).permutation(count)  # levels not along the body axis
        mine = np.arange(count)[ranks.rank :: ranks.world]
        sums = torch.zeros(2, dtype=torch.float64)
        for start in range(0, len(mine), batch):
            part = mine[start : start + batch]
            slices = torch.from_numpy(self.store.images(self.validation_rows[part])).unsqueeze(1)
            seeds = [slice_seed(self.config.seed, "validation", int(i)) for i in part]
            loss = module(*self._noised(slices, levels[order[part]], seeds), None)
            sums += torch.tensor([float(loss) * len(part), len(part)], dtype=torch.float64)
        total, number = ranks.total(sums).tolist()
        return float(total / number)
