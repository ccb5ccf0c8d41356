"""A tiny package with random weights, phantom subjects as files, and the same scan lying otherwise; as fixtures too."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from cddpm.config import ExperimentConfig, ScoringConfig, parse, with_values
from cddpm.data.phantom.subject import Subject, draw
from cddpm.data.volume import Volume, read_image, read_mask, write_volume
from cddpm.models.cddpm import ConditionedDiffusion
from cddpm.models.precision import settled_for
from cddpm.predict.predictor import Prediction, Predictor
from cddpm.tracking.package import Package, Pipeline, read_package, write_package

SCORING = ScoringConfig(noise_levels=(200,), guidance_scale=1.5, median_kernel=3, minimum_component_voxels=2)
THRESHOLDS = {"all": 0.33, "Brats21": 0.36}
EXPERIMENT: ExperimentConfig = parse(
    {
        "name": "tiny",
        "seed": 3,
        "data": {"voxel_size_mm": 2.0, "volume_shape": [96, 96, 42], "rescale_factor": 3, "unhealthy": ["Brats21"]},
        "encoder": {"architecture": "resnet18", "width": 8, "max_pool": False},
        "pretraining": {"enabled": False},
        "model": {"base_width": 8, "width_multipliers": [1], "residual_blocks": 1, "attention_head_width": 8},
        "diffusion": {"condition_dropout": 0.1},
        "reconstruction": {
            "noise_levels": [500, 200],
            "noise_seeds": [4, 0],
            "batch_size": 16,
        },
    },
    "tiny",
)
EXPERIMENT = settled_for(EXPERIMENT, "cpu")
QUICK = with_values(EXPERIMENT, {"reconstruction.precision": "float32"})


@dataclass(frozen=True)
class Scan:
    """One subject's files, read."""

    image: Volume
    mask: Volume
    segmentation: Path


def make_package(directory: Path, config: ExperimentConfig = EXPERIMENT) -> Package:
    """A package with random weights."""
    torch.manual_seed(0)
    model = ConditionedDiffusion(config.model, config.encoder, config.diffusion)
    with torch.no_grad():
        for parameter in model.parameters():  # layers that start at zero would hide condition and guidance
            parameter += 0.02 * torch.randn_like(parameter)
    pipeline = Pipeline(scoring=SCORING, thresholds=THRESHOLDS, sweep="tiny-sweep", trial=7)
    write_package(directory, model.state_dict(), config, pipeline)
    return read_package(directory)


def make_scan(folder: Path, contrast: str = "t2") -> Scan:
    """A subject of the small phantom with a tumour."""
    subject = Subject(0, "Brats21", 0, 2.0)
    drawing = draw(subject, (contrast,))
    files = {name: folder / f"{name}.nii.gz" for name in ("patient", "mask", "seg")}
    assert drawing.segmentation is not None
    arrays = (drawing.scans[contrast], drawing.mask, drawing.segmentation)
    for path, array in zip(files.values(), arrays, strict=True):
        write_volume(path, array, subject.affine)
    return Scan(read_image(files["patient"]), read_mask(files["mask"]), files["seg"])


def make_healthy(folder: Path, count: int = 3, contrast: str = "t2") -> list[Scan]:
    """Healthy subjects of the small phantom, ``IXI.../scan.nii.gz`` beside ``mask.nii.gz``."""
    found = []
    for index in range(count):
        subject = Subject(0, "IXI", index, 2.0)
        drawing, home = draw(subject, (contrast,)), folder / subject.name
        write_volume(home / f"{subject.name}.nii.gz", drawing.scans[contrast], subject.affine)
        write_volume(home / "mask.nii.gz", drawing.mask, subject.affine)
        image, mask = read_image(home / f"{subject.name}.nii.gz"), read_mask(home / "mask.nii.gz")
        found.append(Scan(image, mask, Path()))
    return found


def turned(volume: Volume, axes: tuple[int, int, int], flips: tuple[int, ...]) -> Volume:
    """The same anatomy with array axes swapped, then reversed; the affine follows."""
    matrix = np.zeros((4, 4))
    matrix[3, 3] = 1
    for new, old in enumerate(axes):
        matrix[old, new], matrix[old, 3] = (-1, volume.data.shape[old] - 1) if new in flips else (1, 0)
    return Volume(turned_array(volume.data, axes, flips), volume.affine @ matrix, volume.path)


def turned_array(array: np.ndarray, axes: tuple[int, int, int], flips: tuple[int, ...]) -> np.ndarray:
    return np.ascontiguousarray(np.flip(array.transpose(axes), flips))


@pytest.fixture(scope="session")
def package(tmp_path_factory: pytest.TempPathFactory) -> Package:
    return make_package(tmp_path_factory.mktemp("model") / "package")


@pytest.fixture(scope="session")
def scan(tmp_path_factory: pytest.TempPathFactory) -> Scan:
    return make_scan(tmp_path_factory.mktemp("scan"))


@pytest.fixture(scope="session")
def quick_package(tmp_path_factory: pytest.TempPathFactory) -> Package:
    """The same in float32, which every CPU computes as fast as it can."""
    return make_package(tmp_path_factory.mktemp("quick") / "package", QUICK)


@pytest.fixture(scope="session")
def healthy(tmp_path_factory: pytest.TempPathFactory) -> list[Scan]:
    return make_healthy(tmp_path_factory.mktemp("healthy"))


@pytest.fixture(scope="session")
def predictor(package: Package) -> Predictor:
    """With the window of a sweep's scorer, to which it is compared."""
    return Predictor(package, window="package")


@pytest.fixture(scope="session")
def prediction(predictor: Predictor, scan: Scan) -> Prediction:
    return predictor.predict_scan(scan.image, scan.mask, "Brats21/patient")
