"""Lengths of a header: their unit is honoured, and a grid that they make beyond all reason is refused before any work."""

import math
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cddpm.config import DataConfig
from cddpm.data.geometry import plan
from cddpm.data.volume import (
    MOST_VOXELS,
    Volume,
    VolumeFileError,
    describe,
    read_image,
    require_same_grid,
    write_volume,
)

VALUES = np.arange(210, dtype=np.float32).reshape(6, 7, 5)
CODES = {0: 1.0, 1: 1e3, 2: 1.0, 3: 1e-3, 4: 1.0, 7: 1.0}
"""Millimetres in the unit of each code."""
IN_ANY_FOLDER = [HealthCheck.function_scoped_fixture]


def written(path: Path, affine: np.ndarray, code: int, time: int = 0, kind: Any = nib.Nifti1Image) -> Path:
    """A file whose header says ``affine`` (mm) in the unit of ``code``."""
    own = affine.copy()
    own[:3] /= CODES[code]
    image = kind(VALUES, own)
    image.header["xyzt_units"] = code | time
    image.set_sform(own, 1)
    image.set_qform(own, 1)
    path.write_bytes(image.to_bytes())
    return path


@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
@settings(max_examples=12, deadline=None, suppress_health_check=IN_ANY_FOLDER)
@given(
    code=st.sampled_from(sorted(CODES)),
    time=st.sampled_from([0, 8, 16, 24]),
    sizes=st.tuples(*[st.floats(0.2, 9)] * 3),
    origin=st.tuples(*[st.floats(-200, 200)] * 3),
)
def test_one_scan_in_any_unit_is_one_scan(
    tmp_path: Path, kind: Any, code: int, time: int, sizes: tuple[float, ...], origin: tuple[float, ...]
) -> None:
    affine = np.diag([-sizes[0], sizes[1], sizes[2], 1.0])
    affine[:3, 3] = origin
    scan, plain = (read_image(written(tmp_path / "scan.nii", affine, c, time, kind)) for c in (code, 2))
    np.testing.assert_allclose(scan.affine, plain.affine, rtol=1e-5, atol=1e-4)
    require_same_grid(plain, scan)
    assert not plain.notes
    assert bool(scan.notes) == (code not in (0, 2))
    assert describe(written(tmp_path / "scan.nii", affine, code, time, kind)).voxel_size_mm == pytest.approx(
        sizes, rel=1e-4
    )
    write_volume(tmp_path / "result.nii.gz", scan.data, scan.affine, header=scan.header)
    result = read_image(tmp_path / "result.nii.gz")
    np.testing.assert_allclose(result.affine, scan.affine, rtol=1e-5, atol=1e-4)
    np.testing.assert_array_equal(result.data, VALUES)
    assert int(result.header["xyzt_units"]) == code | time
    assert (int(result.header["sform_code"]), int(result.header["qform_code"])) == (1, 1)


@pytest.mark.slow
@settings(max_examples=100, deadline=None)
@given(
    sizes=st.tuples(*[st.floats(-5, 5).map(lambda power: 10**power)] * 3),
    shape=st.tuples(*[st.integers(2, 600)] * 3),
    wanted=st.sampled_from([None, 1.0, 2.0]),
)
def test_a_grid_beyond_reason_is_refused_with_the_numbers(
    sizes: tuple[float, ...], shape: tuple[int, int, int], wanted: float | None
) -> None:
    data = np.broadcast_to(np.float32(1), shape)  # takes no memory
    scan = Volume(data, np.diag([*sizes, 1.0]), Path("scan.nii"))
    config = DataConfig(voxel_size_mm=wanted)
    steps = [1.0 if wanted is None or abs(size / wanted - 1) <= 0.01 else size / wanted for size in sizes]
    grid = [n * step for n, step in zip(shape, steps, strict=True)]
    if min(grid) >= 0.5 and math.prod(grid) <= MOST_VOXELS:
        assert math.prod(plan(scan, config).resampled_shape) <= MOST_VOXELS
        return
    with pytest.raises(VolumeFileError, match=r"its header makes a field of .*pixdim") as caught:
        plan(scan, config)
    assert " x ".join(str(n) for n in shape) in str(caught.value)
    assert "e+" not in str(caught.value)


@pytest.mark.parametrize(
    ("code", "unit"), [(1, "metres"), (2, "millimetres"), (3, "micrometres"), (0, "an unknown unit")]
)
def test_the_unit_of_the_header_is_told(tmp_path: Path, code: int, unit: str) -> None:
    scan = read_image(written(tmp_path / "scan.nii", np.diag([3000.0, 3000.0, 3000.0, 1.0]), code))
    with pytest.raises(
        VolumeFileError, match=rf"\(6 x 7 x 5 voxels of 3000 x 3000 x 3000 mm, in {unit}\); .*; correct"
    ):
        plan(scan, DataConfig(voxel_size_mm=1.0))
