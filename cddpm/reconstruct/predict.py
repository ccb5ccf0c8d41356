"""One-step reconstruction of a volume: noise each slice to a level, predict x_0 once, for all levels, seeds and branches.

Letters: S slices of the volume, H, W their size, B slices of a batch, C length of the condition vector.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import product
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from cddpm.config import NoiseConfig
from cddpm.models.condition import Condition
from cddpm.models.diffusion import level_index
from cddpm.models.noise import noise, slice_seed
from cddpm.reconstruct.cache import Key

if TYPE_CHECKING:
    from cddpm.models.cddpm import ConditionedDiffusion


def predict_volume(
    model: "ConditionedDiffusion",
    slices: NDArray[np.floating],
    levels: Sequence[int],
    seeds: Sequence[int],
    noise_config: NoiseConfig,
    volume_key: str,
    seed: int,
    batch_size: int = 64,
    precision: Literal["float32", "bfloat16"] = "float32",
    device: torch.device | str = "cpu",
    unconditional: bool = True,
) -> dict[Key, NDArray[np.float32]]:
    """Predict x_0 of ``slices`` (S, H, W) in [0, 1] at every noise level (1..T) and noise seed.

    Returns (S, H, W) float32 per (branch, level, seed): branch ``c`` with the condition, and ``u`` with the learned null
    condition if the model has one and ``unconditional`` asks for it. Both see one noise realisation, which depends on
    the experiment's ``seed``, the ``volume_key``, the slice, the level and the noise seed alone, never on batches. The
    encoder runs once per slice. The model must be on ``device``; it is put back into training mode if it was in it.
    """
    work = list(product(levels, seeds, range(len(slices))))
    images = torch.from_numpy(np.ascontiguousarray(slices, dtype=np.float32)).unsqueeze(1).to(device)
    branches = ("c", "u") if unconditional and is_guided(model) else ("c",)
    predicted = {branch: np.empty((len(work), *slices.shape[1:]), np.float32) for branch in branches}
    with _inference(model, precision, torch.device(device)):
        condition = _condition(model, images, batch_size)
        for start in range(0, len(work), batch_size):
            part = work[start : start + batch_size]
            realisation = _noise(noise_config, part, volume_key, seed, slices.shape[1:]).to(device)
            rows = torch.tensor([s for _, _, s in part], device=device)
            t = torch.tensor([level_index(level) for level, _, _ in part], device=device)
            for branch in branches:
                given = None if condition is None else condition[rows] if branch == "c" else model.null(len(part))
                x0 = model.predict_x0(images[rows], t, realisation, given)
                predicted[branch][start : start + len(part)] = x0[:, 0].float().cpu().numpy()
    return _by_key(predicted, levels, seeds, len(slices))


def is_guided(model: nn.Module) -> bool:
    """Whether the model was made for training with condition dropout, so that it can also predict without condition."""
    return getattr(model, "null_condition", None) is not None


@contextmanager
def _inference(model: nn.Module, precision: str, device: torch.device) -> Iterator[None]:
    training = model.training
    model.eval()
    try:
        with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16"):
            yield
    finally:
        model.train(training)


def _condition(model: "ConditionedDiffusion", images: Tensor, batch_size: int) -> Condition | None:
    parts = [model.condition(part) for part in images.split(batch_size)]
    known = [part for part in parts if part is not None]
    return Condition.cat(known) if known else None


def _noise(
    config: NoiseConfig, part: Sequence[tuple[int, int, int]], volume_key: str, seed: int, shape: tuple[int, ...]
) -> Tensor:
    seeds = [slice_seed(seed, volume_key, s, level, noise_seed) for level, noise_seed, s in part]
    return noise(config, seeds, (shape[0], shape[1]))


def _by_key(
    predicted: dict[str, NDArray[np.float32]], levels: Sequence[int], seeds: Sequence[int], depth: int
) -> dict[Key, NDArray[np.float32]]:
    result: dict[Key, NDArray[np.float32]] = {}
    for branch, array in predicted.items():
        volumes = array.reshape(-1, depth, *array.shape[1:])
        for (level, noise_seed), volume in zip(product(levels, seeds), volumes, strict=True):
            result[branch, level, noise_seed] = volume
    return result
