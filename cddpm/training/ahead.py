"""What keeps a GPU from waiting: batches made ahead in a thread, and losses that are read a little later."""

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch
from torch import Tensor

from cddpm.training.passes import QUIET

T = TypeVar("T")

_READY = 2
"""Batches that are made or under way while the device works."""
_UNREAD = 3
"""Losses that may be on their way from the device."""


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


class Losses:
    """Losses of training steps, read in their order: on a CPU at once, from a GPU when they have arrived."""

    def __init__(self) -> None:
        self._coming: deque[tuple[int, Tensor, torch.cuda.Event | None]] = deque()

    def put(self, images: int, loss: Tensor) -> None:
        """The loss (scalar) of the step after which so many ``images`` were seen."""
        if not loss.is_cuda:
            self._coming.append((images, loss.detach(), None))
            return
        value, arrived = loss.detach().to("cpu", non_blocking=True), torch.cuda.Event()
        arrived.record()
        self._coming.append((images, value, arrived))

    def read(self, all_of_them: bool = False) -> Iterator[tuple[int, float]]:
        """(images, loss) of steps not yet told, without waiting for the last few of a GPU unless ``all_of_them`` are wanted."""
        while self._coming:
            images, value, arrived = self._coming[0]
            if arrived is not None:
                if len(self._coming) <= _UNREAD and not all_of_them:
                    return
                arrived.synchronize()
            self._coming.popleft()
            yield images, float(value)
