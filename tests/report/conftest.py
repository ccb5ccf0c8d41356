"""Sweeps to report on; made once, read only."""

import built_sweep
import pytest
import torch

from cddpm.search import record
from cddpm.search.record import SweepRecord


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> SweepRecord:
    """Two trials, trained and scored on test."""
    return record.read(built_sweep.trained(tmp_path_factory.mktemp("finished")))


@pytest.fixture(scope="session")
def long(tmp_path_factory: pytest.TempPathFactory) -> SweepRecord:
    """Thirty trials, drawn; nothing scored on test yet, no artifacts."""
    return record.read(built_sweep.drawn(tmp_path_factory.mktemp("long"), trials=30, points=40))


@pytest.fixture(scope="session")
def empty(tmp_path_factory: pytest.TempPathFactory) -> SweepRecord:
    """Begun, no trial yet."""
    return record.read(built_sweep.begin(built_sweep.config(tmp_path_factory.mktemp("empty"), "empty")))
