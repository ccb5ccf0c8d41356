"""Fixtures of the training tests: one tiny store, and one finished training on it."""

from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from tiny_training import make_store, tiny_config, train

from cddpm.config import ExperimentConfig
from cddpm.data.store import SliceStore
from cddpm.training import stages
from cddpm.training.loop import Hooks


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def store_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_store(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def store(store_path: Path) -> SliceStore:
    return SliceStore.open(store_path)


@dataclass
class Finished:
    """A training that nothing disturbed."""

    config: ExperimentConfig
    place: stages.Place
    made: stages.Made
    reports: list[dict[str, float]] = field(default_factory=list)


@pytest.fixture(scope="session")
def finished(store_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    place, config = stages.Place(tmp_path_factory.mktemp("finished"), store_path), tiny_config()
    reports: list[dict[str, float]] = []
    return Finished(config, place, train(config, store_path, place.artifacts, Hooks(report=reports.append)), reports)
