"""Freeze the results of this project's float64 implementation: ``PYTHONPATH=.:tests python tests/parity/freeze.py``.

Only after a change that is meant to change numbers; say in the commit which ones and why.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from frozen_cases import cases

FROZEN = Path(__file__).with_name("frozen.npz")


def compute(dtype: torch.dtype) -> dict[str, np.ndarray]:
    """Every frozen array as ``part/name``, computed in ``dtype``."""
    return {f"{part}/{name}": a for part, make in cases().items() for name, a in make(dtype).items()}


def freeze(path: Path, overwrite: bool) -> None:
    """Write the frozen arrays to ``path``. Raises ``FileExistsError`` if it is there, unless asked to ``overwrite``."""
    if path.exists() and not overwrite:
        raise FileExistsError(f"{path} is there; --overwrite replaces the numbers that the tests compare with")
    np.savez_compressed(path, allow_pickle=False, **compute(torch.float64))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--overwrite", action="store_true", help="replace the frozen numbers")
    try:
        freeze(FROZEN, parser.parse_args().overwrite)
    except FileExistsError as error:
        parser.exit(1, f"{error}\n")
