"""Laws of tiles: together they see all of a brain, and a network that changes nothing changes nothing through them."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cddpm.reconstruct.tiling import Tiling


@st.composite
def tilings(draw: Any) -> tuple[Tiling, np.ndarray]:
    """A window somewhere in a larger volume, and a brain in it."""
    size = tuple(draw(st.integers(1, n)) for n in (4, 9, 9))
    before, behind = (tuple(draw(st.integers(0, n)) for n in (2, 20, 20)) for _ in range(2))
    shape = tuple(a + n + b for a, n, b in zip(before, size, behind, strict=True))
    brain = np.random.default_rng(draw(st.integers(0, 99))).random(shape) < draw(st.sampled_from([0.0, 0.02, 0.5, 1.0]))
    s, y, x = (slice(a, a + n) for a, n in zip(before, size, strict=True))
    return Tiling.of(brain, (s, y, x)), brain


def identity(tiling: Tiling, volume: np.ndarray) -> np.ndarray:
    return tiling.joined(tiling.cut(volume, tiling.own), tiling.cut(volume, tiling.others))


@pytest.mark.slow
@settings(max_examples=150, deadline=None)
@given(tilings())
def test_an_identity_is_exact_wherever_brain_is(drawn: tuple[Tiling, np.ndarray]) -> None:
    tiling, brain = drawn
    volume = np.random.default_rng(1).random(brain.shape, np.float32)
    found = identity(tiling, volume)
    np.testing.assert_array_equal(found[brain], volume[brain])
    np.testing.assert_array_equal(found[tiling.window], volume[tiling.window])
    assert set(np.unique(found[found != volume])) <= {0}


@pytest.mark.slow
@settings(max_examples=150, deadline=None)
@given(tilings())
def test_where_the_window_suffices_its_own_prediction_stands_alone(drawn: tuple[Tiling, np.ndarray]) -> None:
    tiling, brain = drawn
    outside = brain.copy()
    outside[:, tiling.window[1], tiling.window[2]] = False
    found = tiling.joined(
        np.full((len(tiling.own), *tiling.size), 0.3, np.float32),
        np.full((len(tiling.others), *tiling.size), 0.9, np.float32),
    )
    for s in range(tiling.window[0].start, tiling.window[0].stop):
        if not outside[s].any():
            assert (found[s][tiling.window[1:]] == np.float32(0.3)).all()


@settings(max_examples=100, deadline=None)
@given(tilings())
def test_every_tile_has_noise_of_its_own_and_those_of_the_window_their_slices(drawn: Any) -> None:
    tiling, _ = drawn
    names = [*tiling.names(tiling.own), *tiling.names(tiling.others)]
    assert len(set(names)) == len(names)
    assert list(tiling.names(tiling.own)) == [(s,) for s in range(len(tiling.own))]


def test_a_plane_goes_over_smoothly_from_tile_to_tile() -> None:
    """Tiles that differ by one: no step between neighbours is more than a few hundredths of it."""
    brain = np.ones((1, 144, 96), bool)
    tiling = Tiling.of(brain, (slice(0, 1), slice(24, 120), slice(0, 96)))
    assert [corner for _, corner in tiling.others] == [(0, 0), (48, 0)]
    for one in range(3):
        values = np.zeros((3, 96, 96), np.float32)
        values[one] = 1
        found = tiling.joined(values[:1], values[1:])
        steps = np.abs(np.diff(found[0, :, 0]))
        assert steps.max() < 0.04
        assert found.min() >= 0
        assert found.max() <= 1
        if one == 1:  # the tile at the plane's edge is alone there
            assert (found[0, :24] == 1).all()
