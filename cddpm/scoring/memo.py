"""A memo of intermediate arrays that forgets the longest unused ones when its memory is used up."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable

from numpy.typing import NDArray


class ArrayMemo:
    """Least-recently-used memo of read-only arrays, bounded in bytes; may be used by several threads.

    Two threads that miss the same key at once both compute it: the arrays are equal, and no thread waits for another.
    """

    def __init__(self, capacity_bytes: int) -> None:
        self.capacity_bytes = capacity_bytes
        self.held_bytes = 0
        self._arrays: OrderedDict[Hashable, NDArray] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: Hashable, compute: Callable[[], NDArray]) -> NDArray:
        """The array of ``key``, computed if it is not held. The caller must not write to it."""
        with self._lock:
            if key in self._arrays:
                self._arrays.move_to_end(key)
                return self._arrays[key]
        array = compute()
        array.flags.writeable = False
        with self._lock:
            self._keep(key, array)
        return array

    def _keep(self, key: Hashable, array: NDArray) -> None:
        if key in self._arrays or array.nbytes > self.capacity_bytes:
            return
        self._arrays[key] = array
        self.held_bytes += array.nbytes
        while self.held_bytes > self.capacity_bytes:
            _, forgotten = self._arrays.popitem(last=False)
            self.held_bytes -= forgotten.nbytes

    def __len__(self) -> int:
        return len(self._arrays)

    def clear(self) -> None:
        """Forget everything."""
        with self._lock:
            self._arrays.clear()
            self.held_bytes = 0
