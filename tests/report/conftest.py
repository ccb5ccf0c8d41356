"""Sweeps to report on; made once, read only."""

from pathlib import Path

import pytest
import torch
from built_sweep import drawn, trained


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def finished_sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two trials, trained and scored on test."""
    return trained(tmp_path_factory.mktemp("finished"))


@pytest.fixture(scope="session")
def long_sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Thirty trials, drawn; nothing scored on test yet, no artifacts."""
    return drawn(tmp_path_factory.mktemp("long"), trials=30, points=40)
