"""Where every random number comes from: seeds that name what they are for, and the generators that they key.

A draw depends on its own name alone (volume, slice number, level, trial, ...), never on its batch, its worker, the order of
work or the length of a run.
"""

import hashlib
import json
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt


def seed_of(seed: int, *names: int | str) -> int:
    """A stable 63-bit hash of the experiment's ``seed`` and what names the draw; numbers and texts differ: 1 is not "1"."""
    text = json.dumps([int(seed), *(name if isinstance(name, str) else int(name) for name in names)])
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def step_seed(seed: int, image: int) -> int:
    """Seed of what torch draws in the training step that begins with image number ``image`` on this rank."""
    return (seed * 1_000_003 + image) % 2**63


def generator(seed: int) -> np.random.Generator:
    """Draws of one slice: Philox, a counter-based generator keyed by the 64-bit ``seed`` (Salmon et al. 2011)."""
    return np.random.Generator(np.random.Philox(key=np.int64(seed).view(np.uint64)))


def uniform(seeds: Iterable[int], count: int) -> npt.NDArray[np.float64]:
    """(B, ``count``) numbers in [0, 1), row i from ``seeds[i]`` alone; all 64 bits of a seed count, also of a negative one."""
    return np.stack([np.random.default_rng(seed % 2**64).random(count) for seed in seeds])
