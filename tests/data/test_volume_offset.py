"""Where voxels begin in a file, whatever its header says of it."""

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from cddpm.data.volume import VolumeFileError, read_image

AFFINE = np.diag([-1.0, -1.0, 1.0, 1.0])
VALUES = np.arange(210, dtype=np.float32).reshape(6, 7, 5)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
@pytest.mark.parametrize("order", ["<", ">"])
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    offset=st.integers(-16, 1400), behind=st.sampled_from([0, 0, 1, 16, 840]), extension=st.sampled_from([0, 16, 160])
)
@example(offset=0, behind=0, extension=0)
@example(offset=352, behind=0, extension=16)
@example(offset=544, behind=0, extension=16)
def test_voxels_are_read_from_where_they_are_or_not_at_all(
    tmp_path: Path, kind: Any, order: str, offset: int, behind: int, extension: int
) -> None:
    """Whatever ``vox_offset`` says, with extensions and bytes behind the last voxel or without."""
    image = kind(VALUES, AFFINE, kind.header_class(endianness=order))
    if extension:
        image.header.extensions.append(nib.nifti1.Nifti1Extension(6, b"x" * (extension - 8)))
    raw = bytearray(image.to_bytes())
    size = kind.header_class.sizeof_hdr
    header = kind.header_class(bytes(raw[:size]), check=False)
    right = int(header["vox_offset"])
    header["vox_offset"] = offset
    path = tmp_path / "scan.nii"
    path.write_bytes(header.binaryblock + bytes(raw[size:]) + b"z" * behind)
    try:
        found = read_image(path)
    except VolumeFileError:
        assert offset != right
    else:
        assert np.array_equal(found.data, VALUES) == (offset == right)
        assert any("follow the last voxel" in note for note in found.notes) == (
            offset + VALUES.nbytes != path.stat().st_size
        )
        assert offset == right or found.notes
