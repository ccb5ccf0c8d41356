"""What keeps a GPU from waiting: passes replayed as one CUDA graph, batches made ahead in a thread, results read later.

A pass through these networks is some thousand kernels. To start them one by one from Python takes longer than a GPU needs
for a small network, or for a small batch of the full one; a graph starts all of them at once. It holds for one shape of batch,
and computes the same kernels in the same order.
"""

import gc
import logging
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Self, TypeVar

import torch
from torch import Tensor

logger = logging.getLogger(__name__)

T = TypeVar("T")
Inputs = tuple[Tensor | None, ...]
QUIET = threading.Lock()
"""Held while a graph is recorded, and while a batch is made in another thread: a recording suffers no other use of the GPU."""
_FIRST = 3
"""Batches before a graph is recorded: libraries choose their kernels, Triton compiles."""


_READY = 2
"""Batches that are made or under way while the device works."""


class Replay:
    """Calls ``run`` and gives its result; before each call ``forget`` drops what the last one left (gradients).

    With ``recorded`` (tensors on a GPU, of the same shapes in each call, in ``run`` nothing that waits for the device) calls
    are replayed as a graph: the result is the same tensor each time, and so are gradients, so read them before the next call.
    """

    def __init__(
        self, run: Callable[[Inputs], Tensor], recorded: bool, forget: Callable[[], None] = lambda: None
    ) -> None:
        self._run, self._recorded, self._forget = run, recorded, forget
        self._calls = 0
        self._graph: torch.cuda.CUDAGraph | None = None
        self._inputs: Inputs = ()
        self._result: Tensor | None = None

    def __call__(self, inputs: Inputs) -> Tensor:
        """What ``run`` makes of ``inputs``."""
        if self._recorded and self._calls == _FIRST:
            self._record(inputs)
        self._calls += 1
        if self._graph is None or self._result is None:
            self._forget()
            return self._run(inputs)
        for own, given in zip(self._inputs, inputs, strict=True):
            if own is not None and given is not None:
                own.copy_(given, non_blocking=True)
        self._graph.replay()
        return self._result

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
                    result = self._run(self._inputs)
            except RuntimeError as error:  # also a lack of memory
                logger.warning("this pass cannot be recorded as a CUDA graph and runs kernel by kernel: %s", error)
                self._forget()
                return
        self._graph, self._result = graph, result


@dataclass(frozen=True)
class Coming:
    """A tensor on its way to the CPU. From a GPU it travels while the device works on; ``read`` waits for it."""

    _value: Tensor
    _arrived: torch.cuda.Event | None

    @classmethod
    def of(cls, tensor: Tensor) -> Self:
        """``tensor`` as it is now: it may be written to again at once."""
        if not tensor.is_cuda:
            return cls(tensor.detach(), None)
        value, arrived = tensor.detach().to("cpu", non_blocking=True), torch.cuda.Event()
        arrived.record()
        return cls(value, arrived)

    @property
    def from_afar(self) -> bool:
        """Whether there is anything to wait for."""
        return self._arrived is not None

    def read(self) -> Tensor:
        """The tensor on the CPU."""
        if self._arrived is not None:
            self._arrived.synchronize()
        return self._value


def ahead(calls: Iterable[Callable[[], T]], device: torch.device) -> Generator[T, None, None]:
    """The results of ``calls`` in order. Beside a GPU one thread is some calls ahead; on a CPU each is made when asked for.

    Raises what a call raises, in its place.
    """
    if device.type != "cuda":
        yield from (call() for call in calls)
        return
    waiting: deque[Future[T]] = deque()
    pool = ThreadPoolExecutor(1, thread_name_prefix="batches")
    try:
        for call in calls:
            waiting.append(pool.submit(_quietly, call))
            if len(waiting) > _READY:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _quietly(call: Callable[[], T]) -> T:
    with QUIET:
        return call()
