"""Fixtures of the data tests."""

import shutil
from pathlib import Path

import pytest
from tiny_data import TinyData, make_tiny_data


@pytest.fixture(scope="session")
def tiny_template(tmp_path_factory: pytest.TempPathFactory) -> TinyData:
    """Made once; tests break their own copy."""
    return make_tiny_data(tmp_path_factory.mktemp("template") / "data dir")


@pytest.fixture
def tiny(tiny_template: TinyData, tmp_path: Path) -> TinyData:
    """A clean DATA_DIR of 9 tiny scans, in a folder whose name has a space."""
    shutil.copytree(tiny_template.root, tmp_path / "data dir")
    return TinyData(tmp_path / "data dir", tiny_template.config)
