"""One-step reconstruction of a volume: noise each slice to a level, predict x_0 once, for all levels, seeds and branches.

A patched model (Behrendt et al. 2023, pDDPM) does so for one box of the slice after the other; where boxes overlap, their
mean counts. Letters: S slices of the volume, H, W their size, B slices of a batch, C length of the condition vector.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from cddpm.config import NoiseConfig, PatchConfig
from cddpm.models.condition import Condition
from cddpm.models.diffusion import level_index
from cddpm.models.noise import noise, slice_seed
from cddpm.models.patches import Corner, Size, coverage, grid
from cddpm.reconstruct.cache import Key

if TYPE_CHECKING:
    from cddpm.models.cddpm import ConditionedDiffusion

_WHOLE = PatchConfig()


@dataclass(frozen=True)
class _Piece:
    """One row of a batch: a box of a slice at a noise level, with a noise seed."""

    level: int
    noise_seed: int
    slice: int
    corner: Corner


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
    patch: PatchConfig = _WHOLE,
    embedding_scale: float = 1.0,
    guide: "ConditionedDiffusion | None" = None,
) -> dict[Key, NDArray[np.float32]]:
    """Predict x_0 of ``slices`` (S, H, W) in [0, 1] at every noise level (1..T) and noise seed.

    Returns (S, H, W) float32 per (branch, level, seed): branch ``c`` with the condition times ``embedding_scale``, and, if
    ``unconditional`` asks for it, ``u``: the prediction of ``guide`` (a DDPM), or without one that with the learned null
    condition if the model has it. Both see one noise realisation, which depends on the experiment's ``seed``, the
    ``volume_key``, the slice (unless ``noise_config.shared``), the level and the noise seed alone, never on batches or
    boxes. The encoder runs once per slice. Models must be on ``device``; they are put back into the mode they were in.
    """
    shape = (slices.shape[1], slices.shape[2])
    size, corners = _boxes(patch, shape)
    keys = list(product(dict.fromkeys(levels), dict.fromkeys(seeds)))
    pieces = [_Piece(*key, s, corner) for key, s, corner in product(keys, range(len(slices)), corners)]
    images = torch.from_numpy(np.ascontiguousarray(slices, dtype=np.float32)).unsqueeze(1).to(device)
    branches = _branches(model, guide, unconditional)
    sums = {(b, *key): np.zeros(slices.shape, np.float32) for b in branches for key in keys}
    with _inference([model, *filter(None, [guide])], precision, torch.device(device)):
        condition = _condition(model, images, batch_size, embedding_scale)
        for start in range(0, len(pieces), batch_size):
            part = pieces[start : start + batch_size]
            rows, t, *corner = _indices(part, patch, images.device)
            realisation = _noise(noise_config, part, volume_key, seed, shape).to(images.device)
            for branch, network in branches.items():
                given = _given(branch, network, condition, rows)
                x0 = network.predict_x0(images[rows], t, realisation, given, *corner)
                _add(sums, branch, part, x0[:, 0].float().cpu().numpy(), size)
    counts = coverage(corners, size, shape)
    return {key: total / counts for key, total in sums.items()}


def _boxes(patch: PatchConfig, shape: Size) -> tuple[Size, list[Corner]]:
    """Size and corners of the boxes; one of the whole slice for a model that is not patched."""
    if not patch.enabled:
        return shape, [(0, 0)]
    size = (patch.size, patch.size)
    return size, grid(shape, size, patch.overlap)


def _branches(
    model: "ConditionedDiffusion", guide: "ConditionedDiffusion | None", unconditional: bool
) -> dict[str, "ConditionedDiffusion"]:
    """The network that predicts each branch."""
    if not unconditional or (guide is None and not is_guided(model)):
        return {"c": model}
    return {"c": model, "u": model if guide is None else guide}


def _indices(part: Sequence[_Piece], patch: PatchConfig, device: torch.device) -> list[Tensor]:
    """Slice and noise level index of each piece, (B,), and of a patched model its corner, (B, 2)."""
    rows, t = [piece.slice for piece in part], [level_index(piece.level) for piece in part]
    corners = [[piece.corner for piece in part]] if patch.enabled else []
    return [torch.tensor(numbers, device=device) for numbers in (rows, t, *corners)]


def _given(branch: str, network: "ConditionedDiffusion", condition: Condition | None, rows: Tensor) -> Condition | None:
    """The condition that ``network`` sees in this branch."""
    if branch == "u":
        return network.null(len(rows)) if is_guided(network) else None
    return None if condition is None else condition[rows]


def _add(
    sums: dict[Key, NDArray[np.float32]], branch: str, part: Sequence[_Piece], x0: NDArray[np.float32], size: Size
) -> None:
    for piece, plane in zip(part, x0, strict=True):
        box = tuple(slice(start, start + length) for start, length in zip(piece.corner, size, strict=True))
        sums[branch, piece.level, piece.noise_seed][piece.slice][box] += plane[box]


def is_guided(model: nn.Module) -> bool:
    """Whether the model was made for training with condition dropout, so that it can also predict without condition."""
    return getattr(model, "null_condition", None) is not None


@contextmanager
def _inference(models: Sequence[nn.Module], precision: str, device: torch.device) -> Iterator[None]:
    modes = [model.training for model in models]
    for model in models:
        model.eval()
    try:
        with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16"):
            yield
    finally:
        for model, training in zip(models, modes, strict=True):
            model.train(training)


def _condition(model: "ConditionedDiffusion", images: Tensor, batch_size: int, scale: float) -> Condition | None:
    parts = [model.condition(part) for part in images.split(batch_size)]
    known = [part for part in parts if part is not None]
    if not known:
        return None
    condition = Condition.cat(known)
    return condition if scale == 1 else condition.scaled(scale)


def _noise(config: NoiseConfig, part: Sequence[_Piece], volume_key: str, seed: int, shape: Size) -> Tensor:
    """One field per slice, level and noise seed, of which the boxes of the slice see their part; (B, 1, H, W)."""
    seeds = [slice_seed(seed, volume_key, *([] if config.shared else [p.slice]), p.level, p.noise_seed) for p in part]
    return noise(config, seeds, shape)
