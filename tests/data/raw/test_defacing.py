"""Whether a face was taken away is recorded as far as simple signs tell, whatever way round the scan is stored."""

import itertools

import numpy as np
import pytest
from raw_trees import AFFINE, SHAPE, brain, head

from cddpm.data.raw.head import Grid, Head
from cddpm.data.raw.reading import defaced


def noisy(erased: bool) -> np.ndarray:
    image = head(0, "t1") + np.abs(np.random.default_rng(1).normal(0, 4, SHAPE)).astype(np.float32) + 0.01
    if erased:
        image[:, 2 * SHAPE[1] // 3 :, : SHAPE[2] // 2] = 0  # the second axis points forwards, the third up
    return image


@pytest.mark.parametrize("flips", list(itertools.product((1, -1), repeat=3)))
@pytest.mark.parametrize("erased", [True, False])
def test_an_erased_block_before_the_face_is_seen(flips: tuple[int, int, int], erased: bool) -> None:
    back = np.diag([*flips, 1.0])
    back[:3, 3] = [n - 1 if flip < 0 else 0 for n, flip in zip(SHAPE, flips, strict=True)]
    data = np.ascontiguousarray(noisy(erased)[tuple(slice(None, None, flip) for flip in flips)])
    assert defaced(Head({"t1": Grid(data, AFFINE @ back)})) == ("yes" if erased else "unknown")


def test_a_stripped_scan_is_a_brain_only_and_zeros_all_around_tell_nothing() -> None:
    assert defaced(Head({"t1": Grid(head(0, "t1"), AFFINE)}, Grid(brain(), AFFINE))) == "brain only"
    assert defaced(Head({"t1": Grid(head(0, "t1"), AFFINE)})) == "unknown"
