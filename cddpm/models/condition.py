"""What the U-Net is told about the noise-free slices.

Letters: B slices, C length of the condition vector, N tokens of a slice (the pixels of the encoder's last feature map), F
channels of a token.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor


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
