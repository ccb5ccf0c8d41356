"""The U-Net that predicts x_0 (or eps) from a noised slice, its noise level and a condition vector.

A residual U-Net with scale-shift normalisation (Dhariwal & Nichol 2021, "Diffusion models beat GANs", appendix A), in the
shape of the reference: residual blocks that change the resolution themselves, attention only in the middle. Parameter
names are those of that family of networks (``input_blocks``, ``middle_block``, ``output_blocks``), so published weights fit.

Letters: B slices, C channels, H and W pixels, T = H W tokens of the attention, E length of the embedding, N tokens of F
channels that the condition has for cross-attention.
"""

import math
from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cddpm.config import ModelConfig
from cddpm.errors import ConfigError
from cddpm.models.layers import Resampling, added, convolved, normalised, on_kernels, resampled

_GROUPS, _GROUPS_OF_SMALL = 32, 8
"""Of the norms: 32 as published; channels that these do not divide (``model.base_width`` below 32) have 8."""
_LONGEST_PERIOD = 10_000


def timestep_embedding(t: Tensor, width: int) -> Tensor:
    """Sinusoids (B, width) float32 of ``t`` (B,), cosines first (Vaswani et al. 2017, section 3.5)."""
    half = width // 2
    frequency = torch.exp(-math.log(_LONGEST_PERIOD) / half * torch.arange(half, dtype=torch.float32, device=t.device))
    angle = t[:, None].float() * frequency
    return torch.cat([angle.cos(), angle.sin()], dim=1)


def _norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(_GROUPS_OF_SMALL if channels % _GROUPS else _GROUPS, channels)


def _zeroed(layer: nn.Conv2d | nn.Conv1d | nn.Linear) -> nn.Conv2d | nn.Conv1d | nn.Linear:
    """Start a residual branch as nothing: the block is the identity until it learns."""
    nn.init.zeros_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


class ResidualBlock(nn.Module):
    """(B, C_in, H, W) and an embedding (B, E) -> (B, C_out, H', W'), with H' = H, H / 2 ("down") or 2 H ("up")."""

    def __init__(
        self, channels: int, out_channels: int, embedding: int, dropout: float, resampling: Resampling = "none"
    ) -> None:
        super().__init__()
        self.resampling: Resampling = resampling
        self.in_layers = nn.Sequential(_norm(channels), nn.SiLU(), nn.Conv2d(channels, out_channels, 3, padding=1))
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(embedding, 2 * out_channels))
        self.out_layers = nn.Sequential(
            _norm(out_channels),
            nn.SiLU(),
            nn.Dropout(dropout),
            _zeroed(nn.Conv2d(out_channels, out_channels, 3, padding=1)),
        )
        self.skip_connection: nn.Identity | nn.Conv2d = (
            nn.Identity() if channels == out_channels else nn.Conv2d(channels, out_channels, 1)
        )

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """The block's output (B, C_out, H', W'); the embedding scales and shifts what is normalised."""
        norm, _, convolution = self.in_layers
        hidden, bias = convolved(convolution, resampled(normalised(norm, x), self.resampling))
        norm, _, dropout, convolution = self.out_layers
        hidden, bias = convolved(convolution, dropout(normalised(norm, hidden, self.emb_layers(embedding), bias)))
        x = resampled(x, self.resampling)
        if isinstance(self.skip_connection, nn.Identity):
            return added(x, hidden, bias)
        x, own = convolved(self.skip_connection, x)
        return added(x, hidden, bias, own)


def _heads(channels: int, head_width: int) -> int:
    if channels % head_width:
        raise ConfigError(
            f"model.attention_head_width: {head_width}: allowed are divisors of the {channels} channels of the "
            "last level (base_width times the last of width_multipliers)"
        )
    return channels // head_width


class AttentionBlock(nn.Module):
    """Self-attention over all pixels, residual: (B, C, H, W) -> (B, C, H, W)."""

    def __init__(self, channels: int, head_width: int) -> None:
        super().__init__()
        self.heads = _heads(channels, head_width)
        self.norm = _norm(channels)
        # One-dimensional convolutions only in their parameters' shape (C_out, C_in, 1), that of published weights.
        self.qkv = nn.Conv1d(channels, 3 * channels, 1)
        self.proj_out = _zeroed(nn.Conv1d(channels, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Add to ``x`` (B, C, H, W) what its pixels look up in each other."""
        batch, channels, height, width = x.shape
        tokens = normalised(self.norm, x, silu=False).flatten(2).transpose(1, 2)
        qkv = F.linear(tokens, self.qkv.weight.squeeze(-1), self.qkv.bias)
        query, key, value = qkv.unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        out = F.linear(mixed, self.proj_out.weight.squeeze(-1), self.proj_out.bias)
        return x + out.transpose(1, 2).reshape(batch, channels, height, width)


class CrossAttentionBlock(nn.Module):
    """Attention of all pixels to the condition's tokens, residual: (B, C, H, W) and (B, N, F) -> (B, C, H, W).

    As in latent diffusion (Rombach et al. 2022, section 3.3). The tokens are not normalised: their scale carries the
    embedding scale.
    """

    def __init__(self, channels: int, token_channels: int, head_width: int) -> None:
        super().__init__()
        self.heads = _heads(channels, head_width)
        self.norm = _norm(channels)
        self.query = nn.Linear(channels, channels)
        self.key_value = nn.Linear(token_channels, 2 * channels)
        self.proj_out = _zeroed(nn.Linear(channels, channels))

    def forward(self, x: Tensor, tokens: Tensor) -> Tensor:
        """Add to ``x`` (B, C, H, W) what its pixels look up in ``tokens`` (B, N, F)."""
        query = (
            self.query(normalised(self.norm, x, silu=False).flatten(2).transpose(1, 2))
            .unflatten(2, (self.heads, -1))
            .transpose(1, 2)
        )
        key, value = self.key_value(tokens).unflatten(2, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        return x + self.proj_out(mixed).transpose(1, 2).reshape(x.shape)


class Stage(nn.Sequential):
    """Layers in a row, of which the residual blocks also get the embedding, cross-attention the condition's tokens."""

    def forward(self, x: Tensor, embedding: Tensor, tokens: Tensor | None = None) -> Tensor:  # type: ignore[override]
        """Pass ``x`` (B, C, H, W) through all layers; ``embedding`` (B, E), ``tokens`` (B, N, F) for those that take them."""
        for layer in self:
            if isinstance(layer, ResidualBlock):
                x = layer(x, embedding)
            elif isinstance(layer, CrossAttentionBlock):
                x = layer(x, tokens)
            else:
                x = layer(x)
        return x


class UNet(nn.Module):
    """``model`` as a network: x (B, 1, H, W), t (B,) from 0, condition (B, C) and tokens (B, N, F) -> (B, 1, H, W).

    ``token_channels`` is F, needed for cross-attention alone. Raises ``ConfigError`` when the attention heads do not
    divide the middle block, ``ValueError`` when F is missing or not wanted.
    """

    def __init__(self, model: ModelConfig, in_channels: int = 1, token_channels: int | None = None) -> None:
        super().__init__()
        self.model = model
        self.attends = model.conditioning == "cross-attention"
        if (token_channels is None) == self.attends:
            raise ValueError(f"token_channels: {token_channels}, but model.conditioning is {model.conditioning!r}")
        base, dropout = model.base_width, model.dropout
        widths = [base * multiplier for multiplier in model.width_multipliers]
        wide = 4 * base
        embedding = 2 * wide if model.conditioned else wide
        self.time_embed = nn.Sequential(nn.Linear(base, wide), nn.SiLU(), nn.Linear(wide, wide))
        if model.conditioned:
            self.label_emb = nn.Sequential(nn.Linear(model.condition_channels, wide), nn.SiLU(), nn.Linear(wide, wide))

        self.input_blocks = nn.ModuleList([Stage(nn.Conv2d(in_channels, base, 3, padding=1))])
        channels, skips = base, [base]
        for level, width in enumerate(widths):
            for _ in range(model.residual_blocks):
                self.input_blocks.append(Stage(ResidualBlock(channels, width, embedding, dropout)))
                channels = width
                skips.append(channels)
            if level < len(widths) - 1:
                self.input_blocks.append(Stage(ResidualBlock(channels, channels, embedding, dropout, "down")))
                skips.append(channels)

        middle: OrderedDict[str, nn.Module] = OrderedDict()
        middle["0"] = ResidualBlock(channels, channels, embedding, dropout)
        middle["1"] = AttentionBlock(channels, model.attention_head_width)
        if token_channels is not None:
            # A name, not a number: those of the published blocks stay what they are.
            middle["cross"] = CrossAttentionBlock(channels, token_channels, model.attention_head_width)
        middle["2"] = ResidualBlock(channels, channels, embedding, dropout)
        self.middle_block = Stage(middle)

        self.output_blocks = nn.ModuleList()
        for level, width in reversed(list(enumerate(widths))):
            for number in range(model.residual_blocks + 1):
                stage = Stage(ResidualBlock(channels + skips.pop(), width, embedding, dropout))
                channels = width
                if level and number == model.residual_blocks:
                    stage.append(ResidualBlock(channels, channels, embedding, dropout, "up"))
                self.output_blocks.append(stage)
        last = nn.Conv2d(channels, in_channels, 3, padding=1)
        self.out = nn.Sequential(_norm(channels), nn.SiLU(), _zeroed(last))

    def embed(self, t: Tensor, condition: Tensor | None) -> Tensor:
        """The embedding (B, E) that drives every residual block: [MLP(t), MLP(condition)].

        Raises ``ValueError`` when a condition is missing or not wanted.
        """
        time = self.time_embed(timestep_embedding(t, self.model.base_width))
        if (condition is None) == self.model.conditioned:
            found = "none" if condition is None else f"one of shape {tuple(condition.shape)}"
            raise ValueError(f"condition: got {found}, but model.conditioned is {self.model.conditioned}")
        return time if condition is None else torch.cat([time, self.label_emb(condition)], dim=1)

    def forward(self, x: Tensor, t: Tensor, condition: Tensor | None = None, tokens: Tensor | None = None) -> Tensor:
        """x (B, 1, H, W), t (B,) int64, condition (B, C) or None, tokens (B, N, F) or None -> (B, 1, H, W).

        H and W are multiples of 2^(levels - 1). Raises ``ValueError`` when they are not, and when condition or tokens
        are missing or not wanted.
        """
        self._check(x, tokens)
        embedding = self.embed(t, condition)
        hidden, skips = x, []
        for stage in self.input_blocks:
            hidden = stage(hidden, embedding)
            skips.append(hidden)
        hidden = self.middle_block(hidden, embedding, tokens)
        for stage in self.output_blocks:
            hidden = stage(torch.cat([hidden, skips.pop()], dim=1), embedding)
        # Under autocast too: bfloat16 would round the picture to steps of 1/256, more than many residuals.
        with torch.autocast(x.device.type, enabled=False):
            norm, _, last = self.out
            found: Tensor = last(normalised(norm, hidden if on_kernels(hidden) else hidden.to(last.weight.dtype)))
            return found

    def _check(self, x: Tensor, tokens: Tensor | None) -> None:
        if (tokens is None) == self.attends:
            found = "none" if tokens is None else f"some of shape {tuple(tokens.shape)}"
            raise ValueError(f"tokens: got {found}, but model.conditioning is {self.model.conditioning!r}")
        factor = 2 ** (len(self.model.width_multipliers) - 1)
        if x.shape[-2] % factor or x.shape[-1] % factor:
            raise ValueError(
                f"slices of shape {tuple(x.shape)}: allowed are heights and widths in multiples of {factor}"
            )
