"""The condition encoder: a ResNet that turns the noise-free slice into one vector.

Legend: B batch, H x W pixels, C channels of the condition vector, p probability that a residual branch is dropped.

He et al., "Deep residual learning for image recognition", CVPR 2016; stride of the bottleneck in its 3x3 convolution.
Module names are those in common use (conv1, bn1, layerN.M.convK, downsample.0/1, fc), so published weights load as they are.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cddpm.config import EncoderConfig
from cddpm.models.sparse import BatchNorm, VisibleSites, normalise
from cddpm.seeds import uniform

BLOCKS = {
    "resnet18": (2, 2, 2, 2),
    "resnet34": (3, 4, 6, 3),
    "resnet50": (3, 4, 6, 3),
    "resnet101": (3, 4, 23, 3),
}
"""Blocks of the four stages."""


class DropPath(nn.Module):
    """Stochastic depth (Huang et al., ECCV 2016): in training each sample loses the branch with probability ``p``.

    Kept branches are divided by 1 - p, so the expectation stays.
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p
        self.kept: Tensor | None = None
        """Which samples (B,) keep the branch in the next step alone (``keep_paths``); None: drawn at random."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, ...) to the same shape."""
        if not self.training or self.p == 0:
            return x
        shape = (len(x),) + (1,) * (x.ndim - 1)
        if self.kept is None:
            keep = x.new_empty(shape).bernoulli_(1 - self.p)
        else:
            keep, self.kept = self.kept.to(x.dtype).view(shape), None
        return x * keep / (1 - self.p)

    def extra_repr(self) -> str:
        """Shown in the module's ``repr``."""
        return f"p={self.p:.4g}"


def draw_paths(module: nn.Module, seeds: Sequence[int]) -> Tensor | None:
    """Which branches each sample keeps in a training step of ``module``: (layers, B) bool, sample i by ``seeds[i]`` alone.

    So a sample loses the same branches in every batch and on every worker. None if no branch is ever lost.
    """
    layers = _losing(module)
    if not layers:
        return None
    draws = uniform(seeds, len(layers)).T
    return torch.from_numpy(draws >= np.array([[layer.p] for layer in layers]))


def keep_paths(module: nn.Module, kept: Tensor | None) -> None:
    """Let ``module`` keep in its next step what ``draw_paths`` has drawn."""
    if kept is None:
        return
    for layer, row in zip(_losing(module), kept, strict=True):
        layer.kept = row


def _losing(module: nn.Module) -> list[DropPath]:
    return [layer for layer in module.modules() if isinstance(layer, DropPath) and layer.p > 0]


class BasicBlock(nn.Module):
    """Two 3x3 convolutions around a shortcut (He et al. 2016, figure 5 left)."""

    expansion = 1

    def __init__(self, inputs: int, planes: int, stride: int, p: float) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, planes, 3, stride, 1, bias=False)
        self.bn1 = BatchNorm(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, 1, 1, bias=False)
        self.bn2 = BatchNorm(planes)
        self.drop_path = DropPath(p)
        self.downsample = _projection(inputs, planes, stride)

    def forward(self, x: Tensor, visible: VisibleSites | None = None) -> Tensor:
        """(B, inputs, H, W) to (B, planes, H / stride, W / stride)."""
        y = F.relu(normalise(self.bn1, self.conv1(x), visible))
        y = normalise(self.bn2, self.conv2(y), visible)
        return F.relu(self.drop_path(y) + _shortcut(self.downsample, x, visible))


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions around a shortcut (He et al. 2016, figure 5 right)."""

    expansion = 4

    def __init__(self, inputs: int, planes: int, stride: int, p: float) -> None:
        super().__init__()
        outputs = planes * self.expansion
        self.conv1 = nn.Conv2d(inputs, planes, 1, bias=False)
        self.bn1 = BatchNorm(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, stride, 1, bias=False)
        self.bn2 = BatchNorm(planes)
        self.conv3 = nn.Conv2d(planes, outputs, 1, bias=False)
        self.bn3 = BatchNorm(outputs)
        self.drop_path = DropPath(p)
        self.downsample = _projection(inputs, outputs, stride)

    def forward(self, x: Tensor, visible: VisibleSites | None = None) -> Tensor:
        """(B, inputs, H, W) to (B, 4 planes, H / stride, W / stride)."""
        y = F.relu(normalise(self.bn1, self.conv1(x), visible))
        y = F.relu(normalise(self.bn2, self.conv2(y), visible))
        y = normalise(self.bn3, self.conv3(y), visible)
        return F.relu(self.drop_path(y) + _shortcut(self.downsample, x, visible))


def _projection(inputs: int, outputs: int, stride: int) -> nn.Sequential | None:
    if stride == 1 and inputs == outputs:
        return None
    return nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), BatchNorm(outputs))


def _shortcut(downsample: nn.Sequential | None, x: Tensor, visible: VisibleSites | None) -> Tensor:
    if downsample is None:
        return x
    norm = downsample[1]
    assert isinstance(norm, BatchNorm)  # made by _projection
    return normalise(norm, downsample[0](x), visible)


def _block(config: EncoderConfig) -> type[BasicBlock] | type[Bottleneck]:
    return BasicBlock if config.architecture in ("resnet18", "resnet34") else Bottleneck


def map_channels(config: EncoderConfig) -> list[int]:
    """Channels of the four feature maps, from the largest map to the smallest."""
    return [config.width * 2**stage * _block(config).expansion for stage in range(4)]


class ResNetTrunk(nn.Module):
    """The encoder without its last linear layer: four stages of residual blocks on (B, 1, H, W)."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.channels = map_channels(config)
        """Channels of the four feature maps, from the largest map to the smallest."""
        self.conv1 = nn.Conv2d(1, config.width, 7, 2, 3, bias=False)
        self.bn1 = BatchNorm(config.width)
        self.layer1, self.layer2, self.layer3, self.layer4 = _stages(config)
        _initialise(self)

    def forward_features(self, x: Tensor, visible: VisibleSites | None = None) -> list[Tensor]:
        """(B, 1, H, W) in [0, 1] to four maps (B, channels[i], H / s, W / s), s = 4, 8, 16, 32 (2 to 16 without max pool).

        With ``visible`` the network is sparse: hidden sites are zero in each map and have no influence.
        """
        x = F.relu(normalise(self.bn1, self.conv1(x), visible))
        if self.config.max_pool:
            x = F.max_pool2d(x, 3, 2, 1)
            x = x if visible is None else visible.hide(x)
        maps = []
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            for block in stage:
                x = block(x, visible)
            maps.append(x)
        return maps


class ResNetEncoder(ResNetTrunk):
    """The condition encoder: slice (B, 1, H, W) in [0, 1] to condition vector (B, C)."""

    def __init__(self, config: EncoderConfig, out_channels: int) -> None:
        super().__init__(config)
        self.fc = nn.Linear(self.channels[-1], out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 1, H, W) to (B, C): mean over the last map, then a linear layer."""
        return self.vector(self.forward_features(x)[-1])

    def vector(self, last: Tensor) -> Tensor:
        """The condition vector (B, C) of the last feature map (B, channels[-1], h, w)."""
        vector: Tensor = self.fc(last.mean((2, 3)))
        return vector


def _stages(config: EncoderConfig) -> Iterator[nn.ModuleList]:
    """Four stages; p rises linearly from 0 (first block) to ``config.drop_path`` (last block), Huang et al. 2016, eq. 4."""
    counts, block = BLOCKS[config.architecture], _block(config)
    inputs, done, last = config.width, 0, sum(counts) - 1
    for stage, count in enumerate(counts):
        planes, blocks = config.width * 2**stage, nn.ModuleList()
        for i in range(count):
            stride = 2 if stage > 0 and i == 0 else 1
            blocks.append(block(inputs, planes, stride, config.drop_path * done / last))
            inputs, done = planes * block.expansion, done + 1
        yield blocks


def _initialise(trunk: ResNetTrunk) -> None:
    """Normal weights by fan-out (He et al. 2015); each branch starts at zero (Goyal et al. 2017, section 5.1)."""
    for module in trunk.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, Bottleneck):
            nn.init.zeros_(module.bn3.weight)
        elif isinstance(module, BasicBlock):
            nn.init.zeros_(module.bn2.weight)
