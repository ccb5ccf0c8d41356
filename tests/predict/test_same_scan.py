"""One brain, one result: whatever numbers its background has, and however much of that background the file holds."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from tiny_package import QUICK, Scan

from cddpm.config import ExperimentConfig, with_values
from cddpm.data.prepare import Prepared, prepare
from cddpm.data.volume import Volume
from cddpm.predict.predictor import Prediction, Predictor
from cddpm.tracking.package import Package

pytestmark = pytest.mark.slow

KEY = "patient"
MARGINS = st.tuples(*[st.integers(-30, 60)] * 6)
"""Voxels between the brain's box and each face of a field of view; what is less than 0 is 0."""


def in_field(volume: Volume, box: tuple[slice, ...], margins: tuple[int, ...]) -> Volume:
    """``volume`` cropped, or padded with its background, to ``box`` and ``margins`` around it."""
    ends = [
        (s.start - max(0, low), s.stop + max(0, high))
        for s, low, high in zip(box, margins[:3], margins[3:], strict=True)
    ]
    padded = np.pad(volume.data, 60, constant_values=volume.data.flat[0])
    moved = np.eye(4)
    moved[:3, 3] = [low for low, _ in ends]
    data = padded[tuple(slice(low + 60, high + 60) for low, high in ends)]
    return replace(volume, data=np.ascontiguousarray(data), affine=volume.affine @ moved)


def brain_box(mask: Volume) -> tuple[slice, ...]:
    places = np.argwhere(mask.data > 0)
    return tuple(slice(int(low), int(high) + 1) for low, high in zip(places.min(0), places.max(0), strict=True))


def changed(image: Volume, scale: float, offset: float) -> Volume:
    return replace(image, data=(scale * image.data.astype(np.float64) + offset).astype(np.float32))


@pytest.fixture(scope="module")
def quick(quick_package: Package) -> Predictor:
    return Predictor(quick_package)


@pytest.fixture(scope="module")
def plain(quick: Predictor, scan: Scan) -> Prediction:
    return quick.predict_scan(scan.image, scan.mask, KEY)


@settings(max_examples=4, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    margins=MARGINS,
    scale=st.floats(-20, 20).map(lambda power: 2.0**power),
    offset=st.floats(-2000, 2000),
    masked=st.booleans(),
)
@example((0,) * 6, 1.0, 0.0, True)  # cropped to the brain, as by crop-to-nonzero
@example((0,) * 6, 1.0, -1024.0, False)
@example((60, 0, 0, 0, 0, 60), 1e-6, 0.0, True)
def test_field_of_view_and_units_change_no_result(
    quick: Predictor, scan: Scan, plain: Prediction, margins: tuple[int, ...], scale: float, offset: float, masked: bool
) -> None:
    offset *= scale  # beside what is much larger, float32 has no room for the scan
    box = brain_box(scan.mask)
    image, mask = (in_field(volume, box, margins) for volume in (scan.image, scan.mask))
    found = quick.predict_scan(changed(image, scale, offset), mask if masked else None, KEY)
    for name, tolerance in (("anomaly_map", 1e-3), ("segmentation", 0)):
        wanted = in_field(replace(scan.image, data=getattr(plain, name)), box, margins).data
        np.testing.assert_allclose(getattr(found, name), wanted, atol=tolerance)
    assert found.scores == pytest.approx(plain.scores, rel=1e-3)
    assert found.intensities == pytest.approx([scale * one + offset for one in plain.intensities], rel=1e-3)
    assert found.warnings[-1] == plain.warnings[-1]


@pytest.mark.parametrize("voxel_size_mm", [None, 1.7])
@settings(max_examples=3, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(margins=MARGINS)
def test_any_field_of_view_is_prepared_bit_by_bit_alike(
    scan: Scan, voxel_size_mm: float | None, margins: tuple[int, ...]
) -> None:
    config: ExperimentConfig = with_values(QUICK, {"data.voxel_size_mm": voxel_size_mm})
    box = brain_box(scan.mask)

    def prepared(image: Volume, mask: Volume) -> Prepared:
        return prepare(image, mask, None, config.data)

    found = prepared(in_field(scan.image, box, margins), in_field(scan.mask, box, margins))
    wanted = prepared(scan.image, scan.mask)
    np.testing.assert_array_equal(found.image, wanted.image)
    np.testing.assert_array_equal(found.mask, wanted.mask)
    assert found.intensities == wanted.intensities
