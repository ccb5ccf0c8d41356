"""Losses of training steps, read a little later than they were computed, so that a GPU never waits for its reader."""

from collections import deque
from collections.abc import Iterator

from torch import Tensor

from cddpm.models.replay import Coming

_UNREAD = 3
"""Losses that may be on their way from the device."""


class Losses:
    """Losses in their order: on a CPU read at once, from a GPU when they have arrived."""

    def __init__(self) -> None:
        self._coming: deque[tuple[int, Coming]] = deque()

    def put(self, images: int, loss: Tensor) -> None:
        """The loss (scalar) of the step after which so many ``images`` were seen."""
        self._coming.append((images, Coming.of(loss)))

    def read(self, all_of_them: bool = False) -> Iterator[tuple[int, float]]:
        """(images, loss) of steps not yet told, without waiting for the last few of a GPU unless ``all_of_them`` are wanted."""
        while self._coming:
            images, loss = self._coming[0]
            if loss.from_afar and len(self._coming) <= _UNREAD and not all_of_them:
                return
            self._coming.popleft()
            yield images, float(loss.read())
