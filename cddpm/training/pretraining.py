"""SparK pretraining of the encoder as an objective of the training loop (Tian et al. 2023)."""

import numpy as np
import torch
from torch import Tensor, nn

from cddpm.config import ExperimentConfig
from cddpm.data.store import SliceStore
from cddpm.models.device import memory_format, to_device
from cddpm.models.precision import certain
from cddpm.models.spark import SparK, seeded_masks
from cddpm.seeds import seed_of
from cddpm.training.loop import Recipe
from cddpm.training.order import Rows, evenly_spaced
from cddpm.training.ranks import Ranks

STAGE = "pretrain"


def recipe(config: ExperimentConfig) -> Recipe:
    """The loop's settings for pretraining."""
    settings = config.pretraining
    return Recipe(
        images=settings.images,
        batch_size=settings.batch_size,
        learning_rate=settings.learning_rate,
        weight_decay=settings.weight_decay,
        evaluations=settings.evaluations,
        seed=seed_of(config.seed, STAGE),
        optimizer="adamw",
        decay="cosine",
        precision=certain(config.training.precision),
    )


class PretrainingObjective:
    """Reconstruct the hidden patches of a slice from the visible ones."""

    replayable = False  # the places that are seen differ in number from batch to batch

    def __init__(
        self, config: ExperimentConfig, store: SliceStore, validation_rows: Rows, device: torch.device
    ) -> None:
        settings = config.pretraining
        torch.manual_seed(seed_of(config.seed, STAGE, "weights"))
        self.spark = SparK(config.encoder, settings.decoder_width, settings.mask_ratio)
        self.module: nn.Module = self.spark
        self.store, self.seed, self.device = store, config.seed, device
        self.validation_rows = evenly_spaced(validation_rows, config.training.validation_slices)
        self.validation_batch = settings.batch_size

    def batch(self, rows: Rows, positions: Rows) -> tuple[Tensor, Tensor]:
        """Slices (B, 1, H, W) and masks (B, 1, h, w), True = visible, each drawn for its position in the data stream."""
        return self._batch(rows, [seed_of(self.seed, STAGE, int(p)) for p in positions])

    def _batch(self, rows: Rows, seeds: list[int]) -> tuple[Tensor, Tensor]:
        slices = torch.from_numpy(self.store.images(rows)).unsqueeze(1)
        grid = self.spark.grid(slices)
        masks = seeded_masks(torch.tensor(seeds, dtype=torch.int64), grid, self.spark.visible_patches(grid))
        return to_device(slices, self.device, memory_format(self.device)), to_device(masks, self.device)

    def validate(self, module: nn.Module, ranks: Ranks, images: int = 0) -> dict[str, float]:
        """Loss on fixed healthy validation slices with fixed masks, the same after any number of ``images``."""
        mine = np.arange(len(self.validation_rows))[ranks.rank :: ranks.world]
        sums = torch.zeros(2, dtype=torch.float64)
        for start in range(0, len(mine), self.validation_batch):
            part = mine[start : start + self.validation_batch]
            seeds = [seed_of(self.seed, STAGE, "validation", int(i)) for i in part]
            loss = module(*self._batch(self.validation_rows[part], seeds))
            sums += torch.tensor([float(loss) * len(part), len(part)], dtype=torch.float64)
        total, count = ranks.total(sums).tolist()
        return {f"{STAGE}/val_loss": total / count}
