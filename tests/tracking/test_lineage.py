"""What registered models were made from: by their packages, by their runs, and never guessed."""

import shutil
from pathlib import Path

import pytest
import torch
from registered import publish, registration, run

from cddpm.config import ExperimentConfig, ScoringConfig
from cddpm.errors import TrackingError
from cddpm.tracking import names
from cddpm.tracking.address import default_uri
from cddpm.tracking.lineage import registered
from cddpm.tracking.package import Pipeline, write_package
from cddpm.tracking.registry import Registry

MADE_FROM = {"store": "s1", "checkpoint": "c1", "reconstruction": "r1"}


@pytest.fixture
def uri(output_dir: Path, tmp_path: Path) -> str:
    """Two registered models: one whose package says what it was made from, one whose run does."""
    for number, made_from in enumerate((MADE_FROM, {})):
        pipeline = Pipeline(scoring=ScoringConfig(), thresholds={"all": 0.1}, fingerprints=made_from, trial=number)
        package = tmp_path / "packages" / str(number)
        write_package(package, {"w": torch.full((2,), float(number))}, ExperimentConfig(name="demo"), pipeline)
        tags = {names.FINGERPRINT_CHECKPOINT: f"c{number + 1}", names.FINGERPRINT_GUIDE: "g"} if number else {}
        own = registration(package, {}, ("cddpm", "other")[number])
        publish(output_dir, run("demo", names.KIND_SWEEP), run(f"demo/{number:04d}", tags=tags, registration=own))
    return default_uri(output_dir)


@pytest.mark.slow
def test_packages_and_runs_tell(uri: str) -> None:
    assert registered(uri) == {
        "cddpm version 1": frozenset({"s1", "c1", "r1"}),
        "other version 1": frozenset({"c2", "g"}),
    }


@pytest.mark.slow
def test_aliases_are_named(uri: str) -> None:
    Registry.open(uri, "other").promote("1", "champion", "the test says so")
    assert "other version 1 (champion)" in registered(uri)


@pytest.mark.slow
def test_without_its_package_a_run_tells(uri: str, output_dir: Path) -> None:
    shutil.rmtree(output_dir / "mlartifacts")
    assert registered(uri) == {"cddpm version 1": frozenset(), "other version 1": frozenset({"c2", "g"})}


@pytest.mark.slow
def test_nobody_to_ask(tmp_path: Path) -> None:
    with pytest.raises(TrackingError, match="no lab book here"):
        registered(f"sqlite:///{tmp_path}/mlflow.db")
    with pytest.raises(TrackingError, match="does not answer"):
        registered("http://127.0.0.1:9")
