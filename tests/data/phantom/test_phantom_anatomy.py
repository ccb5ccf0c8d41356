import numpy as np
import pytest

from cddpm.data.phantom.anatomy import (
    Anatomy,
    Canvas,
    Grid,
    Traits,
    bend,
    build,
    canvas_of,
    capsule,
    deep_nuclei,
    ellipsoid,
    lattice_noise,
    lobes,
    smooth_noise,
    smooth_union,
    soft_step,
    spline_field,
    ventricles,
)


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


def at(x: float, y: float, z: float) -> np.ndarray:
    return np.array([[x], [y], [z]], np.float32)


@pytest.mark.parametrize("x", [1.0, 4.0, 9.0, 20.0])
def test_the_distance_to_a_sphere_is_exact(x):
    assert ellipsoid(at(x, 0, 3), (0, 0, 3), (10, 10, 10))[0] == pytest.approx(10 - x, abs=1e-4)


def test_an_ellipsoids_surface_is_at_distance_zero_and_its_inside_positive():
    assert ellipsoid(at(5, 0, 0), (0, 0, 0), (5, 20, 8))[0] == pytest.approx(0, abs=1e-5)
    assert ellipsoid(at(0, 19, 0), (0, 0, 0), (5, 20, 8))[0] == pytest.approx(1, abs=0.1)


def test_a_capsules_radius_goes_from_end_to_end():
    ends = (0.0, 0.0, 0.0, 2.0), (0.0, 10.0, 0.0, 4.0)

    assert capsule(at(0, 0, 5), *ends)[0] == pytest.approx(-3)  # 2 mm radius, 5 mm off the axis
    assert capsule(at(3, 5, 0), *ends)[0] == pytest.approx(0)  # half way: radius 3
    assert capsule(at(0, 13, 0), *ends)[0] == pytest.approx(1)  # in the round cap


def test_smooth_union_fills_only_the_seam():
    one, other = np.float32([5.0, -1.0]), np.float32([-20.0, -1.0])

    np.testing.assert_allclose(smooth_union(one, other, 8.0), [5.0, 1.0])


def test_the_template_has_two_equal_sides():
    points = np.random.default_rng(0).uniform(-60, 60, (3, 500)).astype(np.float32)
    other = points * np.float32([[-1], [1], [1]])

    for one, two in zip(
        ventricles(points, 1.0) + deep_nuclei(points), ventricles(other, 1.0) + deep_nuclei(other), strict=True
    ):
        np.testing.assert_allclose(one, two, atol=1e-4)
    np.testing.assert_allclose(lobes(points).cerebrum, lobes(other).cerebrum, atol=1e-4)


def test_parts_lie_where_anatomy_has_them():
    lateral, middle = ventricles(at(8.5, -20, 9), 1.0)
    assert lateral[0] > 2  # frontal horn
    assert middle[0] < 0
    assert ventricles(at(0, 4, -2), 1.0)[1][0] > 1  # third ventricle in the midline
    assert deep_nuclei(at(10.5, 14, 4))[0][0] > 3  # thalamus
    assert lobes(at(20, 45, -30)).cerebellum[0] > 5
    assert lobes(at(20, 45, -30)).cerebrum[0] < 0  # below the tentorium
    assert lobes(at(43, -4, -25)).cerebrum[0] > 5  # temporal lobe


VOXEL_MM = 2.0
TISSUES = ("grey", "white", "csf", "nuclei", "pallidum")


def drawn(seed: int, voxel_mm: float = VOXEL_MM) -> tuple[Canvas, Anatomy, Traits]:
    rng = np.random.default_rng(seed)
    grid, traits = Grid(voxel_mm), Traits.draw(rng)
    points = bend(rng, grid, traits)
    canvas = canvas_of(points, grid)
    return canvas, build(rng, canvas, points[:, canvas.inside], traits), traits


@pytest.fixture(scope="module")
def brains() -> list[tuple[Canvas, Anatomy, Traits]]:
    return [drawn(seed) for seed in range(5)]


@pytest.mark.slow
def test_shares_are_shares(brains):
    for _, anatomy, _ in brains:
        shares = np.stack([getattr(anatomy, tissue) for tissue in TISSUES])
        assert shares.dtype == np.float32
        assert shares.min() >= 0
        np.testing.assert_allclose(shares.sum(axis=0), 1, atol=1e-5)


@pytest.mark.slow
def test_the_proportions_are_those_of_a_brain(brains):
    for _, anatomy, _ in brains:
        volume = {tissue: getattr(anatomy, tissue)[anatomy.mask].sum() for tissue in TISSUES}
        total = sum(volume.values())
        assert 0.9 < total * VOXEL_MM**3 / 1e6 < 1.5  # litres
        assert 0.30 < volume["grey"] / total < 0.60
        assert 0.25 < volume["white"] / total < 0.50
        assert 0.08 < volume["csf"] / total < 0.30
        assert 0.01 < volume["nuclei"] / total < 0.06


@pytest.mark.slow
def test_every_brain_fits_into_the_working_volume(brains):
    for canvas, anatomy, _ in brains:
        mask = canvas.paint(anatomy.mask)
        extent = [np.ptp(axis) * VOXEL_MM for axis in np.nonzero(mask)]
        assert np.all(np.array(extent) <= (158, 188, 98))
        assert not mask[[0, -1]].any()
        assert not mask[:, [0, -1]].any()


def test_the_cortex_is_a_band_of_its_thickness_below_the_pia(brains):
    for _, anatomy, traits in brains:
        cerebral = anatomy.mask & (anatomy.nuclei == 0) & (anatomy.ventricle_mm < -5)
        under = cerebral & (anatomy.depth_mm > VOXEL_MM / 2) & (anatomy.depth_mm < traits.cortex_mm - VOXEL_MM / 2)
        deep = cerebral & (anatomy.depth_mm > traits.cortex_mm + VOXEL_MM)
        assert anatomy.grey[under].mean() > 0.9
        assert anatomy.white[deep].mean() > 0.9


def test_the_cortex_is_folded(brains):
    # Fluid 6 to 20 mm below the hull can only be in sulci, fissures and ventricles; an ellipse has none of the first.
    from cddpm.data.phantom.anatomy import lobes

    for canvas, anatomy, _ in brains:
        below = lobes(canvas.grid.mesh[:, canvas.inside]).cerebrum
        band = (below > 8) & (below < 18) & (anatomy.ventricle_mm < -4)
        assert 0.03 < (anatomy.depth_mm[band] < 0).mean() < 0.35
        assert 0.15 < anatomy.grey[band].mean() < 0.8


def test_both_lateral_ventricles_are_there_and_differ_little(brains):
    for canvas, anatomy, _ in brains:
        wet = anatomy.ventricle_mm > 0
        left, right = (
            int((wet & side).sum())
            for side in (canvas.grid.mesh[0][canvas.inside] > 0, canvas.grid.mesh[0][canvas.inside] < 0)
        )
        assert min(left, right) * VOXEL_MM**3 > 2000  # mm3
        assert max(left, right) < 2 * min(left, right)


def test_subjects_differ(brains):
    (one, first, _), (two, second, _) = brains[:2]
    grey = one.paint(first.grey) > 0.5, two.paint(second.grey) > 0.5
    overlap = 2 * (grey[0] & grey[1]).sum() / (grey[0].sum() + grey[1].sum())
    assert overlap < 0.75


@pytest.mark.slow
def test_full_and_small_are_the_same_brain():
    small, large = drawn(7), drawn(7, 1.0)

    grey = large[0].paint(large[1].grey).reshape(80, 2, 96, 2, 50, 2).mean(axis=(1, 3, 5))
    mask = large[0].paint(large[1].mask).reshape(80, 2, 96, 2, 50, 2).mean(axis=(1, 3, 5)) >= 0.5
    other = small[0].paint(small[1].mask)

    assert 2 * (mask & other).sum() / (mask.sum() + other.sum()) > 0.985
    assert np.corrcoef(grey[mask & other], small[0].paint(small[1].grey)[mask & other])[0, 1] > 0.75


def test_older_brains_have_wider_ventricles():
    traits = [Traits.draw(np.random.default_rng(seed)) for seed in range(200)]
    ages, widths = np.array([(t.age_years, t.ventricle_scale) for t in traits]).T

    assert 20 <= ages.min() < ages.max() <= 82
    assert np.corrcoef(ages, widths)[0, 1] > 0.6
