"""A small drawn cohort."""

import pytest

from cddpm.speed.cohort import Cohort, draw

SHAPE = (12, 64, 64)


@pytest.fixture(scope="session")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Cohort:
    return draw(tmp_path_factory.mktemp("drawn"), 3, SHAPE)
