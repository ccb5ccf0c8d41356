"""Fixtures of tests on the tiny store; one thread, as networks this small are quicker so."""

from pathlib import Path

import pytest
import torch
from tiny_training import make_store

from cddpm.data.store import SliceStore


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def store_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_store(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def store(store_path: Path) -> SliceStore:
    return SliceStore.open(store_path)
