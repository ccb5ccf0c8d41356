"""What registered models were made from: step by step, by their packages, by their runs, and never guessed."""

import shutil
from pathlib import Path

import pytest
import torch
from registered import publish, registration, run

from cddpm import artifact
from cddpm.config import ExperimentConfig, ScoringConfig
from cddpm.errors import TrackingError
from cddpm.tracking import names
from cddpm.tracking.address import default_uri, file_uri
from cddpm.tracking.lineage import ancestry, registered
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


@pytest.fixture
def registry(three_versions: Path) -> Registry:
    return Registry.open(file_uri(three_versions))


@pytest.mark.slow
def test_every_step_knows_what_it_was_made_from(registry: Registry, tmp_path: Path) -> None:
    registry.promote("2", "champion", "a test")
    steps = ancestry(registry, registry.find("2"), tmp_path)
    assert [(step.kind, step.fingerprint, step.made_from) for step in steps] == [
        ("data", None, ()),
        ("store", "s1", ("data",)),
        ("encoder", "e1", ("store",)),
        ("checkpoint", "c1", ("store", "encoder")),
        ("reconstruction", "r1", ("store", "checkpoint")),
        ("score", None, ("reconstruction",)),
        ("version", registry.find("2").fingerprint, ("checkpoint", "score")),
    ]
    facts = {step.kind: step.facts for step in steps}
    assert facts["data"] == {"what": "t2 of IXI, fold 0; Brats21, MSLUB; phantom (small)"}
    assert facts["score"] == {"val/dice": "0.5000", "val/loss": "0.3000"}
    assert facts["version"]["aliases"] == "champion"
    assert [step.path is not None for step in steps] == [False] * 6 + [True]


@pytest.mark.slow
def test_what_is_still_here_is_found(registry: Registry, tmp_path: Path) -> None:
    files = {"a.nii.gz": "1" * 64, "b.nii.gz": "2" * 64}
    artifact.create(tmp_path / "store" / "s1", "store", "s1", {"files": files}, lambda folder: None)
    data, store, *_ = ancestry(registry, registry.find("2"), tmp_path)
    assert store.path == tmp_path / "store" / "s1"
    assert data.facts["files"] == "2"
    assert data.facts["digest of files"] == artifact.fingerprint(files)


@pytest.mark.slow
def test_without_its_package_the_tags_tell(registry: Registry, tmp_path: Path) -> None:
    version = registry.find("2")
    empty = tmp_path / "empty"
    empty.mkdir()
    registry._location = lambda version: str(empty)  # type: ignore[method-assign]
    steps = {step.kind: step for step in ancestry(registry, version, tmp_path)}
    assert steps["checkpoint"].fingerprint == "c1"
    assert steps["version"].path is None
    shutil.rmtree(empty)
