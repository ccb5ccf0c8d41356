"""The classical brain mask: real and drawn heads, T1 and T2, with and without a template, and what it refuses."""

import numpy as np
import pytest
from heads import Whole, dice, field_of, mni152, phantom, real

from cddpm.data.phantom.subject import Dataset
from cddpm.data.raw.extraction import classical
from cddpm.data.raw.head import Grid
from cddpm.data.raw.registration import Scene
from cddpm.data.raw.steps import one_thread
from cddpm.errors import DataError


def found_dice(whole: Whole, template: Scene | None = None, bias: float = 0.0) -> float:
    image = Grid(whole.image.data * field_of(whole.image.data.shape, bias), whole.image.affine)
    with one_thread():
        mask, figures = classical(image, template)
    assert figures["extraction"] == "classical"
    assert "extraction_piece" not in figures
    assert mask.data.shape == image.data.shape
    found = dice(mask.data, whole.brain.data)
    print(f"{found:.4f}", figures)
    return found


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("contrast", [pytest.param("t1", marks=pytest.mark.nightly), "t2"])
def test_a_phantom_is_taken_out_of_its_skull(contrast: str) -> None:
    """On T2 the 2 mm of fluid around the brain are brighter than what is inside, and are taken off."""
    assert found_dice(phantom(contrast), bias=0.2) > 0.96


@pytest.mark.nightly
@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("contrast", ["t1", "t2"])
@pytest.mark.parametrize("dataset", ["IXI", "ATLAS_v2"])
@pytest.mark.parametrize("index", [0, 1, 2, 3])
def test_no_drawn_head_loses_a_part(contrast: str, dataset: Dataset, index: int) -> None:
    """Large lesions, fluid, and erosion that breaks a brain into pieces leave none of it behind."""
    assert found_dice(phantom(contrast, dataset, index), bias=0.2) > 0.96


@pytest.mark.nightly
@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("bias", [0.0, 0.3])
@pytest.mark.parametrize("helped", [False, True])
def test_a_real_head(bias: float, helped: bool) -> None:
    whole, other = real(), phantom("t1", voxel_mm=1.0)
    assert found_dice(whole, Scene(other.image, other.brain) if helped else None, bias) > 0.94


@pytest.mark.nightly
@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("bias", [0.0, 0.3])
def test_a_real_head_with_a_real_template(bias: float) -> None:
    assert found_dice(real(), mni152(), bias) > 0.94


@pytest.mark.slow
def test_a_scan_without_skull_is_brain_throughout() -> None:
    whole = phantom("t1", voxel_mm=2.0)
    stripped = Grid(np.where(whole.brain.data > 0, whole.image.data, 0), whole.image.affine)
    with one_thread():
        mask, figures = classical(stripped)
    assert dice(mask.data, whole.brain.data) > 0.96
    assert figures["extraction_piece"] == "everything, as there is no skull"


@pytest.mark.slow
def test_a_bottle_is_no_head() -> None:
    away = np.indices((40, 40, 40)) - 19.5
    bottle = np.where(np.square(away).sum(0) <= 18**2, 100, 0).astype(np.float32)
    with one_thread(), pytest.raises(DataError, match="give a mask"):
        classical(Grid(bottle, np.diag([-5.0, -5.0, 5.0, 1.0])))
