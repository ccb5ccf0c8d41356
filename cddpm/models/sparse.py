"""Sparse convolution by masking: a dense convolutional network that sees only the visible patches.

Legend: B batch, C channels, H x W sites of a feature map, h x w patches, L visible sites of the whole batch.

Tian et al., "Designing BERT for convolutional networks: sparse and hierarchical masked modeling", ICLR 2023, section 3.1:
after every convolution hidden sites are zero again, so the pattern of visible patches never washes out, and batch
normalisation takes its statistics over visible sites only. Here the visible sites travel as an argument beside the
feature map: no global state, so copies, DDP and nested calls need no care.
"""

import torch
from torch import Tensor

from cddpm.models.batch_norm import BatchNorm


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
