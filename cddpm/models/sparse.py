"""Sparse convolution by masking: a dense convolutional network that sees only the visible patches; and its batch norm.

Legend: B batch of this process, C channels, H x W sites of a feature map, h x w patches, L visible sites of the whole batch,
N values per channel over all processes.

Tian et al., "Designing BERT for convolutional networks: sparse and hierarchical masked modeling", ICLR 2023, section 3.1:
after every convolution hidden sites are zero again, so the pattern of visible patches never washes out, and batch
normalisation takes its statistics over visible sites only. Here the visible sites travel as an argument beside the
feature map: no global state, so copies, DDP and nested calls need no care.

Batch normalisation is that of Ioffe & Szegedy, "Batch normalization", ICML 2015, algorithm 1. Its batch is that of all
processes of a training, so that their number changes nothing: their moments are joined as in Chan, Golub & LeVeque, "Updating
formulae and a pairwise algorithm for computing sample variances", 1979, eq. 2.1. ``nn.SyncBatchNorm`` does the same, on GPUs
only and only for feature maps.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


class BatchNorm(nn.BatchNorm2d):
    """Normalises feature maps (B, C, H, W), or a list of sites (L, C), by the moments of all processes' values.

    With one process, and in evaluation, it is ``nn.BatchNorm2d`` itself. With more, each training step sends its moments
    once forward and once backward, so all processes must call it together; they may have different numbers of values,
    but each at least one. Moments are float32 or better under autocast; the running buffers end up equal on all processes.
    Raises ``ValueError`` for another shape, and of one value per channel if there is no other process.
    """

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__(channels)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) or (L, C) to the same shape."""
        if not self.training or not _together():
            return super().forward(x)
        self._check_input_dim(x)
        y, mean, variance, count = _Normalise.apply(x, self.weight, self.bias, self.eps)
        self._remember(mean, variance * (count / (count - 1)))
        return y

    @torch.no_grad()
    def _remember(self, mean: Tensor, variance: Tensor) -> None:
        assert self.momentum is not None  # nothing sets it
        self.num_batches_tracked.add_(1)
        self.running_mean.mul_(1 - self.momentum).add_(mean, alpha=self.momentum)
        self.running_var.mul_(1 - self.momentum).add_(variance, alpha=self.momentum)

    def _check_input_dim(self, x: Tensor) -> None:
        if x.ndim not in (2, 4):
            raise ValueError(f"input of shape {tuple(x.shape)}; (B, C, H, W) or (L, C) is needed")


def _together() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


class _Normalise(torch.autograd.Function):
    """y = (x - mean) / sqrt(variance + eps) * weight + bias with the moments of all processes, and its gradients.

    The gradients of weight and bias are this process's share: DDP adds those up.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        values = x if x.dtype == torch.float64 else x.float()
        mean, variance, count = _joint_moments(values)
        scale = (variance + eps).rsqrt()
        ctx.save_for_backward(x, weight, mean, scale, count)
        ctx.mark_non_differentiable(mean, variance, count)
        y = (values - _along(mean, x)).mul_(_along(scale * weight, x)).add_(_along(bias, x))
        return y.to(x.dtype), mean, variance, count

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor, *_: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        x, weight, mean, scale, count = ctx.saved_tensors
        slope = slope.to(mean.dtype)
        standard = (x.to(mean.dtype) - _along(mean, x)).mul_(_along(scale, x))
        to_bias, to_weight = slope.sum(_dims(x)), (slope * standard).sum(_dims(x))
        sums = torch.stack([to_bias, to_weight])
        dist.all_reduce(sums)
        shared = sums / count
        to_x = slope.sub(_along(shared[0], x)).sub_(standard.mul_(_along(shared[1], x)))
        return to_x.mul_(_along(scale * weight, x)).to(x.dtype), to_weight, to_bias, None


def _joint_moments(values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean (C,), variance (C,) and number (scalar) of all processes' values per channel, the same bits on all."""
    mean = values.mean(_dims(values))
    spread = (values - _along(mean, values)).square_().mean(_dims(values))
    count = mean.new_tensor([values.numel() // values.shape[1]])
    mine = torch.cat([mean, spread, count]).double()
    parts = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, mine)
    means, spreads, counts = torch.stack(parts).split([len(mean), len(mean), 1], 1)
    total = counts.sum()
    shares = counts / total
    joint = (shares * means).sum(0)
    variance = (shares * (spreads + (means - joint).square())).sum(0)
    return joint.to(mean.dtype), variance.to(mean.dtype), total.to(mean.dtype)


def _dims(x: Tensor) -> tuple[int, ...]:
    return (0, *range(2, x.ndim))


def _along(channels: Tensor, x: Tensor) -> Tensor:
    """(C,) to be broadcast over ``x``."""
    return channels.view(1, -1, *(1,) * (x.ndim - 2))


class VisibleSites:
    """Which sites of every feature map are visible, given the visible patches of the input.

    ``active``: (B, 1, h, w) bool, True = visible. Masks and indices of each resolution are made once and kept. Raises
    ``ValueError`` for another shape or type, and if nothing is visible.
    """

    def __init__(self, active: Tensor) -> None:
        if active.dtype != torch.bool or active.ndim != 4 or active.shape[1] != 1:
            raise ValueError(f"active: {tuple(active.shape)} {active.dtype}; a (B, 1, h, w) bool tensor is needed")
        self.active = active
        self._masks: dict[tuple[int, int], Tensor] = {}
        self._indices: dict[tuple[int, int], Tensor] = {}

    def mask(self, height: int, width: int) -> Tensor:
        """(B, 1, height, width) bool: the patches enlarged to that resolution."""
        if (height, width) not in self._masks:
            self._masks[height, width] = self._enlarge(height, width)
        return self._masks[height, width]

    def index(self, height: int, width: int) -> Tensor:
        """(L,) int64: positions of the visible sites in a flattened (B, height, width) map."""
        if (height, width) not in self._indices:
            index = self.mask(height, width).flatten().nonzero().flatten()
            if not len(index):
                raise ValueError("active: no patch is visible; statistics over visible sites do not exist")
            self._indices[height, width] = index
        return self._indices[height, width]

    def hide(self, x: Tensor) -> Tensor:
        """Set hidden sites of ``x`` (B, C, H, W) to zero."""
        return x * self.mask(x.shape[2], x.shape[3])

    def _enlarge(self, height: int, width: int) -> Tensor:
        rows, columns = self.active.shape[2:]
        if height % rows or width % columns:
            raise ValueError(f"feature map of {height}x{width} sites; a multiple of {rows}x{columns} patches is needed")
        return self.active.repeat_interleave(height // rows, 2).repeat_interleave(width // columns, 3)


def normalise(norm: BatchNorm, x: Tensor, visible: VisibleSites | None) -> Tensor:
    """Apply ``norm`` to the visible sites of ``x`` (B, C, H, W) alone and set the others to zero; to all if None.

    Statistics and running buffers count visible sites only. What stands at hidden sites of ``x`` has no influence on
    values or gradients, so a convolution before it needs no mask of its own. Under DDP the sites of all processes count.
    """
    if visible is None:
        dense: Tensor = norm(x)
        return dense
    batch, channels, height, width = x.shape
    index = visible.index(height, width)
    sites = x.permute(0, 2, 3, 1).reshape(-1, channels)
    # A list (L, C), not a thin image: on CPUs torch 2.13 is 20 times slower on (L, C, 1, 1), and its gradients on the
    # transposed view (1, C, L, 1) are wrong.
    values = norm(sites.index_select(0, index))
    spread = values.new_zeros(sites.shape).index_copy(0, index, values)
    y = spread.reshape(batch, height, width, channels).permute(0, 3, 1, 2)
    return y if x.is_contiguous(memory_format=torch.channels_last) else y.contiguous()
