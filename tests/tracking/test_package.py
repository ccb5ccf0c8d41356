import json
import pickle
import struct
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from cddpm import artifact
from cddpm.config import ExperimentConfig, ScoringConfig
from cddpm.errors import ArtifactError
from cddpm.tracking.package import Pipeline, read_package, write_package
from cddpm.tracking.package_files import CONFIG, FILES, PIPELINE, WEIGHTS, verify_package

CONFIG_VALUE = ExperimentConfig(name="demo")
PIPELINE_VALUE = Pipeline(
    scoring=ScoringConfig(median_kernel=3),
    thresholds={"all": 0.1, "Brats21": 0.2},
    validation={"val/dice": 0.5},
    fingerprints={"store": "0123456789abcdef"},
    sweep="demo-1234",
    trial=3,
)


def _weights(seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    tied = torch.randn(4, generator=generator)
    return {
        "a.weight": torch.randn(3, 2, 5, generator=generator).transpose(0, 1),
        "a.half": torch.randn(2, generator=generator).bfloat16(),
        "a.count": torch.tensor(7),
        "tied.one": tied,
        "tied.two": tied,
        "flag": torch.tensor([True, False]),
    }


@pytest.fixture
def package(tmp_path: Path) -> Path:
    write_package(tmp_path / "package", _weights(), CONFIG_VALUE, PIPELINE_VALUE)
    return tmp_path / "package"


def _reseal(package: Path) -> None:
    """As an attacker would: digests that fit the altered files."""
    manifest = artifact.read_manifest(package, "model")
    (package / artifact.MANIFEST).unlink()
    artifact.seal(package, "model", manifest.fingerprint, manifest.made_from)


def test_read_gives_what_was_written(package: Path) -> None:
    got = read_package(package)
    assert got.config == CONFIG_VALUE
    assert got.pipeline == PIPELINE_VALUE
    assert got.weights.keys() == _weights().keys()
    for name, tensor in _weights().items():
        assert got.weights[name].dtype == tensor.dtype
        assert torch.equal(got.weights[name], tensor)
    assert {path.name for path in package.iterdir()} == FILES | {artifact.MANIFEST}


def test_equal_contents_have_equal_fingerprints(package: Path, tmp_path: Path) -> None:
    name = verify_package(package).fingerprint
    assert write_package(tmp_path / "again", _weights(), CONFIG_VALUE, PIPELINE_VALUE).fingerprint == name
    assert write_package(package, _weights(), CONFIG_VALUE, PIPELINE_VALUE).fingerprint == name
    others = [
        (_weights(1), CONFIG_VALUE, PIPELINE_VALUE),
        (_weights(), ExperimentConfig(name="other"), PIPELINE_VALUE),
        (_weights(), CONFIG_VALUE, PIPELINE_VALUE.model_copy(update={"trial": 4})),
        ({**_weights(), "a.count": torch.tensor(7.0)}, CONFIG_VALUE, PIPELINE_VALUE),
    ]
    names = {write_package(tmp_path / str(i), *other).fingerprint for i, other in enumerate(others)}
    assert len(names | {name}) == 5


def test_another_package_is_never_overwritten(package: Path) -> None:
    with pytest.raises(ArtifactError, match="holds another model"):
        write_package(package, _weights(1), CONFIG_VALUE, PIPELINE_VALUE)
    assert torch.equal(read_package(package).weights["tied.one"], _weights()["tied.one"])


@pytest.mark.parametrize(
    ("weights", "pipeline", "message"),
    [
        ({}, PIPELINE_VALUE, "weights: empty"),
        ({"a": torch.tensor([1.0, float("nan")])}, PIPELINE_VALUE, "'a' holds NaN"),
        ({"a": [1.0]}, PIPELINE_VALUE, "'a' is list"),
        (_weights(), PIPELINE_VALUE.model_copy(update={"thresholds": {"Brats21": 0.1}}), "'all' is missing"),
    ],
)
def test_what_is_no_model_is_not_written(
    tmp_path: Path, weights: dict[str, Tensor], pipeline: Pipeline, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        write_package(tmp_path / "package", weights, CONFIG_VALUE, pipeline)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", [*sorted(FILES), artifact.MANIFEST])
def test_every_altered_byte_and_missing_file_is_named(package: Path, name: str) -> None:
    file = package / name
    whole = file.read_bytes()
    middle = len(whole) // 2
    file.write_bytes(whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :])
    with pytest.raises(ArtifactError):
        read_package(package)
    file.unlink()
    with pytest.raises(ArtifactError, match=r"missing|unfinished"):
        read_package(package)


class _Trap:
    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return open, (str(self.file), "w")


def _traps(package: Path) -> dict[str, bytes]:
    proof = package.parent / "proof"
    header = b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,400]}}'
    return {
        "pickle": pickle.dumps(_Trap(proof)),
        "huge header": struct.pack("<Q", 2**62) + b"{}",
        "header past the end": struct.pack("<Q", 500) + b"{}",
        "empty": b"",
        "tensor past the end": struct.pack("<Q", len(header)) + header + b"1234",
        "no JSON": struct.pack("<Q", 4) + b"{{{{",
    }


@pytest.mark.parametrize(
    "trap", ["pickle", "huge header", "header past the end", "empty", "tensor past the end", "no JSON"]
)
def test_hostile_weights_are_refused_and_nothing_runs(package: Path, trap: str) -> None:
    (package / WEIGHTS).write_bytes(_traps(package)[trap])
    _reseal(package)
    with pytest.raises(ArtifactError, match="not a safetensors file"):
        read_package(package)
    assert not (package.parent / "proof").exists()


@pytest.mark.parametrize("listed", ["../../etc/passwd", "/etc/passwd", "extra.py"])
def test_a_manifest_that_lists_other_files_is_refused(package: Path, listed: str) -> None:
    manifest = json.loads((package / artifact.MANIFEST).read_text())
    manifest["files"][listed] = "0" * 64
    (package / artifact.MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(ArtifactError, match="a model package has exactly"):
        read_package(package)


def test_a_link_is_refused(package: Path) -> None:
    (package / WEIGHTS).rename(package.parent / "elsewhere")
    (package / WEIGHTS).symlink_to(package.parent / "elsewhere")
    with pytest.raises(ArtifactError, match="is a link"):
        read_package(package)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        (CONFIG, '{"name": "x", "colour": 1}', "colour: unknown setting"),
        (CONFIG, "[1]", r"config\.json: not settings of a package \(Input should be a valid dict"),
        (PIPELINE, "{", r"pipeline\.json: not settings of a package"),
        (PIPELINE, '{"scoring": {}, "thresholds": {}, "format": 2}', "format: Input should be 1"),
        (PIPELINE, "[" * 100_000, "not settings of a package"),
    ],
)
def test_other_settings_are_refused_by_name(package: Path, name: str, text: str, message: str) -> None:
    (package / name).write_text(text)
    _reseal(package)
    with pytest.raises(ArtifactError, match=message):
        read_package(package)


@pytest.mark.slow
def test_no_mlflow_is_needed_to_read_a_package() -> None:
    code = "import sys, cddpm.tracking.package; sys.exit('mlflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
