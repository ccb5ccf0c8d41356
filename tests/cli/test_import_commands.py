"""``cddpm import``: what it prints, what it leaves, and that ``cddpm predict`` takes its package."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from published_file import TINY, diffusion_state, network, pretraining_state, save, spark, whole
from tiny_package import Scan
from typer.testing import CliRunner, Result

from cddpm.cli import app
from cddpm.config import load
from cddpm.errors import ArtifactError, ConfigError
from cddpm.tracking.package import read_package
from cddpm.training import stages


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "experiment.yaml"
    path.write_text(yaml.safe_dump(TINY))
    return path


@pytest.fixture(scope="module")
def model_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("published") / "model.ckpt", diffusion_state(network(whole()), whole()))


def run(file: Path, config: Path, *more: str) -> Result:
    options = ["--config", str(config), "--output-dir", str(config.parent / "out")]
    return CliRunner().invoke(app, ["import", str(file), *options, *more], catch_exceptions=False)


def folder(done: Result, kind: str) -> Path:
    found = re.search(rf"^{kind}: (\S+)", done.stdout, re.MULTILINE)
    assert found, done.stdout
    return Path(found[1])


@pytest.mark.slow
def test_a_model_is_told_and_kept(model_file: Path, config: Path) -> None:
    done = run(model_file, config)
    assert done.exit_code == 0
    for told in ("U-Net", "diffusion.model.", "epoch 12", "diffusion.schedule: linear", "diffusion.objective: x0"):
        assert told in done.stdout
    path = folder(done, "checkpoint")
    assert path.parent == config.parent / "out" / "artifacts" / "checkpoint"
    assert f"--config {path}/config.json --set training.artifact={path.name}" in done.stdout
    assert run(model_file, config).stdout.splitlines()[-3] == f"checkpoint: {path} (was there)"


@pytest.mark.slow
def test_the_printed_configuration_is_one(model_file: Path, config: Path) -> None:
    path = folder(run(model_file, config), "checkpoint")
    loaded = load(path / "config.json", {"training.artifact": path.name})
    assert loaded.model == whole().model
    assert stages.checkpoint_identity(loaded, "any store")[0] == path.name


@pytest.mark.slow
def test_a_pretraining_is_told_and_kept(tmp_path: Path, config: Path) -> None:
    done = run(save(tmp_path / "spark.ckpt", pretraining_state(spark(whole()))), config)
    path = folder(done, "encoder")
    assert f"pretraining.artifact={path.name}" in done.stdout
    assert "tensors that only the pretraining needs" in done.stdout
    with pytest.raises(ConfigError, match="an encoder alone, which segments nothing"):
        run(tmp_path / "spark.ckpt", config, "--threshold", "0.1")


@pytest.mark.slow
def test_predict_takes_the_package(model_file: Path, config: Path, scan: Scan, tmp_path: Path) -> None:
    package = folder(run(model_file, config, "--threshold", "0.25"), "package")
    read = read_package(package)
    assert read.pipeline.thresholds == {"all": 0.25}
    assert read.pipeline.validation == {}
    out = tmp_path / "results"
    options = ["--model", str(package), "--mask", str(scan.mask.path), "--out", str(out), "--device", "cpu"]
    done = CliRunner().invoke(app, ["predict", str(scan.image.path), *options], catch_exceptions=False)
    assert done.exit_code == 0
    result = json.loads((out / "patient" / "result.json").read_text())
    assert result["threshold"] == 0.25
    assert result["model"]["made_from"]["checkpoint"]


@pytest.mark.parametrize("threshold", ["-0.1", "nan", "inf"])
def test_a_threshold_that_is_none_is_refused(model_file: Path, config: Path, threshold: str) -> None:
    with pytest.raises(ConfigError, match=r"scoring\.threshold"):
        run(model_file, config, "--threshold", threshold)


def test_a_fault_leaves_nothing(model_file: Path, config: Path) -> None:
    with pytest.raises(ConfigError, match=r"model\.base_width: 64, but the tensors show 32"):
        run(model_file, config, "--set", "model.base_width=64")
    with pytest.raises(ArtifactError, match="begins with it"):
        run(model_file, config, "--ignore", "nothing.")
    assert not (config.parent / "out").exists()


@pytest.mark.slow
def test_a_fault_is_one_message_and_an_exit_code(tmp_path: Path, config: Path) -> None:
    (tmp_path / "x.ckpt").write_bytes(b"<!DOCTYPE html><html>")
    command = [sys.executable, "-m", "cddpm", "import", str(tmp_path / "x.ckpt"), "--config", str(config)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, "COLUMNS": "500"})
    assert done.returncode == 4
    assert "Traceback" not in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert "a web page: download the file itself" in done.stderr
