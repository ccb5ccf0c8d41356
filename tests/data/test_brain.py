"""The estimated mask, and the signs of a scan that is of another kind."""

import functools

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy import ndimage

from cddpm.data import brain
from cddpm.data.phantom.subject import Subject, draw
from cddpm.data.volume import Volume, VolumeFileError


@pytest.fixture(scope="module", params=["t1", "t2"])
def phantom(request: pytest.FixtureRequest) -> tuple[Volume, Volume, str]:
    subject = Subject(1, "IXI", 0, 2.0)
    drawing = draw(subject, (request.param,))
    return _volume(drawing.scans[request.param], subject.affine), _volume(drawing.mask, subject.affine), request.param


def _volume(data: np.ndarray, affine: np.ndarray, tmp: str = "scan.nii") -> Volume:
    from pathlib import Path

    return Volume(data.astype(np.float32), affine, Path(tmp))


def ball(shape: tuple[int, int, int] = (40, 42, 38), radius: float = 0.7) -> np.ndarray:
    axes = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij")
    return sum(a**2 for a in axes) < radius**2


@pytest.mark.slow
def test_a_stripped_scan_gives_its_own_mask(phantom) -> None:
    image, mask, _ = phantom
    estimated = brain.estimate_mask(image)
    np.testing.assert_array_equal(estimated.data, mask.data)
    assert estimated.data.dtype == np.uint8
    assert "all voxels that are not 0" in estimated.notes[0]


def test_holes_are_filled_and_specks_dropped() -> None:
    data = ball().astype(np.float32)
    data[18:22, 20:23, 17:20] = 0
    data[1, 1, 1] = 9
    estimated = brain.estimate_mask(_volume(data, np.eye(4)))
    np.testing.assert_array_equal(estimated.data, ball())


def test_any_constant_background_counts() -> None:
    data = np.where(ball(), 300.0, -1024.0)
    np.testing.assert_array_equal(brain.estimate_mask(_volume(data, np.eye(4))).data, ball())


def test_a_noisy_background_falls_back_to_otsu_and_says_so() -> None:
    noise = np.random.default_rng(0).normal(10, 3, ball().shape)
    estimated = brain.estimate_mask(_volume(np.where(ball(), 200.0, 0.0) + noise, np.eye(4)))
    np.testing.assert_array_equal(estimated.data, ball())
    assert "not skull-stripped" in estimated.notes[0]


def test_nothing_but_background_is_refused() -> None:
    with pytest.raises(VolumeFileError, match="no brain can be told"):
        brain.estimate_mask(_volume(np.zeros((5, 5, 5)), np.eye(4)))


def test_volumes_in_ml() -> None:
    mask = _volume(ball(), np.diag([-2.0, 2.0, 3.0, 1.0]))
    assert brain.voxel_ml(mask) == pytest.approx(0.012)
    assert brain.brain_ml(mask) == pytest.approx(ball().sum() * 0.012)


@pytest.mark.slow
def test_a_usual_scan_has_no_oddities_but_the_other_contrast_has(phantom) -> None:
    image, mask, contrast = phantom
    other = {"t1": "t2", "t2": "t1"}[contrast]
    assert brain.oddities(image, mask, contrast) == []
    assert len(brain.oddities(image, mask, other)) == 1
    assert brain.oddities(image, mask, "flair") == []


@pytest.mark.slow
def test_wrong_voxel_sizes_and_parts_of_brains_are_told(phantom) -> None:
    image, mask, _ = phantom
    for factor in (0.5, 2.0):
        scale = np.diag([factor, factor, factor, 1.0])
        odd = brain.oddities(
            _volume(image.data, scale @ image.affine), _volume(mask.data, scale @ mask.affine), "other"
        )
        assert len(odd) == 1
        assert "ml; a whole brain has" in odd[0]


def test_a_skull_is_told(phantom) -> None:
    image, mask, contrast = phantom
    inside = mask.data > 0
    shell = ndimage.binary_dilation(inside, iterations=3) & ~inside
    with_skull = _volume(np.where(shell, image.data.max(), image.data), image.affine)
    assert any("outside of the mask" in sign for sign in brain.oddities(with_skull, mask, contrast))


@functools.cache
def _distance(mask: bytes, shape: tuple[int, ...]) -> np.ndarray:
    """Of voxels outside of a mask, in voxels."""
    return ndimage.distance_transform_edt(np.frombuffer(mask, np.float32).reshape(shape) == 0)


@pytest.mark.slow
@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    height=st.floats(0.005, 0.08),
    reach=st.integers(1, 6),
    kind=st.sampled_from(["flat", "noise", "fading"]),
    whole=st.booleans(),
    scale=st.floats(0.1, 50),
    offset=st.sampled_from([0.0, -1024.0]),
)
def test_a_halo_changes_the_estimated_mask_by_less_than_2_percent(
    phantom, height: float, reach: int, kind: str, whole: bool, scale: float, offset: float
) -> None:
    image, mask, _ = phantom
    distance = _distance(mask.data.tobytes(), mask.data.shape)
    level = scale * height * np.median(image.data[mask.data > 0])
    noise = np.random.default_rng(reach).uniform(-level, level, image.data.shape)
    halo = {"flat": level, "noise": noise, "fading": level * np.exp(-distance / 2)}[kind]
    data = np.where((distance > 0) & (distance <= reach), halo, scale * image.data)
    estimated = brain.estimate_mask(_volume(offset + (np.rint(data) if whole else data), image.affine))
    assert np.count_nonzero(estimated.data != mask.data) < 0.02 * np.count_nonzero(mask.data)


@pytest.mark.slow
@pytest.mark.parametrize("degrees", [4, 11])
@pytest.mark.parametrize("stored", ["float32", "int16"])
def test_a_resampled_scan_gives_its_own_mask_and_a_wider_one_is_doubted(phantom, degrees: int, stored: str) -> None:
    image, mask, _ = phantom
    turned, inside = (
        ndimage.rotate(volume.data.astype(np.float32), degrees, reshape=False, order=order)
        for volume, order in ((image, 3), (mask, 1))
    )
    scan, true = _volume(np.rint(turned) if stored == "int16" else turned, image.affine), inside > 0.5
    estimated = brain.estimate_mask(scan)
    assert np.count_nonzero(estimated.data) == pytest.approx(np.count_nonzero(true), rel=0.02)
    assert "a halo surrounds them" in estimated.notes[0]
    assert "suspect it first" in estimated.notes[0]
    assert brain.mask_doubts(scan, estimated) == []
    assert brain.mask_doubts(scan, _volume(true, image.affine)) == []
    (doubt,) = brain.mask_doubts(scan, _volume(ndimage.binary_dilation(true, iterations=3), image.affine))
    assert "reaches beyond the brain" in doubt
