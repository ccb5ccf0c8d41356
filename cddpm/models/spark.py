"""SparK: masked image modelling that pretrains the condition encoder.

Legend: B batch, H x W pixels, h x w patches (one per pixel of the encoder's last map), K visible patches per slice.

Tian et al., "Designing BERT for convolutional networks: sparse and hierarchical masked modeling", ICLR 2023. Most patches of
a slice are hidden; a sparse encoder sees the rest; mask tokens fill the holes of its four maps; a light U-Net decoder
predicts the slice; the loss counts hidden patches. Afterwards the decoder is thrown away.
"""

from collections import OrderedDict
from typing import Any, Literal

import torch
from torch import Tensor, nn

from cddpm.config import EncoderConfig
from cddpm.errors import ConfigError
from cddpm.models.encoder import ResNetTrunk
from cddpm.models.sparse import BatchNorm, VisibleSites, normalise
from cddpm.seeds import uniform

UNREAD = ("imn_m", "imn_s", "norm_black")
"""Display constants in published states; nothing computes with them."""


class SparK(nn.Module):
    """Sparse encoder, mask tokens and decoder; ``forward`` is the loss, so that DDP can wrap it.

    Every parameter gets a gradient at each step. ``patch_norm``: each patch is its own target with zero mean and unit
    variance; ``loss``: l2 (mean square) or l1 (mean absolute) error; ``dense_loss``: count visible patches too.
    Raises ``ConfigError`` if ``decoder_width`` cannot be halved at each of the decoder's steps.
    """

    def __init__(
        self,
        encoder_config: EncoderConfig,
        decoder_width: int,
        mask_ratio: float,
        *,
        patch_norm: bool = False,
        loss: Literal["l1", "l2"] = "l2",
        dense_loss: bool = False,
    ) -> None:
        super().__init__()
        self.patch, self.mask_ratio = encoder_config.downsampling, mask_ratio
        self.patch_norm, self.loss, self.dense_loss = patch_norm, loss, dense_loss
        trunk = ResNetTrunk(encoder_config)
        self.sparse_encoder = nn.ModuleDict({"sp_cnn": trunk})
        self.dense_decoder = Decoder(decoder_width, self.patch)
        widths = trunk.channels[::-1]
        self.en_de_norms = nn.ModuleList(BatchNorm(width) for width in widths)
        self.en_de_lins = nn.ModuleList(
            nn.Conv2d(width, decoder_width // 2**i, kernel, 1, kernel // 2)
            for i, (width, kernel) in enumerate(zip(widths, (1, 3, 3, 3), strict=True))
        )
        tokens = [nn.Parameter(nn.init.trunc_normal_(torch.empty(1, width, 1, 1), std=0.02)) for width in widths]
        self.mask_tokens = nn.ParameterList(tokens)
        self.register_load_state_dict_pre_hook(_forget_unread)

    @property
    def trunk(self) -> ResNetTrunk:
        """The encoder that is being pretrained."""
        trunk = self.sparse_encoder["sp_cnn"]
        assert isinstance(trunk, ResNetTrunk)  # made in the constructor
        return trunk

    def forward(self, x: Tensor, active: Tensor | None = None, generator: torch.Generator | None = None) -> Tensor:
        """Loss (scalar) of slices ``x`` (B, 1, H, W) in [0, 1]; H and W are multiples of the patch size.

        ``active``: (B, 1, h, w) bool, True = visible; drawn with ``generator`` (CPU) if absent. Raises ``ValueError``.
        """
        if active is None:
            grid = self.grid(x)
            active = draw_masks(len(x), grid, self.visible_patches(grid), generator).to(x.device)
        return self.reconstruction_loss(self.reconstruct(x, active), x, active)

    def grid(self, x: Tensor) -> tuple[int, int]:
        """(h, w) patches of slices ``x`` (B, 1, H, W). Raises ``ValueError`` if they do not tile it."""
        height, width = x.shape[2:]
        if height % self.patch or width % self.patch:
            raise ValueError(f"slices of {height}x{width} pixels; a multiple of {self.patch} along both axes is needed")
        return height // self.patch, width // self.patch

    def visible_patches(self, grid: tuple[int, int]) -> int:
        """K: how many patches of a grid stay visible. Raises ``ConfigError`` if that is none or all."""
        patches = grid[0] * grid[1]
        visible = round(patches * (1 - self.mask_ratio))
        if not 0 < visible < patches:
            raise ConfigError(
                f"mask_ratio: {self.mask_ratio} keeps {visible} of {patches} patches ({grid[0]}x{grid[1]}) visible; "
                "at least one must be visible and one hidden: change mask_ratio, or use larger slices"
            )
        return visible

    def reconstruct(self, x: Tensor, active: Tensor) -> Tensor:
        """Predict slices (B, 1, H, W) from the visible patches of ``x`` alone (``active`` as in ``forward``).

        Raises ``ValueError`` for an ``active`` of another shape.
        """
        visible = VisibleSites(active)
        if active.shape != (len(x), 1, *self.grid(x)):
            raise ValueError(f"active: {tuple(active.shape)}; needed for these slices is {(len(x), 1, *self.grid(x))}")
        maps = self.trunk.forward_features(visible.hide(x), visible)
        rec: Tensor = self.dense_decoder(self._densify(maps[::-1], visible))
        return rec

    def _densify(self, maps: list[Tensor], visible: VisibleSites) -> list[Tensor]:
        """Fill hidden sites with the mask token and bring each map to the decoder's width (Tian et al. 2023, section 3.2)."""
        dense = []
        for x, norm, token, lin in zip(maps, self.en_de_norms, self.mask_tokens, self.en_de_lins, strict=True):
            assert isinstance(norm, BatchNorm)  # made in the constructor
            x = normalise(norm, x, visible)
            dense.append(lin(torch.where(visible.mask(x.shape[2], x.shape[3]), x, token.to(x.dtype))))
        return dense

    def reconstruction_loss(self, rec: Tensor, x: Tensor, active: Tensor) -> Tensor:
        """Mean error of ``rec`` against ``x`` (both (B, 1, H, W)) over the pixels of hidden patches, or of all."""
        target, rec = self._patches(x), self._patches(rec)
        if self.patch_norm:
            target = (target - target.mean(-1, keepdim=True)) / (target.var(-1, keepdim=True) + 1e-6).sqrt()
        difference = rec - target
        error = (difference.square() if self.loss == "l2" else difference.abs()).mean(-1)
        if self.dense_loss:
            return error.mean()
        hidden = ~active.flatten(1)
        return (error * hidden).sum() / (hidden.sum() + 1e-8)

    def _patches(self, x: Tensor) -> Tensor:
        """(B, 1, H, W) to (B, h w, pixels of a patch)."""
        rows, columns = self.grid(x)
        tiles = x.reshape(len(x), rows, self.patch, columns, self.patch)
        return tiles.permute(0, 1, 3, 2, 4).reshape(len(x), rows * columns, self.patch**2)

    def encoder_state(self) -> dict[str, Tensor]:
        """Copies of the pretrained tensors under the names of ``ResNetEncoder`` (all of it but ``fc``)."""
        return {name: tensor.detach().clone() for name, tensor in self.trunk.state_dict().items()}


class Decoder(nn.Module):
    """Light U-Net decoder: doubles the resolution and halves the width until the slice is reached.

    ``downsampling`` is the factor from the smallest map to the slice, a power of two. Raises ``ConfigError`` if ``width``
    is not a multiple of it.
    """

    def __init__(self, width: int, downsampling: int) -> None:
        super().__init__()
        if width % downsampling:
            raise ConfigError(f"decoder_width: {width}: allowed is a multiple of {downsampling} (the downsampling)")
        steps = downsampling.bit_length() - 1
        self.dec = nn.ModuleList(UpBlock(width // 2**i) for i in range(steps))
        self.proj = nn.Conv2d(width // downsampling, 1, 1)
        self.apply(_initialise)

    def forward(self, maps: list[Tensor]) -> Tensor:
        """Maps (B, width / 2^i, h 2^i, w 2^i) from the smallest on, to slices (B, 1, H, W)."""
        x = torch.zeros_like(maps[0])
        for i, block in enumerate(self.dec):
            x = block(x + maps[i] if i < len(maps) else x)
        rec: Tensor = self.proj(x)
        return rec


class UpBlock(nn.Module):
    """Transposed convolution and two 3x3 convolutions: (B, width, H, W) to (B, width / 2, 2 H, 2 W)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(width, width, 4, 2, 1)
        pair = nn.Sequential(
            nn.Conv2d(width, width, 3, 1, 1, bias=False),
            BatchNorm(width),
            nn.ReLU6(),
            nn.Conv2d(width, width // 2, 3, 1, 1, bias=False),
            BatchNorm(width // 2),
        )
        self.conv = nn.Sequential(nn.Sequential(OrderedDict(b=pair)))  # nested for the names of published weights

    def forward(self, x: Tensor) -> Tensor:
        """(B, width, H, W) to (B, width / 2, 2 H, 2 W)."""
        y: Tensor = self.conv(self.up(x))
        return y


def draw_masks(count: int, grid: tuple[int, int], visible: int, generator: torch.Generator | None = None) -> Tensor:
    """(count, 1, h, w) bool on the CPU with exactly ``visible`` True per slice, uniformly drawn with ``generator``."""
    values = torch.rand(count, grid[0] * grid[1], generator=generator)
    return _lowest(values, visible).view(count, 1, *grid)


def seeded_masks(seeds: Tensor, grid: tuple[int, int], visible: int) -> Tensor:
    """As ``draw_masks``, but slice i from ``seeds[i]`` ((B,) int64) alone, so it is the same in every batch."""
    # not torch's: its CPU generator ignores the upper 32 bits of a seed
    draws = uniform(seeds.tolist(), grid[0] * grid[1])
    return _lowest(torch.from_numpy(draws), visible).view(len(seeds), 1, *grid)


def _lowest(values: Tensor, count: int) -> Tensor:
    """(B, N) bool: True at the ``count`` smallest of each row."""
    return torch.zeros(values.shape, dtype=torch.bool).scatter_(1, values.argsort(1)[:, :count], True)


def _forget_unread(module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    for name in UNREAD:
        state.pop(prefix + name, None)


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
