"""However a scan lies in its file, the results lie on the same voxels: all 48 orientations, any spacing, size and turn.

No network here (the law is that of the way there and back): what stands for one gives the scan back, darker in a ball.
"""

from dataclasses import replace
from itertools import permutations, product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_package import EXPERIMENT, turned, turned_array

from cddpm.config import ExperimentConfig, ScoringConfig, with_values
from cddpm.data.volume import Volume, axis_codes, read_image, read_mask, read_segmentation, write_volume
from cddpm.predict import result
from cddpm.predict.predictor import Prediction, Predictor
from cddpm.predict.scans import Job
from cddpm.tracking.package import Package, Pipeline

pytestmark = pytest.mark.slow

CONFIG: ExperimentConfig = with_values(
    EXPERIMENT, {"data.voxel_size_mm": 3.0, "data.volume_shape": [32, 32, 32], "data.rescale_factor": 2}
)
SCORING = ScoringConfig(noise_levels=(200,), median_kernel=1, erosion_divisor=None, minimum_component_voxels=0)
ORIENTATIONS = [
    (axes, tuple(axis for axis in range(3) if signs[axis]))
    for axes, signs in product(permutations(range(3)), product((False, True), repeat=3))
]
LESION_MM, LESION_RADIUS_MM, BRAIN_MM = np.array([8.0, -6.0, 7.0]), 9.0, (36.0, 40.0, 33.0)


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    """Of a package without weights."""
    made = object.__new__(Predictor)
    made.package = Package(Path("none"), "x", {}, CONFIG, Pipeline(scoring=SCORING, thresholds={"all": 0.2}))
    made.device, made.window = torch.device("cpu"), "package"
    made._model, made._guide = torch.nn.Identity(), None  # type: ignore[assignment]
    return made


@pytest.fixture(scope="module", autouse=True)
def darker_in_a_ball(predictor: Predictor) -> Any:
    """Reconstructions are the image, but 0.5 darker in the ball: there the residual is 0.5, elsewhere 0."""
    # the working grid is LPS with 6 mm voxels, 16 to an axis; the brain's centre lies at the grid's
    places = (np.indices((16, 16, 16)) - 7.5) * 6.0
    ball = sum((axis + sign * mm) ** 2 for axis, sign, mm in zip(places, (1, 1, -1), LESION_MM, strict=True))
    dark = np.where(ball < LESION_RADIUS_MM**2, np.float32(0.5), np.float32(0)).transpose(2, 0, 1)

    def predict(model: object, requests: Any, *_: object) -> Any:
        return ((r, {("c", *step): r.slices.astype(np.float32) - dark for step in r.wanted}) for r in requests)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("cddpm.reconstruct.predict.predict_volumes", predict)
        yield


def scan(spacing_mm: tuple[float, ...], turn_degrees: float = 0.0) -> tuple[Volume, Volume, np.ndarray]:
    """An ellipsoid with a smooth gradient around (0, 0, 0) in RAS, its mask, and each voxel's place (X, Y, Z, 3) in mm."""
    shape = [int(np.ceil(96 / size)) for size in spacing_mm]
    angle = np.radians(turn_degrees)
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3] = turn @ np.diag(spacing_mm)
    affine[:3, 3] = -affine[:3, :3] @ ((np.array(shape) - 1) / 2)
    index = np.moveaxis(np.indices(shape), 0, -1)
    unturned = (index - (np.array(shape) - 1) / 2) * spacing_mm
    brain = ((unturned / BRAIN_MM) ** 2).sum(-1) < 1
    data = np.where(brain, 300 + unturned @ (2.0, 1.0, 1.5), 0).astype(np.float32)
    paths = Path("scan.nii"), Path("mask.nii")
    return Volume(data, affine, paths[0]), Volume(brain.astype(np.uint8), affine, paths[1]), unturned


def found_mm(prediction: Prediction, places: np.ndarray) -> np.ndarray:
    """Centre of the segmentation."""
    centre: np.ndarray = places[prediction.segmentation > 0].mean(0)
    return centre


@settings(max_examples=12, deadline=None, derandomize=True)
@given(
    spacing_mm=st.tuples(*[st.floats(1.5, 5.0)] * 3),
    turn_degrees=st.floats(-20, 20),
    orientation=st.sampled_from(ORIENTATIONS),
)
def test_the_lesion_comes_back_where_it_is(
    predictor: Predictor, spacing_mm: tuple[float, ...], turn_degrees: float, orientation: Any
) -> None:
    image, mask, places = scan(spacing_mm, turn_degrees)
    axes, flips = orientation
    found = predictor.predict_scan(turned(image, axes, flips), turned(mask, axes, flips))
    for array in (found.anomaly_map, found.reconstruction, found.segmentation):
        assert array.shape == tuple(image.data.shape[axis] for axis in axes)
        assert not array[turned_array(mask.data, axes, flips) == 0].any()
    apart = found_mm(found, turned_places(places, axes, flips)) - LESION_MM
    assert np.abs(apart).max() < 6.0  # a voxel of the working grid
    assert found.segmentation.sum() * np.prod(spacing_mm) == pytest.approx(4 / 3 * np.pi * 9**3, rel=0.5)


def turned_places(places: np.ndarray, axes: tuple[int, int, int], flips: tuple[int, ...]) -> np.ndarray:
    return np.stack([turned_array(places[..., i], axes, flips) for i in range(3)], -1)


def test_all_48_orientations_give_the_same_voxels(predictor: Predictor) -> None:
    image, mask, _ = scan((3.0, 3.0, 3.0))
    straight = predictor.predict_scan(image, mask)
    assert straight.segmentation.any()
    codes = set()
    for axes, flips in ORIENTATIONS:
        other = turned(image, axes, flips)
        codes.add(axis_codes(other.affine))
        found = predictor.predict_scan(other, turned(mask, axes, flips))
        for name in ("anomaly_map", "reconstruction", "segmentation"):
            np.testing.assert_array_equal(getattr(found, name), turned_array(getattr(straight, name), axes, flips))
    assert len(codes) == 48


@pytest.mark.parametrize(("axes", "flips"), [((0, 1, 2), (0, 1)), ((1, 2, 0), (1, 2))], ids=["LPS", "AIL"])
def test_through_files_too(predictor: Predictor, tmp_path: Path, axes: Any, flips: Any, request: Any) -> None:
    image, mask, _ = scan((2.0, 3.0, 4.0))
    for name, volume in (("scan.nii.gz", image), ("mask.nii.gz", mask)):
        lying = turned(volume, axes, flips)
        write_volume(tmp_path / name, lying.data, lying.affine)
    job = Job(tmp_path / "scan.nii.gz", tmp_path / "out", tmp_path / "mask.nii.gz")
    lying, lying_mask = read_image(job.scan), read_mask(tmp_path / "mask.nii.gz")
    assert axis_codes(lying.affine) == request.node.callspec.id
    prediction = predictor.predict_scan(lying, lying_mask)
    result.write(job.folder, lying, prediction, result.Identity.of("m", job), {})
    for name, read in (
        (result.ANOMALY_MAP, read_image),
        (result.RECONSTRUCTION, read_image),
        (result.SEGMENTATION, read_segmentation),
    ):
        written = read(job.folder / name)
        np.testing.assert_array_equal(written.affine, lying.affine)
        np.testing.assert_array_equal(written.data, getattr(prediction, name.split(".")[0]))


@pytest.mark.parametrize("grid", ["centred", "published"])
def test_sizes_that_do_not_divide_come_back_to_their_voxels(predictor: Predictor, grid: str) -> None:
    """16 samples over 31 voxels (published), or over 33 (centred): a reconstruction that is the scan lies on the scan."""
    size = {"centred": 33, "published": 31}[grid]
    uneven = {"data.volume_shape": [size] * 3, "data.rescale_grid": grid, "data.smoothing_iterations": 0}
    other = object.__new__(Predictor)
    other.package = replace(predictor.package, config=with_values(CONFIG, uneven))
    other.device, other.window = predictor.device, predictor.window
    other._model, other._guide = predictor._model, predictor._guide
    image, mask, places = scan((3.0, 3.0, 3.0))
    found = other.predict_scan(image, mask)
    inner = (((places / BRAIN_MM) ** 2).sum(-1) < 0.4) & (found.reconstruction > 0)
    inner &= (np.abs(places - LESION_MM) > 2 * LESION_RADIUS_MM).any(-1)
    assert inner.sum() > 500
    error = found.reconstruction[inner] - image.data[inner]
    assert np.abs(error).max() < 1.0  # with the other way back it is 2.25
