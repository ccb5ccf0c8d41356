"""The experiments that are measured: networks of ``tune_configs/``, on the stores of ``cohort``, and their trainers."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from cddpm.config import ExperimentConfig, load, with_values
from cddpm.data.store import SliceStore
from cddpm.models.precision import hardware
from cddpm.training import diffusion, pretraining
from cddpm.training.loop import Hooks, Objective, Recipe, Trainer
from cddpm.training.preview import Preview
from cddpm.training.ranks import Ranks
from gpu_check import cohort
from gpu_check.assignment import Assignment
from gpu_check.plant import slowed

Precision = Literal["float32", "bfloat16"]
CONFIGS = Path(__file__).resolve().parents[3] / "tune_configs"
WITHOUT_END = 10**9
"""Images of a training that is ended from outside."""


def usual_precision(device: torch.device) -> Precision:
    """What ``precision: auto`` settles on there."""
    return "bfloat16" if hardware("cuda" if device.type == "cuda" else "cpu").bfloat16 else "float32"


def _on(size: cohort.Size, **values: Any) -> dict[str, Any]:
    """Settings of an experiment on a store of ``size``; ``values`` with ``__`` for the dots."""
    return {
        "data.modality": cohort.MODALITY,
        "data.unhealthy": [cohort.UNHEALTHY],
        "data.volume_shape": list(size.shape),
        "data.rescale_factor": 1,
        "data.voxel_size_mm": size.voxel_mm,
        "search.datasets": [cohort.UNHEALTHY],
        **{name.replace("__", "."): value for name, value in values.items()},
    }


_TINY = {
    "encoder.architecture": "resnet18",
    "encoder.width": 8,
    "encoder.max_pool": False,
    "model.base_width": 16,
    "model.width_multipliers": [1, 1],
    "model.residual_blocks": 1,
    "model.attention_head_width": 16,
    "pretraining.decoder_width": 16,
    "pretraining.batch_size": 8,
}
_SHORT = {
    "reconstruction.batch_size": 8,
    "scoring.noise_levels": [500],
    "training.batch_size": 2,
    "training.validation_slices": 2,
    "training.validation_volumes": 1,
}
"""Of training and validation in a rehearsal."""


def full(tiny: bool, precision: Precision) -> ExperimentConfig:
    """The networks of ``reference.yaml``, trained as in ``training.yaml``: noise per slice, moving average.

    With condition dropout, so that there is something to guide with.
    """
    values = _on(
        cohort.TINY if tiny else cohort.FULL,
        diffusion__noise__shared=False,
        diffusion__condition_dropout=0.1,
        training__ema_decay=0.999,
        training__precision=precision,
        training__keep="last",
        training__evaluations=1,
        training__validation_slices=16,
        training__validation_volumes=1,
        reconstruction__precision=precision,
    )
    return load(CONFIGS / "reference.yaml", {**values, **({**_TINY, **_SHORT} if tiny else {})})


def quickstart(tiny: bool, precision: Precision, steps: int = 1000, seed: int = 0) -> ExperimentConfig:
    """The quickstart's network and training, over ``steps`` steps."""
    values = _on(
        cohort.TINY if tiny else cohort.HALF,
        seed=seed,
        training__precision=precision,
        reconstruction__precision=precision,
        training__evaluations=2 if tiny else 8,
    )
    config = load(CONFIGS / "quickstart.yaml", {**values, **(_SHORT if tiny else {})})
    return with_values(config, {"training.images": steps * config.training.batch_size})


@dataclass(frozen=True)
class Bench:
    """An objective with its data, of which trainers are made."""

    stage: str
    objective: Objective
    recipe: Recipe
    rows: np.ndarray
    device: torch.device

    def trainer(self, folder: Path, **changes: Any) -> Trainer:
        """A new trainer of the same module; ``changes`` of the recipe."""
        recipe = replace(self.recipe, **changes)
        return Trainer(self.stage, self.objective, recipe, self.rows, folder, "check", Ranks(device=self.device))


def diffusion_bench(
    config: ExperimentConfig, store_path: Path, device: torch.device, plant: str | None = None
) -> Bench:
    """Training of the diffusion model of ``config``."""
    store = SliceStore.open(store_path, verify=False)
    objective = diffusion.DiffusionObjective(config, store, _rows(store, "val"), Preview(config, store), device)
    if plant == "slow-loader":
        slowed(objective)
    rows = _rows(store, "train", config.training.minimum_brain_fraction)
    return Bench(diffusion.STAGE, objective, diffusion.recipe(config), rows, device)


def pretraining_bench(config: ExperimentConfig, store_path: Path, device: torch.device) -> Bench:
    """Pretraining of the encoder of ``config``."""
    store = SliceStore.open(store_path, verify=False)
    objective = pretraining.PretrainingObjective(config, store, _rows(store, "val"), device)
    return Bench(pretraining.STAGE, objective, pretraining.recipe(config), _rows(store, "train"), device)


def _rows(store: SliceStore, split: str, minimum_brain_fraction: float = 0.0) -> np.ndarray:
    return store.slice_ids(store.cohort(cohort.HEALTHY, split), minimum_brain_fraction)


def store_of(config: ExperimentConfig, assignment: Assignment) -> Path:
    """The store that ``config`` was made for."""
    sizes = {size.shape: size for size in (cohort.FULL, cohort.HALF, cohort.TINY)}
    return cohort.made(sizes[config.data.volume_shape], assignment.scratch_folder)


class Enough(Exception):  # noqa: N818 - not an error: what was to be seen of a training has been seen
    """Ends a training from its hook, without saving or validating."""


def run_steps(trainer: Trainer, after_step: Callable[[int, float], bool]) -> None:
    """Run the loop until ``after_step(steps made, loss)`` is false; the loss has been read, so the device is done."""
    made = 0

    def progress(stage: str, images: int, budget: int, loss: float) -> None:
        nonlocal made
        made += 1
        if not after_step(made, loss):
            raise Enough

    try:
        trainer.run(Hooks(progress=progress))
    except Enough:
        return
    raise ValueError(f"{trainer.stage}: the training came to its end after {made} steps; give it more images")
