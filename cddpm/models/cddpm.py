"""The conditioned diffusion model: an encoder sees the clean slice, the U-Net restores the noised one with its help.

Behrendt et al. 2025, "Guided reconstruction with conditioned diffusion models for unsupervised anomaly detection in
brain MRIs". Letters: B slices, C length of the condition vector, N tokens of F channels for cross-attention (the pixels of the
encoder's last feature map), H and W pixels; slices come with intensities in [0, 1].
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor, nn

from cddpm.config import DiffusionConfig, EncoderConfig, ModelConfig
from cddpm.errors import ConfigError
from cddpm.models.diffusion import Diffusion, to_signed, to_unit
from cddpm.models.encoder import ResNetEncoder, map_channels
from cddpm.models.patches import crop, inside
from cddpm.models.unet import UNet


@dataclass(frozen=True)
class Condition:
    """One condition per slice: ``vector`` (B, C) and, for cross-attention, ``tokens`` (B, N, F); None without it.

    Row i belongs to slice i, so a condition is cut and joined like a batch of slices.
    """

    vector: Tensor
    tokens: Tensor | None = None

    def __len__(self) -> int:
        return len(self.vector)

    def __getitem__(self, rows: Tensor | slice) -> Self:
        """The conditions of ``rows``: indices (M,) int64, a mask (B,) bool or a slice."""
        return type(self)(self.vector[rows], None if self.tokens is None else self.tokens[rows])

    @classmethod
    def cat(cls, parts: Sequence[Self]) -> Self:
        """The conditions of all ``parts``, which have the same C, N and F, one after the other."""
        tokens = [part.tokens for part in parts if part.tokens is not None]
        return cls(torch.cat([part.vector for part in parts]), torch.cat(tokens) if tokens else None)

    def scaled(self, factor: float) -> Self:
        """Vector and tokens times ``factor``: the embedding scale."""
        return type(self)(self.vector * factor, None if self.tokens is None else self.tokens * factor)

    def replaced(self, rows: Tensor, other: Self) -> Self:
        """``other`` (of 1 or B slices, 1 or N tokens) where ``rows`` (B,) bool is true; both enter the graph for all rows."""
        vector = torch.where(rows[:, None], other.vector.to(self.vector.dtype), self.vector)
        if self.tokens is None or other.tokens is None:
            return type(self)(vector)
        return type(self)(vector, torch.where(rows[:, None, None], other.tokens.to(self.tokens.dtype), self.tokens))


class ConditionedDiffusion(nn.Module):
    """U-Net, encoder and diffusion process. Calling it gives the training loss, so that DDP can wrap it as it is.

    Every parameter takes part in every step. ``encoder`` is None for a plain DDPM (``model.conditioned`` false),
    ``null_condition`` (C,) is None without condition dropout, ``null_token`` (F,) also without cross-attention. Raises
    ``ConfigError`` when a plain DDPM is to drop its condition or to attend to it.
    """

    def __init__(self, model: ModelConfig, encoder: EncoderConfig, diffusion: DiffusionConfig) -> None:
        super().__init__()
        if diffusion.condition_dropout and not model.conditioned:
            raise ConfigError(
                f"diffusion.condition_dropout: {diffusion.condition_dropout}: a model without condition "
                "(model.conditioned: false) has nothing to drop"
            )
        attends = model.conditioning == "cross-attention"
        if attends and not model.conditioned:
            raise ConfigError(
                "model.conditioning: 'cross-attention': a model without condition (model.conditioned: false) has nothing "
                "to attend to; allowed is 'vector'"
            )
        token_channels = map_channels(encoder)[-1] if attends else None
        self.unet = UNet(model, token_channels=token_channels)
        self.encoder = ResNetEncoder(encoder, model.condition_channels) if model.conditioned else None
        self.diffusion = Diffusion(diffusion)
        self.box = (diffusion.patch.size, diffusion.patch.size)
        # Zeros are the mean of what an untrained encoder's last layer could say: a neutral start.
        dropping = diffusion.condition_dropout > 0
        self.null_condition = nn.Parameter(torch.zeros(model.condition_channels)) if dropping else None
        self.null_token = nn.Parameter(torch.zeros(token_channels)) if dropping and token_channels else None

    def condition(self, slices: Tensor) -> Condition | None:
        """The condition of ``slices`` (B, 1, H, W) in [0, 1]; None for a plain DDPM."""
        if self.encoder is None:
            return None
        last = self.encoder.forward_features(slices)[-1]
        tokens = last.flatten(2).transpose(1, 2) if self.unet.attends else None
        return Condition(self.encoder.vector(last), tokens)

    def null(self, batch: int) -> Condition:
        """The learned null condition of ``batch`` slices, for the unconditional branch.

        Its one token stands for any number of equal ones: attention to them gives the same. Raises ``ConfigError`` if
        there is none.
        """
        if self.null_condition is None:
            raise ConfigError(
                "this model has no null condition; only models trained with diffusion.condition_dropout > 0 have one"
            )
        token = self.null_token
        return Condition(self.null_condition.expand(batch, -1), None if token is None else token.expand(batch, 1, -1))

    def forward(
        self, slices: Tensor, t: Tensor, noise: Tensor, drop: Tensor | None = None, corners: Tensor | None = None
    ) -> Tensor:
        """The training loss (scalar) of ``slices`` (B, 1, H, W) in [0, 1] at ``t`` (B,) from 0 with ``noise`` like them.

        Rows where ``drop`` (B,) bool is true see the null condition. With ``corners`` (B, 2) only the box of each slice is
        noised, and the loss is that of the box (Behrendt et al. 2023). Raises ``ConfigError`` if there is no null condition.
        """
        x0 = to_signed(slices)
        condition = self._dropped(self.condition(slices), drop)
        prediction = self.restore(self._noised(x0, t, noise, corners), t, condition)
        if corners is not None:
            prediction, x0, noise = (crop(images, corners, self.box) for images in (prediction, x0, noise))
        return self.diffusion.loss(prediction, x0, noise, t)

    def _noised(self, x0: Tensor, t: Tensor, noise: Tensor, corners: Tensor | None) -> Tensor:
        x_t = self.diffusion.q_sample(x0, t, noise)
        if corners is None:
            return x_t
        height, width = x0.shape[2:]
        return torch.where(inside(corners, self.box, (height, width)), x_t, x0)

    def restore(self, x_t: Tensor, t: Tensor, condition: Condition | None) -> Tensor:
        """What the U-Net predicts, x_0 or eps on the diffusion's scale, from ``x_t`` (B, 1, H, W) at ``t`` (B,)."""
        if condition is None:
            return self.unet(x_t, t)
        return self.unet(x_t, t, condition.vector, condition.tokens)

    def _dropped(self, condition: Condition | None, drop: Tensor | None) -> Condition | None:
        if self.null_condition is None and drop is None:
            return condition
        null = self.null(1)
        assert condition is not None  # only a model with an encoder has a null condition
        if drop is None:
            drop = torch.zeros(len(condition), dtype=torch.bool, device=null.vector.device)
        # Both sides enter the graph even when no row is dropped: under DDP each parameter needs a gradient in each step.
        return condition.replaced(drop, null)

    def predict_x0(
        self, slices: Tensor, t: Tensor, noise: Tensor, condition: Condition | None, corners: Tensor | None = None
    ) -> Tensor:
        """One step: noise ``slices`` (B, 1, H, W) to ``t`` (B,) and predict them back, on the scale [0, 1], never clamped.

        ``condition`` is ``condition(slices)``, ``null(B)``, a scaled one, or None for a plain DDPM. With ``corners`` (B, 2)
        only the box of each slice is noised, and only there does the result mean anything.
        """
        x_t = self._noised(to_signed(slices), t, noise, corners)
        return to_unit(self.diffusion.predict_x0(self.restore(x_t, t, condition), x_t, t))
