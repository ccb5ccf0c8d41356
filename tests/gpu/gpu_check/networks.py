"""The networks on the device against float64: U-Net in its three forms, encoder, SparK, and the diffusion around them.

Letters: B slices, H and W their size.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from cddpm.config import ExperimentConfig, load
from cddpm.models.cddpm import ConditionedDiffusion
from cddpm.models.diffusion import Diffusion, to_signed
from cddpm.models.encoder import ResNetEncoder
from cddpm.models.spark import SparK, seeded_masks
from gpu_check import plant
from gpu_check.agreement import FLOAT32_LIMIT, Case, apart, compare, enlivened
from gpu_check.experiments import CONFIGS
from gpu_check.record import Record

LEVELS = (99, 399, 699, 949)
FORMS: dict[str, dict[str, Any]] = {
    "U-Net": {"diffusion.condition_dropout": 0.3},
    "U-Net, no condition": {"model.conditioned": False},
    "U-Net, attention": {"diffusion.condition_dropout": 0.3, "model.conditioning": "cross-attention"},
}


@dataclass(frozen=True)
class Scale:
    """How large the networks are that are compared, and the slices (B, 1, H, W)."""

    values: dict[str, Any]
    edge: int
    batch: int
    tiny: bool

    @classmethod
    def of(cls, tiny: bool) -> "Scale":
        """Half of the reference's channels and two thirds of its slices' edge: float64 on a CPU takes seconds then."""
        if tiny:
            encoder = {"architecture": "resnet18", "width": 8}
            model = {"base_width": 16, "width_multipliers": [1, 1], "residual_blocks": 1, "attention_head_width": 16}
        else:
            encoder = {"architecture": "resnet50", "width": 32}
            model = {"base_width": 64, "width_multipliers": [1, 2, 2], "residual_blocks": 2}
        sections = {"encoder": {**encoder, "max_pool": False, "drop_path": 0.0}, "model": model}
        values = {f"{section}.{name}": value for section, own in sections.items() for name, value in own.items()}
        return cls(values, 32, 2, tiny) if tiny else cls(values, 64, 4, tiny)

    def for_batch_norm(self) -> "Scale":
        """With four times the slices: moments over few values are ill-conditioned."""
        return replace(self, batch=4 * self.batch)

    def config(self, **values: Any) -> ExperimentConfig:
        """The reference at this scale. Squares as the loss: the gradient of L1 jumps where a prediction is right."""
        return load(CONFIGS / "reference.yaml", {**self.values, "diffusion.loss": "l2", **values})

    def slices(self) -> Tensor:
        """(B, 1, H, W) in [0, 1], smooth and with structure."""
        random = torch.Generator().manual_seed(1)
        coarse = torch.rand(self.batch, 1, self.edge // 4, self.edge // 4, generator=random)
        fine = nn.functional.interpolate(coarse, size=self.edge, mode="bilinear")
        return (0.9 * fine + 0.1 * torch.rand(fine.shape, generator=random)).clamp(0, 1)

    def noise(self) -> Tensor:
        """(B, 1, H, W)."""
        return torch.randn(self.batch, 1, self.edge, self.edge, generator=torch.Generator().manual_seed(2))

    def levels(self) -> Tensor:
        """(B,) from 0."""
        return torch.tensor(LEVELS[: self.batch])


def model(config: ExperimentConfig) -> ConditionedDiffusion:
    """A conditioned diffusion model in which no part is silent."""
    torch.manual_seed(0)
    made = ConditionedDiffusion(config.model, config.encoder, config.diffusion)
    enlivened(made)
    return made


def unets(scale: Scale, record: Record, device: torch.device, planted: bool) -> None:
    """The whole model in its three forms; in the first one a gradient may be broken on purpose.

    A rehearsal tries bfloat16, which most CPUs emulate, with the last form alone.
    """
    given = (scale.slices(), scale.levels(), scale.noise(), torch.arange(scale.batch) == 0)
    for number, (name, values) in enumerate(FORMS.items()):
        config = scale.config(**values)
        used = given if config.diffusion.condition_dropout else given[:3]
        breaking = plant.broken if planted and number == 0 else None
        half = not scale.tiny or number == len(FORMS) - 1
        with record.step(name):
            compare(record, Case(name, model(config), _restored, _loss_of, used), device, breaking, half)


def _restored(model: ConditionedDiffusion, slices: Tensor, t: Tensor, noise: Tensor, *_: Tensor) -> Tensor:
    x_t = model.diffusion.q_sample(to_signed(slices), t, noise)
    return model.restore(x_t, t, model.condition(slices))


def _loss_of(module: nn.Module, *given: Tensor) -> Tensor:
    loss: Tensor = module(*given)
    return loss


def encoder(scale: Scale, record: Record, device: torch.device) -> None:
    """The condition vector, and the gradients of a fixed weighing of it."""
    scale = scale.for_batch_norm()
    config = scale.config()
    torch.manual_seed(0)
    made = enlivened(ResNetEncoder(config.encoder, config.model.condition_channels))
    weights = torch.randn(scale.batch, config.model.condition_channels, generator=torch.Generator().manual_seed(3))

    def vector(module: nn.Module, slices: Tensor, _: Tensor) -> Tensor:
        found: Tensor = module(slices)
        return found

    def weighed(module: nn.Module, slices: Tensor, weights: Tensor) -> Tensor:
        found = module(slices)
        return (found * weights).mean() + found.square().mean()

    with record.step("encoder"):
        compare(
            record, Case("encoder", made, vector, weighed, (scale.slices(), weights), normalised_by_batch=True), device
        )


def spark(scale: Scale, record: Record, device: torch.device) -> None:
    """Masked slices, their prediction and loss."""
    scale = scale.for_batch_norm()
    config = scale.config()
    torch.manual_seed(0)
    made = SparK(config.encoder, 2 * config.encoder.downsampling, 0.5)
    enlivened(made)
    nn.init.constant_(made.dense_decoder.proj.bias, 0.5)  # around mid-grey, as a trained one predicts
    slices = scale.slices()
    grid = made.grid(slices)
    masks = seeded_masks(torch.arange(scale.batch), grid, made.visible_patches(grid))

    with record.step("SparK"):
        compare(
            record, Case("SparK", made, SparK.reconstruct, _loss_of, (slices, masks), normalised_by_batch=True), device
        )


def diffusion(scale: Scale, losses: Sequence[str], record: Record, device: torch.device) -> None:
    """The passes around the network, and every loss with its gradient, in float32 against float64."""
    with record.step("diffusion"):
        made = Diffusion(scale.config().diffusion)
        there = Diffusion(scale.config().diffusion).to(device)
        given = (to_signed(scale.slices()), scale.levels(), scale.noise())
        for name in ("q_sample", "predict_start_from_noise", "predict_noise_from_start", "q_posterior"):
            x0, t, noise = given
            order = (x0, noise, t) if name == "q_posterior" else (x0, t, noise)
            expected = _first(getattr(made, name)(*(_wide(v) for v in order)))
            found = _first(getattr(there, name)(*(v.to(device) for v in order)))
            record.compare(f"diffusion: {name}", apart(found, expected), FLOAT32_LIMIT)
    for name in losses:
        with record.step(f"loss {name}"):
            config = scale.config(**{"diffusion.loss": name, "diffusion.p2_gamma": 0.5}).diffusion
            _loss(f"loss {name}", Diffusion(config), scale, record, device)


def _loss(name: str, made: Diffusion, scale: Scale, record: Record, device: torch.device) -> None:
    x0, t, noise = to_signed(scale.slices()), scale.levels(), scale.noise()
    prediction = x0 + 0.1 * noise
    values, slopes = [], []
    for move in (_wide, partial(_moved, device=device)):
        place = move(prediction).requires_grad_()
        value = made.to(move(x0).device).loss(place, move(x0), move(noise), move(t))
        value.backward()
        assert place.grad is not None  # of the backward pass above
        values.append(value)
        slopes.append(place.grad)
    record.compare(f"{name}: value", apart(values[1], values[0]), FLOAT32_LIMIT)
    record.compare(f"{name}: gradient", apart(slopes[1], slopes[0]), FLOAT32_LIMIT)


def _wide(tensor: Tensor) -> Tensor:
    return tensor.detach().clone().double() if tensor.is_floating_point() else tensor


def _moved(tensor: Tensor, device: torch.device) -> Tensor:
    return tensor.detach().clone().to(device)


def _first(found: Any) -> Tensor:
    tensor: Tensor = found[0] if isinstance(found, tuple) else found
    return tensor
