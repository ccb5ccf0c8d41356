"""Voxels in space: turning moves none, sampling gives what a formula says, a grid that is the final one is left alone."""

import itertools

import numpy as np
import numpy.typing as npt
import pytest
from heads import motion
from hypothesis import given, settings
from hypothesis import strategies as st

from cddpm.data.raw.head import Grid
from cddpm.data.raw.resampling import (
    Lattice,
    around,
    cubic,
    lattice_of,
    linear,
    mask_at,
    moved,
    reoriented,
    same_lattice,
)
from cddpm.data.volume import axis_codes

CODES = ["".join(axes) for order in itertools.permutations(("RL", "AP", "SI")) for axes in itertools.product(*order)]


def affine_of(codes: str, sizes: tuple[float, float, float], turn: float = 0.0) -> npt.NDArray[np.float64]:
    affine = np.eye(4)
    affine[:3, :3] = 0
    for axis, code in enumerate(codes):
        affine[next(i for i, pair in enumerate(("RL", "AP", "SI")) if code in pair), axis] = (
            sizes[axis] if code in "RAS" else -sizes[axis]
        )
    affine[:3, 3] = (3, -7, 11)
    return motion(turn, 0, 1) @ affine


def positions(grid: Grid) -> dict[float, tuple[float, ...]]:
    """Where in space each (distinct) value lies."""
    index = np.indices(grid.data.shape).reshape(3, -1)
    there = grid.affine[:3, :3] @ index + grid.affine[:3, 3:]
    return {float(v): tuple(np.round(p, 6)) for v, p in zip(grid.data.ravel(), there.T, strict=True)}


@pytest.mark.parametrize("codes", CODES)
@pytest.mark.parametrize("turn", [0.0, 20.0])
def test_turned_axes_move_no_voxel(codes: str, turn: float) -> None:
    grid = Grid(np.arange(3 * 4 * 5, dtype=np.float32).reshape(3, 4, 5), affine_of(codes, (1, 2, 3), turn))
    for wanted in ("LPS", "RAS"):
        turned = reoriented(grid, wanted)
        assert axis_codes(turned.affine) == wanted
        assert positions(turned) == positions(grid)


def test_axes_at_45_degrees_are_each_taken_once() -> None:
    grid = Grid(np.zeros((3, 4, 5), np.float32), affine_of("RAS", (1, 1, 1)))
    turned = reoriented(moved(grid, motion(45, 0, 1, about=(0, 0, 1))), "LPS")
    assert sorted(turned.data.shape) == [3, 4, 5]
    assert abs(np.linalg.det(turned.affine)) == pytest.approx(1)


@settings(deadline=None, max_examples=30)
@given(st.sampled_from(CODES), st.floats(0, 40), st.sampled_from([(1.0, 1.0, 1.0), (0.8, 0.8, 2.5), (2.0, 1.0, 1.5)]))
def test_a_straight_slope_is_interpolated_exactly(codes: str, turn: float, sizes: tuple[float, float, float]) -> None:
    grid = Grid(np.zeros((14, 15, 16), np.float32), affine_of(codes, sizes, turn))
    slope = np.array([2.0, -1.0, 0.5])

    def height(lattice: Lattice) -> npt.NDArray[np.float64]:
        index = np.indices(lattice.shape).reshape(3, -1)
        return (slope @ (lattice.affine[:3, :3] @ index + lattice.affine[:3, 3:])).reshape(lattice.shape)

    sloping = Grid(height(lattice_of(grid)).astype(np.float32), grid.affine)
    middle = grid.affine @ np.array([7, 7, 8, 1.0])
    there = np.diag([-0.5, -0.5, 0.5, 1.0])
    there[:3, 3] = middle[:3]
    lattice = Lattice((4, 4, 4), there)
    assert np.abs(linear(sloping, lattice).data - height(lattice)).max() < 1e-3
    assert np.abs(cubic(sloping, lattice).data - height(lattice)).max() < 0.02  # the spline feels the ends


@settings(deadline=None, max_examples=30)
@given(st.floats(0, 30), st.floats(0.7, 1.4))
def test_nothing_rings(turn: float, scale: float) -> None:
    data = np.zeros((20, 20, 20), np.float32)
    data[6:14, 6:14, 6:14] = 1000
    grid = moved(Grid(data, np.eye(4)), motion(turn, 3, scale))
    found = cubic(grid, around(grid, "LPS", 1.0)).data
    assert found.min() >= 0
    assert found.max() <= 1000


def test_the_final_grid_is_left_alone_and_another_holds_the_whole_field() -> None:
    grid = Grid(np.random.default_rng(0).random((9, 10, 11), dtype=np.float32), affine_of("LPS", (1, 1, 1)))
    assert same_lattice(around(grid, "LPS", 1.0), grid)
    thick = Grid(np.ones((8, 8, 4), np.uint8), affine_of("LPS", (1, 1, 5)))
    lattice = around(thick, "LPS", 1.0)
    assert lattice.shape == (8, 8, 20)
    assert mask_at(thick, lattice).data.sum() == pytest.approx(8 * 8 * 20, rel=0.21)


@settings(deadline=None, max_examples=30)
@given(st.floats(-3, 3))
def test_voxels_of_all_registered_heads_are_those_of_the_template(shift: float) -> None:
    grid = moved(Grid(np.zeros((6, 7, 8), np.float32), affine_of("RAS", (1, 1, 1))), motion(10, shift, 1.05))
    through = np.array([0.25, -0.5, 0.125])
    first = (around(grid, "LPS", 2.0, through).affine[:3, 3] - through) / 2
    assert np.abs(first - np.rint(first)).max() < 1e-9


def test_fine_voxels_are_averaged_not_skipped() -> None:
    """Stripes of half a millimetre come out grey at 2 mm."""
    data = np.zeros((40, 40, 40), np.float32)
    data[::2] = 100
    found = cubic(Grid(data, np.diag([0.5, 0.5, 0.5, 1.0])), Lattice((8, 8, 8), np.diag([2.0, 2.0, 2.0, 1.0]))).data
    assert np.abs(found[1:-1, 1:-1, 1:-1] - 50).max() < 2
