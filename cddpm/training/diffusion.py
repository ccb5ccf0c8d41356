"""Training of the conditioned diffusion model as an objective of the training loop."""

from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from cddpm.config import ExperimentConfig
from cddpm.data.augment import augment
from cddpm.data.store import SliceStore
from cddpm.models.cddpm import ConditionedDiffusion
from cddpm.models.device import memory_format, to_device
from cddpm.models.noise import noise
from cddpm.models.patches import training_corner
from cddpm.models.precision import certain
from cddpm.seeds import seed_of
from cddpm.training.best import Criterion
from cddpm.training.loop import Recipe
from cddpm.training.order import Rows, evenly_spaced
from cddpm.training.preview import OBJECTIVE, Preview
from cddpm.training.ranks import Ranks

STAGE = "train"
LOSS = "val/loss"


def recipe(config: ExperimentConfig) -> Recipe:
    """The loop's settings for the diffusion model."""
    settings = config.training
    return Recipe(
        images=settings.images,
        batch_size=settings.batch_size,
        learning_rate=settings.learning_rate,
        weight_decay=settings.weight_decay,
        evaluations=settings.evaluations,
        seed=seed_of(config.seed, STAGE),
        optimizer="adam",
        warmup_images=settings.warmup_images,
        decay=settings.learning_rate_decay,
        gradient_clip=settings.gradient_clip,
        ema_decay=settings.ema_decay,
        precision=certain(settings.precision),
        keep=_criterion(settings.keep),
    )


def _criterion(keep: Literal["last", "best-loss", "best-score"]) -> Criterion | None:
    if keep == "last":
        return None
    if keep == "best-loss":
        return Criterion(LOSS, "lower")
    if keep == "best-score":
        return Criterion(OBJECTIVE, "higher")
    raise ValueError(f"training.keep: {keep!r}; allowed are last, best-loss and best-score")


class DiffusionObjective:
    """Predict x_0 (or eps) of a noised slice; t uniform over 1..T.

    Noise, condition dropout and, of a patched model, the box are drawn per slice.
    """

    replayable = True

    def __init__(
        self,
        config: ExperimentConfig,
        store: SliceStore,
        validation_rows: Rows,
        preview: Preview,
        device: torch.device,
    ) -> None:
        torch.manual_seed(seed_of(config.seed, STAGE, "weights"))
        self.model = ConditionedDiffusion(config.model, config.encoder, config.diffusion)
        self.module: nn.Module = self.model
        self.config, self.store, self.device, self.preview = config, store, device, preview
        self.validation_rows = evenly_spaced(validation_rows, config.training.validation_slices)

    def batch(self, rows: Rows, positions: Rows) -> tuple[Tensor | None, ...]:
        """Slices (B, 1, H, W) in [0, 1], noise level indices (B,), noise (B, 1, H, W), dropped conditions (B,) or None.

        A patched model also gets the corners (B, 2) of its boxes.
        """
        seed, diffusion = self.config.seed, self.config.diffusion
        slices = torch.from_numpy(self.store.images(rows)).unsqueeze(1)
        if self.config.training.augmentation.enabled:
            seeds = torch.tensor([seed_of(seed, "augmentation", int(p)) for p in positions])
            voxel_size_mm = (self.config.data.voxel_size_mm or 1.0) * self.config.data.rescale_factor
            slices = augment(slices, seeds, self.config.training.augmentation, voxel_size_mm)
        levels = torch.tensor([seed_of(seed, "level", int(p)) % diffusion.timesteps for p in positions])
        dropped = None
        if diffusion.condition_dropout:
            draws = [seed_of(seed, "dropout", int(p)) / 2**63 for p in positions]
            dropped = to_device(torch.tensor(draws) < diffusion.condition_dropout, self.device)
        noised = self._noised(slices, levels, [self._noise_seed(int(p)) for p in positions])
        return (*noised, dropped, *self._corners([("box", int(p)) for p in positions]))

    def _noise_seed(self, position: int) -> int:
        """Shared noise is that of the whole batch over all workers, whatever their number."""
        seed, batch_size = self.config.seed, self.config.training.batch_size
        if self.config.diffusion.noise.shared:
            return seed_of(seed, "noise", "batch", position // batch_size)
        return seed_of(seed, "noise", position)

    def _corners(self, names: list[tuple[str | int, ...]]) -> list[Tensor]:
        """The boxes' corners (B, 2), one per name; nothing for a model that is not patched."""
        patch, shape = self.config.diffusion.patch, self.config.data.slice_shape
        if not patch.enabled:
            return []
        corners = [training_corner(patch, seed_of(self.config.seed, *name), shape) for name in names]
        return [to_device(torch.tensor(corners), self.device)]

    def _noised(self, slices: Tensor, levels: Tensor, seeds: list[int]) -> tuple[Tensor, Tensor, Tensor]:
        height, width = slices.shape[2:]
        fields = noise(self.config.diffusion.noise, seeds, (height, width))
        layout = memory_format(self.device)
        images, noises = (to_device(tensor, self.device, layout) for tensor in (slices, fields))
        return images, to_device(levels, self.device), noises

    def validate(self, module: nn.Module, ranks: Ranks, images: int = 0) -> dict[str, float]:
        """Loss on healthy slices and the score of a few unhealthy volumes.

        The slices, their levels and noise are fixed (levels spread over 1..T), or drawn anew after each so many ``images``
        (``training.validation_draw``).
        """
        metrics = {LOSS: self._validation_loss(module, ranks, images)}
        return {**metrics, **self.preview.score(self.model, ranks)}

    def _validation_loss(self, module: nn.Module, ranks: Ranks, images: int = 0) -> float:
        (rows, levels, name), batch = self._validation_draw(images), self.config.training.batch_size
        mine = np.arange(len(rows))[ranks.rank :: ranks.world]
        sums = torch.zeros(2, dtype=torch.float64)
        for start in range(0, len(mine), batch):
            part = mine[start : start + batch]
            slices = torch.from_numpy(self.store.images(rows[part])).unsqueeze(1)
            shared = self.config.diffusion.noise.shared
            seeds = [seed_of(self.config.seed, *name, 0 if shared else int(i)) for i in part]
            corners = self._corners([(*name, "box", int(i)) for i in part])
            loss = module(*self._noised(slices, levels[part], seeds), None, *corners)
            sums += torch.tensor([float(loss) * len(part), len(part)], dtype=torch.float64)
        total, number = ranks.total(sums).tolist()
        return float(total / number)

    def _validation_draw(self, images: int) -> tuple[Rows, Tensor, tuple[str | int, ...]]:
        """Slices (N,) of the validation loss, their noise level indices (N,), and what seeds their noise."""
        seed, timesteps, draw = self.config.seed, self.config.diffusion.timesteps, self.config.training.validation_draw
        if draw == "fixed":
            count = len(self.validation_rows)
            order = np.random.Generator(np.random.Philox(key=count)).permutation(
                count
            )  # levels not along the body axis
            return self.validation_rows, torch.linspace(0, timesteps - 1, count).round().long()[order], ("validation",)
        if draw == "random":
            data = self.config.data
            volumes = [self.store.slice_ids([v]) for v in self.store.cohort(data.healthy, "val", data.fold)]
            name = ("validation", "images", images)
            rows = [ids[seed_of(seed, *name, "slice", i) % len(ids)] for i, ids in enumerate(volumes)]
            levels = [seed_of(seed, *name, "level", i) % timesteps for i in range(len(rows))]
            return np.array(rows), torch.tensor(levels), name
        raise ValueError(f"training.validation_draw: {draw!r}; allowed are fixed and random")
