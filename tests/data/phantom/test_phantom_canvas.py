import numpy as np
import pytest

from cddpm.data.phantom.canvas import Canvas, Grid, lattice_noise, smooth_noise, soft_step, spline_field


def test_equal_coefficients_give_an_equal_field():
    grid = Grid(5.0)
    shape = lattice_noise(np.random.default_rng(0), 20.0).shape

    field = spline_field(np.full(shape, 3.0, np.float32), 20.0, grid)

    np.testing.assert_allclose(field, 3.0, rtol=1e-6)


def test_linear_coefficients_give_a_linear_field():
    grid, spacing = Grid(5.0), 20.0
    counts = lattice_noise(np.random.default_rng(0), spacing).shape
    node_mm = (np.arange(counts[1]) - (counts[1] - 1) / 2) * spacing
    coefficients = np.broadcast_to(node_mm[None, :, None], counts).astype(np.float32)

    field = spline_field(coefficients, spacing, grid)

    np.testing.assert_allclose(field, np.broadcast_to(grid.axes[1][None, :, None], grid.shape), atol=1e-3)


def test_smooth_noise_has_unit_variance_and_is_smooth():
    rng, grid = np.random.default_rng(1), Grid(4.0)

    fields = np.stack([smooth_noise(rng, 20.0, grid) for _ in range(12)])

    assert fields.std() == pytest.approx(1.0, abs=0.08)
    assert np.diff(fields, axis=1).std() < 0.35  # from one voxel to the next, 4 of 20 mm


def test_a_field_is_the_same_function_on_both_voxel_sizes():
    full, small = (smooth_noise(np.random.default_rng(2), 22.0, Grid(mm)) for mm in (1.0, 2.0))

    means = full.reshape(80, 2, 96, 2, 50, 2).mean(axis=(1, 3, 5))

    np.testing.assert_allclose(means, small, atol=0.02)


def test_banded_noise_has_no_long_waves():
    plain, banded = (lattice_noise(np.random.default_rng(3), 8.0, band=band) for band in (False, True))

    assert banded.std() == pytest.approx(1.0, abs=1e-5)
    assert _coarse_deviation(banded) < 0.5 * _coarse_deviation(plain)


def _coarse_deviation(lattice: np.ndarray) -> float:
    x, y, z = (n // 8 * 8 for n in lattice.shape)
    return float(lattice[:x, :y, :z].reshape(x // 8, 8, y // 8, 8, z // 8, 8).mean(axis=(1, 3, 5)).std())


@pytest.mark.parametrize(("distance_mm", "share"), [(-5, 0), (-1, 0), (0, 0.5), (0.5, 0.75), (1, 1), (9, 1)])
def test_soft_step_is_the_share_of_a_voxel(distance_mm, share):
    assert soft_step(np.float32(distance_mm), 2.0) == pytest.approx(share)


def test_canvas_paints_back_what_it_selected():
    grid = Grid(10.0)
    inside = grid.mesh[0] > 12
    values = grid.mesh[2][inside]

    painted = Canvas(grid, inside).paint(values)

    np.testing.assert_array_equal(painted[inside], values)
    assert not painted[~inside].any()
