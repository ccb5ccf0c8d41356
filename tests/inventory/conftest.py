from pathlib import Path

import pytest
from shelf import Shelf, full


@pytest.fixture
def shelf(tmp_path: Path) -> Shelf:
    return full(tmp_path / "outputs")
