"""One-step reconstruction: noise each slice to a level, predict x_0 once, for all levels, seeds and branches.

A patched model (Behrendt et al. 2023, pDDPM) does so for one box of the slice after the other; where boxes overlap, their
mean counts. Letters: S slices of the volume, H, W their size, B slices of a batch, C length of the condition vector.

Every forward pass has exactly ``batch_size`` rows, of whatever volumes, levels and seeds are next; the last one is filled
up with copies. Kernels round otherwise for another batch shape, but within one shape a row's result depends on that row
alone (tested): so a prediction is the same bit for bit whatever is asked for beside it.
"""

import math
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby, islice, product
from typing import TYPE_CHECKING, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from cddpm.config import ExperimentConfig, NoiseConfig, PatchConfig
from cddpm.models.cddpm import Condition
from cddpm.models.device import to_device
from cddpm.models.diffusion import level_index
from cddpm.models.noise import noise
from cddpm.models.patches import Corner, Size, coverage, grid
from cddpm.models.precision import Format, autocast, certain
from cddpm.models.replay import Coming, Inputs, Replay, ahead
from cddpm.reconstruct.part import Key
from cddpm.seeds import seed_of

if TYPE_CHECKING:
    from cddpm.models.cddpm import ConditionedDiffusion

_WHOLE = PatchConfig()


@dataclass(frozen=True)
class Request:
    """What is to be predicted of one volume. ``key`` seeds its noise; ``slices`` (S, H, W) lie in [0, 1]."""

    key: str
    slices: NDArray[np.floating]
    wanted: tuple[tuple[int, int], ...]
    """(noise level 1..T, noise seed)"""
    names: tuple[tuple[int, ...], ...] | None = None
    """What tells the noise of each slice apart; empty: its number."""


@dataclass(frozen=True)
class Manner:
    """How volumes are predicted; all but ``device`` and ``unconditional`` changes the numbers.

    ``unconditional`` asks for branch ``u`` too. ``embedding_scale`` multiplies the condition of branch ``c``.
    """

    noise: NoiseConfig
    seed: int
    batch_size: int = 64
    precision: Format = "float32"
    device: torch.device | str = "cpu"
    unconditional: bool = True
    patch: PatchConfig = _WHOLE
    embedding_scale: float = 1.0

    @classmethod
    def of(cls, config: ExperimentConfig, device: torch.device | str, unconditional: bool = True) -> Self:
        """How ``config`` predicts. Raises ``ValueError`` for a precision that is not settled yet."""
        diffusion, own = config.diffusion, config.reconstruction
        return cls(
            diffusion.noise,
            config.seed,
            own.batch_size,
            certain(own.precision),
            device,
            unconditional,
            diffusion.patch,
            own.embedding_scale,
        )


@dataclass(frozen=True)
class Networks:
    """What predicts: a trained model on ``device``, the DDPM that guides it if one does, and the experiment of both."""

    config: ExperimentConfig
    model: "ConditionedDiffusion"
    guide: "ConditionedDiffusion | None" = None
    device: torch.device | str = "cpu"

    def predict(
        self, requests: Iterable[Request], unconditional: bool = True
    ) -> Iterator[tuple[Request, dict[Key, NDArray[np.float32]]]]:
        """``predict_volumes``, as the experiment says."""
        return predict_volumes(self.model, requests, Manner.of(self.config, self.device, unconditional), self.guide)


@dataclass(frozen=True, eq=False)
class _Volume:
    """A volume whose predictions are under way."""

    request: Request
    images: Tensor
    """(S, 1, H, W) on the device."""
    condition: Condition | None
    sums: dict[Key, NDArray[np.float32]]
    size: Size
    corners: list[Corner]

    def pieces(self) -> Iterator["_Piece"]:
        places = list(product(self.request.wanted, range(len(self.images)), self.corners))
        for number, ((level, seed), s, corner) in enumerate(places, start=1):
            yield _Piece(self, level, seed, s, corner, number == len(places))

    def result(self) -> dict[Key, NDArray[np.float32]]:
        counts = coverage(self.corners, self.size, self.request.slices.shape[1:3])
        return {key: total / counts for key, total in self.sums.items()}


@dataclass(frozen=True)
class _Piece:
    """One row of a batch: a box of a slice at a noise level, with a noise seed."""

    volume: _Volume
    level: int
    noise_seed: int
    slice: int
    corner: Corner
    is_last: bool
    """Of its volume."""


def predict_volumes(
    model: "ConditionedDiffusion",
    requests: Iterable[Request],
    manner: Manner,
    guide: "ConditionedDiffusion | None" = None,
) -> Iterator[tuple[Request, dict[Key, NDArray[np.float32]]]]:
    """Predict x_0 of the volumes of ``requests``, taken one by one as there is room, in their order; slices are of one size.

    Yields (S, H, W) float32 per (branch, level, seed): branch ``c`` with the condition times ``embedding_scale``, and, if
    ``unconditional`` asks for it, ``u``: the prediction of ``guide`` (a DDPM), or without one that with the learned null
    condition if the model has it. Both see one noise realisation, which depends on the experiment's ``seed``, the volume's
    key, the slice (unless ``noise.shared``), the level and the noise seed alone, never on batches or boxes. The encoder
    runs once per slice. Models must be on ``device``; they are put back into the mode they were in.
    """
    branches = _branches(model, guide, manner.unconditional)
    with _evaluating([model, *filter(None, [guide])]):
        passes = {branch: _replay(branch, network, manner) for branch, network in branches.items()}
        under_way: list[_Volume] = []

        def pieces() -> Iterator[_Piece]:
            for request in requests:
                under_way.append(_begin(model, request, manner, branches))
                yield from under_way[-1].pieces()

        for part, predicted in _predicted(pieces(), passes, manner):
            for branch, x0 in predicted.items():
                _add(branch, part, x0.read().numpy())
            done = under_way.index(part[-1].volume) + part[-1].is_last  # pieces come volume after volume
            yield from ((volume.request, volume.result()) for volume in under_way[:done])
            del under_way[:done]
        yield from ((volume.request, volume.result()) for volume in under_way)  # of which nothing is wanted


def pass_seconds(networks: Networks, slices: NDArray[np.floating]) -> float:
    """Wall-clock seconds of one branch of a volume, (S, H, W), at one noise level and seed.

    The second of two predictions counts: the first one warms up. Copies that fill up the last batch do not count: next to
    other levels and volumes there are none.
    """
    own = networks.config.reconstruction
    batch = min(own.batch_size, len(slices))
    config = networks.config.model_copy(update={"reconstruction": own.model_copy(update={"batch_size": batch})})
    request, seconds = Request("timed", slices, ((own.noise_levels[0], own.noise_seeds[0]),)), 0.0
    for _ in range(2):
        start = time.perf_counter()
        list(replace(networks, config=config).predict([request], unconditional=False))  # an array: all is done
        seconds = time.perf_counter() - start
    return seconds * len(slices) / (math.ceil(len(slices) / batch) * batch)


def _begin(
    model: "ConditionedDiffusion", request: Request, manner: Manner, branches: dict[str, "ConditionedDiffusion"]
) -> _Volume:
    shape = (request.slices.shape[1], request.slices.shape[2])
    size, corners = _boxes(manner.patch, shape)
    array = np.ascontiguousarray(request.slices, dtype=np.float32)
    images = to_device(torch.from_numpy(array).unsqueeze(1), torch.device(manner.device))
    with _inference(manner):
        condition = _condition(model, images, manner.batch_size, manner.embedding_scale)
    sums = {(b, *key): np.zeros(array.shape, np.float32) for b, key in product(branches, request.wanted)}
    return _Volume(request, images, condition, sums, size, corners)


def _predicted(
    pieces: Iterator[_Piece], passes: dict[str, Replay], manner: Manner
) -> Iterator[tuple[list[_Piece], dict[str, Coming]]]:
    """Batches of ``pieces`` and x_0 (B, H, W) float32 of each branch. A GPU computes one batch while the last one is read."""
    parts = iter(lambda: list(islice(pieces, manner.batch_size)), [])
    device, coming = torch.device(manner.device), deque[tuple[list[_Piece], dict[str, Coming]]]()
    with closing(ahead((partial(_batch, part, manner) for part in parts), device)) as batches:
        for part, inputs in batches:
            coming.append((part, {branch: Coming.of(run(inputs)) for branch, run in passes.items()}))
            if len(coming) > 1 or device.type != "cuda":
                yield coming.popleft()
    yield from coming


def _batch(part: list[_Piece], manner: Manner) -> tuple[list[_Piece], Inputs]:
    """What the forward passes over ``part``, filled up to the batch size, are called with."""
    full = part + part[-1:] * (manner.batch_size - len(part))
    device = torch.device(manner.device)
    with torch.inference_mode():
        groups = [
            (volume, to_device(torch.tensor([piece.slice for piece in pieces]), device))
            for volume, pieces in groupby(full, lambda piece: piece.volume)
        ]
        images = torch.cat([volume.images[rows] for volume, rows in groups])
        t, *corners = (to_device(numbers, device) for numbers in _indices(full, manner.patch))
        fields = to_device(_noise(manner, full, images.shape[2:]), device)
        known = _conditions(groups)
        vector, tokens = (None, None) if known is None else (known.vector, known.tokens)
        return part, (images, t, fields, corners[0] if corners else None, vector, tokens)


def _replay(branch: str, network: "ConditionedDiffusion", manner: Manner) -> Replay:
    """The forward pass of one branch: what ``_batch`` makes to x_0 (B, H, W) float32."""

    def run(inputs: Inputs) -> Tensor:
        images, t, fields, corners, vector, tokens = inputs
        assert images is not None
        assert t is not None
        assert fields is not None
        with _inference(manner):
            condition = None if vector is None else Condition(vector, tokens)
            if branch == "u":
                condition = network.null(len(images)) if is_guided(network) else None
            return network.predict_x0(images, t, fields, condition, corners)[:, 0].float()

    return Replay(run, recorded=torch.device(manner.device).type == "cuda")


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


def _indices(part: Sequence[_Piece], patch: PatchConfig) -> list[Tensor]:
    """Noise level index of each piece, (B,), and of a patched model its corner, (B, 2)."""
    corners = [[piece.corner for piece in part]] if patch.enabled else []
    return [torch.tensor(numbers) for numbers in ([level_index(p.level) for p in part], *corners)]


def _conditions(groups: Sequence[tuple[_Volume, Tensor]]) -> Condition | None:
    """The condition of each piece; ``groups`` are rows of volumes."""
    known = [volume.condition[rows] for volume, rows in groups if volume.condition is not None]
    return Condition.cat(known) if known else None


def _add(branch: str, part: Sequence[_Piece], x0: NDArray[np.float32]) -> None:
    for piece, plane in zip(part, x0, strict=False):  # the rows behind `part` only fill the batch up
        box = tuple(slice(start, start + n) for start, n in zip(piece.corner, piece.volume.size, strict=True))
        piece.volume.sums[branch, piece.level, piece.noise_seed][piece.slice][box] += plane[box]


def is_guided(model: nn.Module) -> bool:
    """Whether the model was made for training with condition dropout, so that it can also predict without condition."""
    return getattr(model, "null_condition", None) is not None


@contextmanager
def _evaluating(models: Sequence[nn.Module]) -> Iterator[None]:
    modes = [model.training for model in models]
    for model in models:
        model.eval()
    try:
        yield
    finally:
        for model, training in zip(models, modes, strict=True):
            model.train(training)


@contextmanager
def _inference(manner: Manner) -> Iterator[None]:
    """Around each pass, not around the generator: its caller computes with gradients as it likes."""
    with torch.inference_mode(), autocast(manner.precision, torch.device(manner.device)):
        yield


def _condition(model: "ConditionedDiffusion", images: Tensor, batch_size: int, scale: float) -> Condition | None:
    parts = [model.condition(part) for part in images.split(batch_size)]
    known = [part for part in parts if part is not None]
    if not known:
        return None
    condition = Condition.cat(known)
    return condition if scale == 1 else condition.scaled(scale)


def _noise(manner: Manner, part: Sequence[_Piece], shape: Sequence[int]) -> Tensor:
    """One field per slice, level and noise seed, of which the boxes of the slice see their part; (B, 1, H, W)."""
    height, width = shape
    return noise(manner.noise, [_noise_seed(manner, piece) for piece in part], (height, width))


def _noise_seed(manner: Manner, piece: _Piece) -> int:
    request = piece.volume.request
    name = () if manner.noise.shared else request.names[piece.slice] if request.names else (piece.slice,)
    return seed_of(manner.seed, request.key, *name, piece.level, piece.noise_seed)
