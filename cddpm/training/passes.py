"""Loss and gradients of one batch; on a GPU, after a few batches, as one CUDA graph.

A training step of these networks is some thousand kernels. To start them one by one from Python takes longer than a GPU needs
for a small network, or for a small batch of the full one; a graph starts all of them at once. It holds for one shape of batch,
and computes the same kernels in the same order.
"""

import gc
import logging
import threading
from collections.abc import Callable

import torch
from torch import Tensor

logger = logging.getLogger(__name__)

Inputs = tuple[Tensor | None, ...]
QUIET = threading.Lock()
"""Held while a graph is recorded, and while a batch is made in another thread: a recording suffers no other use of the GPU."""
_FIRST = 3
"""Batches before a graph is recorded: libraries choose their kernels, Triton compiles."""


class Passes:
    """Calls ``run``, which makes the gradients of its arguments' loss and gives that loss; gradients of before are gone.

    With ``recorded`` (tensors on a GPU, of the same shapes in each call, in ``run`` nothing that waits for the device) calls
    are replayed as a graph: the gradients' tensors stay the same ones, and the loss too, so read it before the next call.
    """

    def __init__(self, run: Callable[[Inputs], Tensor], forget: Callable[[], None], recorded: bool) -> None:
        self._run, self._forget, self._recorded = run, forget, recorded
        self._calls = 0
        self._graph: torch.cuda.CUDAGraph | None = None
        self._inputs: Inputs = ()
        self._loss: Tensor | None = None

    def __call__(self, inputs: Inputs) -> Tensor:
        """The loss (scalar) of ``inputs``."""
        if self._recorded and self._calls == _FIRST:
            self._record(inputs)
        self._calls += 1
        if self._graph is None or self._loss is None:
            self._forget()
            return self._run(inputs)
        for own, given in zip(self._inputs, inputs, strict=True):
            if own is not None and given is not None:
                own.copy_(given, non_blocking=True)
        self._graph.replay()
        return self._loss

    def _record(self, inputs: Inputs) -> None:
        self._forget()
        gc.collect()
        with QUIET:
            torch.cuda.synchronize()
            torch.cuda.empty_cache()  # the graph has memory of its own
            self._inputs = tuple(None if tensor is None else tensor.clone() for tensor in inputs)
            graph = torch.cuda.CUDAGraph()
            try:
                with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                    loss = self._run(self._inputs)
            except RuntimeError as error:  # also a lack of memory
                logger.warning("this training cannot be recorded as a CUDA graph and runs kernel by kernel: %s", error)
                self._forget()
                return
        self._graph, self._loss = graph, loss
