"""A model with a guide: registered with both networks, it predicts what its sweep evaluated, bit for bit."""

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_package import EXPERIMENT, SCORING, THRESHOLDS, Scan

from cddpm import artifact
from cddpm.config import ExperimentConfig, to_dict, with_values
from cddpm.data.layout import ScanRow
from cddpm.data.store import SliceStore, build_store
from cddpm.errors import ArtifactError
from cddpm.models.cddpm import ConditionedDiffusion
from cddpm.predict.predictor import Predictor
from cddpm.reconstruct.reconstruction import Reconstruction
from cddpm.scoring.score import Scorer
from cddpm.search.champion import weights_of
from cddpm.search.point import Point
from cddpm.search.trial import TrialResult
from cddpm.tracking.package import Package, Pipeline, read_package, write_package
from cddpm.training import checkpoint, prediction, stages
from cddpm.training.loop import Hooks
from cddpm.training.ranks import Ranks
from cddpm.training.stages import guide_config

pytestmark = pytest.mark.slow

KEY = "Brats21/patient"
CONFIG = with_values(
    EXPERIMENT,
    {
        "diffusion.condition_dropout": 0.0,
        "diffusion.noise.shared": True,
        "diffusion.patch.enabled": True,
        "diffusion.patch.size": 20,
        "reconstruction.guide": "ddpm",
        "reconstruction.embedding_scale": 1.5,
        "reconstruction.precision": "float32",
        "reconstruction.noise_levels": [200],
        "reconstruction.noise_seeds": [0],
    },
)
GUIDE = guide_config(CONFIG)


@pytest.fixture(scope="module")
def place(scan: Scan, tmp_path_factory: pytest.TempPathFactory) -> stages.Place:
    folder = tmp_path_factory.mktemp("sweep")
    row = ScanRow(
        "Brats21", "patient", "val", None, 1, None, scan.image.path, scan.mask.path, scan.segmentation, "here:1"
    )
    return stages.Place(folder, build_store(CONFIG.data, scan.image.path.parent, [row], folder, map))


def trained(config: ExperimentConfig, place: stages.Place, seed: int) -> Path:
    """A checkpoint with random weights where the stages would have put it."""
    torch.manual_seed(seed)
    model = ConditionedDiffusion(config.model, config.encoder, config.diffusion)
    for parameter in model.parameters():  # layers that start at zero would hide condition and guidance
        parameter.data += 0.02 * torch.randn_like(parameter)
    name, made_from = stages.checkpoint_identity(config, SliceStore.open(place.store).fingerprint)

    def fill(folder: Path) -> None:
        checkpoint.save_weights(folder / checkpoint.WEIGHTS, model.state_dict())
        artifact.write_json(folder / checkpoint.CONFIG, to_dict(config))

    return artifact.create(place.artifacts / stages.CHECKPOINT / name, stages.CHECKPOINT, name, made_from, fill)


@pytest.fixture(scope="module")
def scorer(place: stages.Place) -> Scorer:
    """The scan's way through a sweep: checkpoints, reconstruction cache, scorer."""
    assert GUIDE is not None
    model, _ = trained(CONFIG, place, 0), trained(GUIDE, place, 1)
    path = prediction.reconstruct(CONFIG, place, model, [0], Ranks(), Hooks())
    return Scorer(SliceStore.open(place.store), Reconstruction.open(path), {"Brats21": [0]})


@pytest.fixture(scope="module")
def guided(place: stages.Place, scorer: Scorer, tmp_path_factory: pytest.TempPathFactory) -> Package:
    """The package of the trial; the sweep's folders are gone when it is read."""
    assert GUIDE is not None
    store = SliceStore.open(place.store).fingerprint
    names = [stages.checkpoint_identity(config, store)[0] for config in (CONFIG, GUIDE)]
    point = Point(0, {}, 0.0, THRESHOLDS, {}, 0.0)
    result = TrialResult(0, {}, point, point, names[0], None, "r", (), 1.0, names[1])
    folder = tmp_path_factory.mktemp("registry") / "package"
    write_package(folder, weights_of(place, result), CONFIG, Pipeline(scoring=SCORING, thresholds=THRESHOLDS))
    shutil.rmtree(place.artifacts / stages.CHECKPOINT)
    return read_package(folder)


def test_a_guided_patched_model_predicts_what_was_evaluated(scorer: Scorer, guided: Package, scan: Scan) -> None:
    working = Predictor(guided, window="package").predict_scan(scan.image, scan.mask, KEY).working
    assert working.anomaly_map.any()
    np.testing.assert_array_equal(working.reconstruction, scorer.reconstruction(0, SCORING))
    np.testing.assert_array_equal(working.anomaly_map, scorer.anomaly_map(0, SCORING))
    np.testing.assert_array_equal(working.segmentation, scorer.segmentation(0, SCORING, THRESHOLDS["all"]))
    unguided = scorer.reconstruction(0, SCORING.model_copy(update={"guidance_scale": 1.0}))
    assert (working.reconstruction != unguided).any()


def test_a_package_without_its_guide_is_refused(guided: Package) -> None:
    own = {name: tensor for name, tensor in guided.weights.items() if not name.startswith("guide.")}
    with pytest.raises(ArtifactError, match=r"model\.safetensors: weights of another architecture: missing"):
        Predictor(dataclasses.replace(guided, weights=own))


def test_a_guide_that_nobody_asked_for_is_refused(guided: Package) -> None:
    alone = with_values(CONFIG, {"reconstruction.guide": "none"})
    with pytest.raises(ArtifactError, match=r"another architecture: unknown guide\."):
        Predictor(dataclasses.replace(guided, config=alone))
