"""Fixtures: a lab book whose database is copied ready-made."""

import shutil
from pathlib import Path

import pytest
import registered


@pytest.fixture(scope="session")
def _three_versions(tmp_path_factory: pytest.TempPathFactory, database: Path) -> Path:
    return registered.filled(tmp_path_factory.mktemp("three"), database)


@pytest.fixture
def three_versions(_three_versions: Path, tmp_path: Path) -> Path:
    """A database of its own with three registered versions; their files are shared and stay as they are."""
    shutil.copyfile(_three_versions / "mlflow.db", tmp_path / "mlflow.db")
    (tmp_path / "mlartifacts").symlink_to(_three_versions / "mlartifacts")
    return tmp_path / "mlflow.db"


@pytest.fixture
def output_dir(tmp_path: Path, database: Path) -> Path:
    folder = tmp_path / "outputs"
    folder.mkdir()
    shutil.copyfile(database, folder / "mlflow.db")
    return folder
