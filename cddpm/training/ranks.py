"""The processes of one training: who I am, and the few things that all do together (torch.distributed underneath)."""

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Ranks:
    """This process's ``rank`` of ``world``; with ``world`` 1 no process group is needed and nothing is sent."""

    rank: int = 0
    world: int = 1
    device: torch.device = CPU

    @property
    def first(self) -> bool:
        """Whether this process writes files and reports."""
        return self.rank == 0

    def wrap(self, module: nn.Module) -> nn.Module:
        """``module`` with gradients averaged over the processes.

        Its buffers are not sent: ``models.batch_norm`` keeps them equal on all.
        """
        if self.world == 1:
            return module
        return DistributedDataParallel(module, gradient_as_bucket_view=True, forward_sync_buffers=False)

    def share(self, value: Any) -> Any:
        """The first process's ``value``, on every process (any picklable object)."""
        if self.world == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0, device=self._transport())
        return box[0]

    def gather(self, value: Any) -> list[Any]:
        """Every process's ``value``, in the order of ranks, on every process."""
        if self.world == 1:
            return [value]
        box: list[Any] = [None] * self.world
        dist.all_gather_object(box, value)
        return box

    def total(self, values: Tensor) -> Tensor:
        """Sum of ``values`` over the processes."""
        if self.world == 1:
            return values
        summed = values.to(self.device, copy=True)  # NCCL only sums what lies on GPUs
        dist.all_reduce(summed)
        return summed

    def barrier(self) -> None:
        """Wait until every process is here."""
        if self.world > 1:
            dist.barrier()

    def _transport(self) -> torch.device | None:
        return self.device if self.device.type == "cuda" else None
