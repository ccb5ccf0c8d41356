"""A small drawn cohort."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "launch"))  # where the bench lies, outside of the package

from speed.cohort import Cohort, draw

SHAPE = (12, 64, 64)


@pytest.fixture(scope="session")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Cohort:
    return draw(tmp_path_factory.mktemp("drawn"), 3, SHAPE)
