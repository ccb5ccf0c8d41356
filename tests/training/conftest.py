"""Fixtures of the training tests: one tiny store, and one finished training on it."""

from dataclasses import dataclass, field
from pathlib import Path

import pytest
from tiny_store import one_thread, store, store_path
from tiny_training import tiny_config, train

from cddpm.config import ExperimentConfig
from cddpm.training import stages
from cddpm.training.loop import Hooks

__all__ = ["one_thread", "store", "store_path"]


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
