"""Laws of the simulated contrast."""

import numpy as np
import pytest

from cddpm.evaluation.shift import apply_power

IMAGE = np.random.default_rng(0).uniform(-0.03, 1.01, (3, 8, 9)).astype(np.float32)
MASK = np.random.default_rng(1).random(IMAGE.shape) > 0.4


def test_power_one_changes_nothing() -> None:
    np.testing.assert_array_equal(apply_power(IMAGE, 1.0, MASK), IMAGE)
    np.testing.assert_array_equal(apply_power(IMAGE.astype(np.float16), 1.0), IMAGE.astype(np.float16))


def test_numbers_by_hand() -> None:
    image = np.array([[[0.0, 0.25, 1.0, -0.04, 1.21]]])
    np.testing.assert_allclose(apply_power(image, 0.5), [[[0.0, 0.5, 1.0, -0.2, 1.1]]], rtol=1e-12)
    np.testing.assert_allclose(apply_power(image, 2.0), [[[0.0, 0.0625, 1.0, -0.0016, 1.4641]]], rtol=1e-12)


@pytest.mark.parametrize(("first", "then"), [(0.3, 2.0), (0.5, 0.7), (2.0, 1.5)])
def test_one_after_the_other_is_their_product(first: float, then: float) -> None:
    image = IMAGE.astype(np.float64)
    np.testing.assert_allclose(
        apply_power(apply_power(image, first), then), apply_power(image, first * then), rtol=1e-9
    )


@pytest.mark.parametrize("power", [0.3, 0.8, 1.4, 2.0])
def test_order_and_sign_stay(power: float) -> None:
    changed = apply_power(IMAGE, power).ravel()
    np.testing.assert_array_equal(np.argsort(changed, kind="stable"), np.argsort(IMAGE.ravel(), kind="stable"))
    np.testing.assert_array_equal(np.sign(changed), np.sign(IMAGE.ravel()))
    inner = (IMAGE.ravel() > 0) & (IMAGE.ravel() < 1)
    assert (np.sign(changed - IMAGE.ravel())[inner] == np.sign(1 - power)).all()


def test_nothing_changes_outside_of_the_mask() -> None:
    changed = apply_power(IMAGE, 0.5, MASK)
    np.testing.assert_array_equal(changed[~MASK], IMAGE[~MASK])
    np.testing.assert_array_equal(changed[MASK], apply_power(IMAGE, 0.5)[MASK])
    assert changed.dtype == np.float32


@pytest.mark.parametrize("power", [0.0, -1.0, float("nan"), float("inf")])
def test_a_power_that_is_none(power: float) -> None:
    with pytest.raises(ValueError, match="allowed is a number above 0"):
        apply_power(IMAGE, power)


def test_a_mask_of_another_shape() -> None:
    with pytest.raises(ValueError, match=r"mask of shape \(8, 9\): the image has \(3, 8, 9\)"):
        apply_power(IMAGE, 0.5, MASK[0])
