"""What a sweep enters into the lab book, without Ray: the driver's own code on a sweep that was really trained."""

from pathlib import Path

import built_sweep
import pytest

from cddpm.config import ExperimentConfig, with_values
from cddpm.search import champion, leaderboard
from cddpm.search.lab import Lab
from cddpm.training import stages


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return built_sweep.trained(tmp_path_factory.mktemp("lab") / "out", trials=1)


def register(config: ExperimentConfig, folder: Path) -> int:
    artifacts = config.output_dir / "artifacts"
    (store,) = artifacts.glob("store/*")
    results, (winner, *beside) = leaderboard.results(folder), champion.load(folder / champion.TEST)
    with Lab.open(config, folder, stages.Place(artifacts, store)) as lab:
        lab.catch_up(results)
        lab.register(results, winner, beside)
        assert lab.close() == 0
        version = lab.version(results[0])
        assert version is not None
    return version


def test_a_champion_that_outlives_an_extension_is_registered_once(sweep: Path) -> None:
    config = built_sweep.config(sweep.parents[1], trials=1, points=8)
    first = register(config, sweep)
    longer = with_values(config, {"search.training.trials": 3, "search.concurrent_trials": 1}, "extension")
    assert register(longer, sweep) == first
