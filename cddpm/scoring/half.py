"""float16 to float32 and back, voxel by voxel, equal to NumPy's bit for bit and several times as fast.

NumPy converts number by number; here whole blocks are converted by integer shifts and one multiplication or addition each, of
which the compiler makes vectors. float16 numbers are finite; a float32 that is NaN stays one.

A float16 has 5 bits of exponent (bias 15) and 10 of fraction, a float32 8 (bias 127) and 23 (IEEE 754). Moved 13 bits up, the
bits of a float16 are those of a float32 that is 2^-112 times as large, below the normal numbers too. On the way back the last
bit is rounded to nearest, ties to even: of normal numbers by an addition to the integer, below them by adding 0.5, whose last
bit is 2^-24 as theirs.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from cddpm.compiled import njit

_BLOCK = 1024
_UP = np.float32(2.0**112)
_NORMAL_BITS = np.uint32(0x38800000)
"""Of 2^-14, the smallest normal float16."""
_MAGNITUDE, _INFINITE_BITS, _NAN = np.uint32(0x7FFFFFFF), np.uint32(0x7F800000), np.uint32(0x7E00)
_HALF, _HALF_BITS = np.float32(0.5), np.uint32(0x3F000000)
LARGEST = np.float32(65504.0)
"""Largest finite float16."""


def add(total: NDArray[np.float32], halves: NDArray[np.float16], weight: float = 1.0) -> None:
    """``total`` += ``weight`` * ``halves`` in float32; ``total`` is contiguous. Raises ``ValueError`` for two shapes."""
    if total.shape != halves.shape or not total.flags.c_contiguous:
        raise ValueError(f"total {total.shape}, added {halves.shape}: one shape is needed, and a contiguous total")
    bits = np.ascontiguousarray(halves).view(np.uint16).ravel()
    _add(total.reshape(-1), bits, np.float32(weight))


def single(halves: NDArray[np.float16]) -> NDArray[np.float32]:
    """``halves`` as float32."""
    total = np.empty(halves.shape, np.float32)
    _single(total.reshape(-1), np.ascontiguousarray(halves).view(np.uint16).ravel())
    return total


def positive(numbers: NDArray[np.float32]) -> NDArray[np.float16]:
    """``numbers`` as float16, >= 0: below 0 counts as 0, and beyond float16's range as its largest number."""
    halves = np.empty(numbers.shape, np.uint16)
    _positive(halves.reshape(-1), np.ascontiguousarray(numbers).ravel())
    return halves.view(np.float16)


@njit(cache=True, nogil=True)
def _single_block(block: Any, bits: Any) -> None:
    shifted = block.view(np.uint32)
    for i in range(bits.size):
        b = np.uint32(bits[i])
        shifted[i] = ((b & np.uint32(0x7FFF)) << np.uint32(13)) | ((b & np.uint32(0x8000)) << np.uint32(16))
    for i in range(bits.size):
        block[i] *= _UP


@njit(cache=True, nogil=True)
def _single(total: Any, bits: Any) -> None:
    for begin in range(0, total.size, _BLOCK):
        _single_block(total[begin : begin + _BLOCK], bits[begin : begin + _BLOCK])


@njit(cache=True, nogil=True)
def _add(total: Any, bits: Any, weight: Any) -> None:
    block = np.empty(_BLOCK, np.float32)
    for begin in range(0, total.size, _BLOCK):
        part = total[begin : begin + _BLOCK]
        _single_block(block[: part.size], bits[begin : begin + _BLOCK])
        for i in range(part.size):
            part[i] += weight * block[i]


@njit(cache=True, nogil=True)
def _positive(halves: Any, numbers: Any) -> None:
    clipped, moved = np.empty(_BLOCK, np.float32), np.empty(_BLOCK, np.float32)
    bits, small = clipped.view(np.uint32), moved.view(np.uint32)
    for begin in range(0, numbers.size, _BLOCK):
        part, target = numbers[begin : begin + _BLOCK], halves[begin : begin + _BLOCK]
        for i in range(part.size):
            x = part[i]
            x = x if x != x else (min(x, LARGEST) if x > np.float32(0.0) else np.float32(0.0))  # -0 becomes 0
            clipped[i] = x
            moved[i] = x + _HALF
        for i in range(part.size):
            b = bits[i]
            even = (b >> np.uint32(13)) & np.uint32(1)
            normal = ((b + np.uint32(0xFFF) + even) >> np.uint32(13)) - np.uint32(112 << 10)
            below = small[i] - _HALF_BITS
            number = normal if b >= _NORMAL_BITS else below
            target[i] = np.uint16(_NAN if (b & _MAGNITUDE) > _INFINITE_BITS else number)
