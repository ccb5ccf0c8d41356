"""From the data to the version, step by step."""

import shutil
from pathlib import Path

import pytest

from cddpm import artifact
from cddpm.tracking.address import file_uri
from cddpm.tracking.ancestry import ancestry
from cddpm.tracking.registry import Registry

pytestmark = pytest.mark.slow


@pytest.fixture
def registry(three_versions: Path) -> Registry:
    return Registry.open(file_uri(three_versions))


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


def test_what_is_still_here_is_found(registry: Registry, tmp_path: Path) -> None:
    files = {"a.nii.gz": "1" * 64, "b.nii.gz": "2" * 64}
    artifact.create(tmp_path / "store" / "s1", "store", "s1", {"files": files}, lambda folder: None)
    data, store, *_ = ancestry(registry, registry.find("2"), tmp_path)
    assert store.path == tmp_path / "store" / "s1"
    assert data.facts["files"] == "2"
    assert data.facts["digest of files"] == artifact.fingerprint(files)


def test_without_its_package_the_tags_tell(registry: Registry, tmp_path: Path) -> None:
    version = registry.find("2")
    empty = tmp_path / "empty"
    empty.mkdir()
    registry._location = lambda version: str(empty)  # type: ignore[method-assign]
    steps = {step.kind: step for step in ancestry(registry, version, tmp_path)}
    assert steps["checkpoint"].fingerprint == "c1"
    assert steps["version"].path is None
    shutil.rmtree(empty)
