"""The head around a phantom: its brain is as it was, and around it lie fluid, bone and scalp in their distances."""

import numpy as np
import pytest
from scipy import ndimage

from cddpm.data.phantom.skull import room, with_skull
from cddpm.data.phantom.subject import Subject, draw

VOXEL_MM = 4.0


@pytest.mark.parametrize("contrast", ["t1", "t2"])
def test_the_brain_is_as_it_was_and_bone_is_dark(contrast: str) -> None:
    drawing = draw(Subject(3, "MSLUB", 0, VOXEL_MM), (contrast,))
    scan, brain = drawing.scans[contrast], room(drawing.mask, VOXEL_MM) > 0
    head = with_skull(scan, drawing.mask, contrast, VOXEL_MM, 0)
    np.testing.assert_array_equal(head[brain], scan[drawing.mask > 0])
    assert head.shape == tuple(n + 12 for n in scan.shape)
    away = ndimage.distance_transform_edt(~brain, sampling=VOXEL_MM)
    median = np.median(head[brain])
    bone, scalp, air = (np.median(head[(away > a) & (away <= b)]) / median for a, b in ((4, 8), (9, 14), (18, 99)))
    assert bone < 0.5 < scalp
    assert air < 0.1
    again, other = (with_skull(scan, drawing.mask, contrast, VOXEL_MM, seed) for seed in (0, 1))
    np.testing.assert_array_equal(again, head)
    assert not np.array_equal(other, head)
