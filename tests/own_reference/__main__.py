"""Freeze the results for the sizes ``FROZEN``: ``PYTHONPATH=.:tests python -m own_reference``.

Only after a change that is meant to change numbers; say in the commit which ones and why.
"""

import argparse
import tempfile
from pathlib import Path

from own_reference.folder import FROZEN_RESULTS, computed, lay_out, save_results
from own_reference.sizes import FROZEN


def freeze(path: Path, overwrite: bool) -> None:
    """Write the frozen results to ``path``. Raises ``FileExistsError`` if it is there, unless asked to ``overwrite``."""
    if path.exists() and not overwrite:
        raise FileExistsError(f"{path} is there; --overwrite replaces the numbers that the tests compare with")
    with tempfile.TemporaryDirectory() as folder:
        lay_out(FROZEN, Path(folder))
        save_results(path, computed(FROZEN, Path(folder)))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--overwrite", action="store_true", help="replace the frozen numbers")
    try:
        freeze(FROZEN_RESULTS, parser.parse_args().overwrite)
    except FileExistsError as error:
        parser.exit(1, f"{error}\n")
