"""A model is found as a package, as a checkpoint, or not at all; the registry's way is with the command's tests."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from tiny_package import EXPERIMENT, SCORING, Scan

from cddpm import artifact
from cddpm.config import ExperimentConfig, to_dict, with_values
from cddpm.errors import ArtifactError, ConfigError
from cddpm.predict.predictor import Prediction, Predictor
from cddpm.predict.source import CHECKPOINT, find, of_checkpoint
from cddpm.tracking.package import Package
from cddpm.training import checkpoint, stages


def keep(folder: Path, package: Package, config: ExperimentConfig) -> Path:
    """The package's weights as a training leaves them."""

    def fill(place: Path) -> None:
        checkpoint.save_weights(place / checkpoint.WEIGHTS, package.weights)
        artifact.write_json(place / checkpoint.CONFIG, to_dict(config))

    return artifact.create(folder, stages.CHECKPOINT, "c1", {}, fill)


@pytest.fixture(scope="module")
def trained(package: Package, tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = EXPERIMENT.model_copy(update={"scoring": SCORING})
    return keep(tmp_path_factory.mktemp("artifacts") / "c1", package, config)


@pytest.mark.slow
def test_a_checkpoint_predicts_with_the_threshold_given(trained: Path, scan: Scan, prediction: Prediction) -> None:
    found = find(str(trained), threshold=0.33)
    assert CHECKPOINT == stages.CHECKPOINT
    assert found.found == {"package": str(trained)}
    made = Predictor(found.package, window="package").predict_scan(scan.image, scan.mask, "Brats21/patient")
    np.testing.assert_array_equal(made.anomaly_map, prediction.anomaly_map)
    np.testing.assert_array_equal(made.segmentation, prediction.segmentation)
    assert found.package.pipeline.fingerprints == {"checkpoint": "c1"}
    assert find(str(trained), threshold=0.4).package.fingerprint != found.package.fingerprint


def test_a_threshold_is_needed_by_a_checkpoint_and_by_nothing_else(trained: Path, package: Package) -> None:
    with pytest.raises(ConfigError, match="a checkpoint has no threshold; give one"):
        find(str(trained))
    for other in (str(package.directory), "champion"):
        with pytest.raises(ConfigError, match="--threshold: goes with the folder of a checkpoint"):
            find(other, threshold=0.3)
    assert find(str(package.directory)).package.fingerprint == package.fingerprint


@pytest.mark.parametrize(
    "needed", [{"scoring.normalise": "healthy-z"}, {"reconstruction.guide": "ddpm", "diffusion.condition_dropout": 0.0}]
)
def test_what_a_checkpoint_cannot_know_is_told(package: Package, tmp_path: Path, needed: dict[str, object]) -> None:
    folder = keep(tmp_path / "c", package, with_values(EXPERIMENT, needed))
    with pytest.raises(ConfigError, match="need a guide or statistics of healthy scans"):
        of_checkpoint(folder, 0.3)


@pytest.mark.parametrize(
    "text", ["{", "!!python/object/apply:os.system ['true']", json.dumps({"name": "x", "colour": 1})]
)
def test_other_settings_of_a_checkpoint_are_refused(trained: Path, tmp_path: Path, text: str) -> None:
    shutil.copytree(trained, tmp_path / "c")
    (tmp_path / "c" / checkpoint.CONFIG).write_text(text)
    (tmp_path / "c" / artifact.MANIFEST).unlink()
    artifact.seal(tmp_path / "c", stages.CHECKPOINT, "c1", {})
    with pytest.raises(ArtifactError, match=r"config\.json: not the settings of a checkpoint"):
        of_checkpoint(tmp_path / "c", 0.3)


def test_an_altered_checkpoint_or_another_folder_is_refused(trained: Path, tmp_path: Path) -> None:
    shutil.copytree(trained, tmp_path / "c")
    (tmp_path / "c" / checkpoint.WEIGHTS).write_bytes(b"x")
    with pytest.raises(ArtifactError, match=r"model\.safetensors: altered or damaged"):
        of_checkpoint(tmp_path / "c", 0.3)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ArtifactError, match="this model is unfinished"):
        find(str(tmp_path / "empty"))
    with pytest.raises(ArtifactError, match="no folder with a model package"):
        find("./nowhere")
