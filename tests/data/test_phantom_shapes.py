import numpy as np
import pytest

from cddpm.data.phantom_shapes import capsule, deep_nuclei, ellipsoid, lobes, smooth_union, ventricles


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
