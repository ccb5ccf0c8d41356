"""The memo forgets the longest unused array, stays within its memory and never changes a value."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from cddpm.scoring.memo import ArrayMemo


def bytes_of(value: int) -> np.ndarray:
    return np.full(10, value, np.uint8)


def test_computes_once_while_it_holds():
    memo, calls = ArrayMemo(100), []
    for _ in range(3):
        memo.get("a", lambda: calls.append(1) or bytes_of(1))
    assert len(calls) == 1


def test_forgets_the_longest_unused_first():
    memo = ArrayMemo(30)
    for key in "abc":
        memo.get(key, lambda: bytes_of(0))
    memo.get("a", lambda: bytes_of(9))  # used again: now b is the oldest
    memo.get("d", lambda: bytes_of(0))
    assert (len(memo), memo.held_bytes) == (3, 30)
    assert memo.get("a", lambda: bytes_of(9))[0] == 0
    assert memo.get("b", lambda: bytes_of(9))[0] == 9


def test_an_array_that_never_fits_is_returned_but_not_kept():
    memo = ArrayMemo(5)
    assert memo.get("a", lambda: bytes_of(3))[0] == 3
    assert len(memo) == 0


def test_arrays_are_read_only():
    array = ArrayMemo(100).get("a", lambda: bytes_of(1))
    with pytest.raises(ValueError, match="read-only"):
        array[0] = 2


def test_clear_and_threads_keep_the_books():
    memo = ArrayMemo(200)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda i: int(memo.get(i % 30, lambda: bytes_of(i % 30))[0]), range(600)))
    assert found == [i % 30 for i in range(600)]
    assert memo.held_bytes == 10 * len(memo) <= 200
    memo.clear()
    assert (len(memo), memo.held_bytes) == (0, 0)
