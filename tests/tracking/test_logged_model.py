"""What MLflow is given: a description that its own tools read, around a package that stays as it was."""

import json
import re
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
import yaml

from cddpm import artifact
from cddpm.config import ExperimentConfig, ScoringConfig
from cddpm.errors import ArtifactError
from cddpm.predict.scans import COLUMNS
from cddpm.tracking import logged_model, package_files
from cddpm.tracking.package import Pipeline, read_package, write_package
from cddpm.tracking.package_files import KIND


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("package") / "0003"
    made_from = {"store": "s1", "checkpoint": "c1", "imported_file_sha256": "f"}
    pipeline = Pipeline(scoring=ScoringConfig(), thresholds={"all": 0.1}, fingerprints=made_from)
    write_package(folder, {"w": torch.ones(3)}, ExperimentConfig(name="demo"), pipeline)
    return folder


@pytest.fixture
def model(package: Path) -> Iterator[Path]:
    with logged_model.built(package, "a run", "m-1") as folder:
        yield folder


def test_the_package_lies_whole_inside(package: Path, model: Path) -> None:
    inside = package_files.verify_logged_model(model)
    assert inside == model / "data" / "package"
    assert {p.name: p.read_bytes() for p in inside.iterdir()} == {p.name: p.read_bytes() for p in package.iterdir()}
    assert (
        artifact.read_manifest(model, package_files.LOGGED_MODEL).fingerprint
        == artifact.read_manifest(package, KIND).fingerprint
    )


def test_its_weights_are_hashed_once(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hashed: list[str] = []
    real = artifact.file_digest
    monkeypatch.setattr(artifact, "file_digest", lambda path: (hashed.append(path.name), real(path))[1])
    package = read_package(package_files.verify_logged_model(model), compared=True)
    assert hashed.count("model.safetensors") == 1
    assert torch.equal(package.weights["w"], torch.ones(3))


def test_a_package_whose_manifest_says_otherwise_is_refused(model: Path) -> None:
    manifest = model / "data" / "package" / artifact.MANIFEST
    told = json.loads(manifest.read_text())
    told["files"]["model.safetensors"] = "0" * 64
    manifest.write_text(json.dumps(told))
    fingerprint = artifact.read_manifest(model, package_files.LOGGED_MODEL).fingerprint
    (model / artifact.MANIFEST).unlink()
    artifact.seal(model, package_files.LOGGED_MODEL, fingerprint, {})
    with pytest.raises(ArtifactError, match=r"package/model\.safetensors: altered or damaged"):
        package_files.verify_logged_model(model)


def test_mlflow_is_told_how_to_load_and_what_goes_in(model: Path) -> None:
    told = yaml.safe_load((model / "MLmodel").read_text())
    flavour = told["flavors"]["python_function"]
    assert (flavour["loader_module"], flavour["data"], flavour["code"]) == (logged_model.LOADER, "data/package", None)
    assert (told["run_id"], told["model_id"]) == ("a run", "m-1")
    inputs = {column["name"]: column["required"] for column in json.loads(told["signature"]["inputs"])}
    assert inputs == logged_model.INPUTS
    assert set(inputs) == set(COLUMNS)
    assert [name for name, needed in inputs.items() if needed] == ["scan"]
    assert [column["name"] for column in json.loads(told["signature"]["outputs"])] == list(logged_model.OUTPUTS)
    example = json.loads((model / "input_example.json").read_text())
    assert example["inputs"] == {"columns": ["scan", "mask"], "data": [["scan_t2.nii.gz", "scan_mask.nii.gz"]]}


def test_no_file_of_it_is_a_pickle(model: Path) -> None:
    names = {str(path.relative_to(model)) for path in model.rglob("*") if path.is_file()}
    assert names == {
        *("MLmodel", "manifest.json", "input_example.json", "serving_input_example.json"),
        *("requirements.txt", "conda.yaml", "python_env.yaml"),
        *(f"data/package/{name}" for name in ("manifest.json", "model.safetensors", "config.json", "pipeline.json")),
    }


def test_requirements_are_those_installed(model: Path) -> None:
    lines = (model / "requirements.txt").read_text().split()
    pins = dict(re.fullmatch(r"([\w.-]+)(?:\[.*\])?==(.+)", line).groups() for line in lines)  # type: ignore[union-attr]
    assert {"torch", "numpy", "nibabel", "mlflow", "safetensors"} <= set(pins)
    assert "pytest" not in pins
    for name, pinned in pins.items():
        assert version(name).split("+")[0] == pinned
    assert "requirements.txt" in (model / "python_env.yaml").read_text()


@pytest.mark.parametrize("name", ["MLmodel", "requirements.txt", "data/package/pipeline.json"])
def test_every_altered_file_is_named(model: Path, name: str) -> None:
    (model / name).write_text((model / name).read_text() + " ")
    with pytest.raises(ArtifactError, match=rf"{name}: altered or damaged"):
        package_files.verify_logged_model(model)


def test_a_damaged_package_is_no_model(package: Path, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"x")
    with pytest.raises(ArtifactError, match="unfinished"), logged_model.built(tmp_path, "a run", "m-1"):
        pass


def test_tags_say_what_the_package_says(package: Path) -> None:
    assert logged_model._origin(package) == {
        "cddpm.fingerprint.store": "s1",
        "cddpm.fingerprint.checkpoint": "c1",
        "cddpm.fingerprint.config": artifact.fingerprint(json.loads((package / "config.json").read_text())),
        "cddpm.data": "t2 of IXI, fold 0; Brats21, MSLUB; phantom (small)",
    }
