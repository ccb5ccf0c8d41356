"""The float32 implementation meets the frozen float64 results of this project, without any reference array."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from freeze import FROZEN, freeze
from frozen_cases import cases

LIMITS = {"simplex/fields": 1e-6}


@pytest.fixture(scope="module")
def frozen() -> dict[str, np.ndarray]:
    return dict(np.load(FROZEN))


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.slow
@pytest.mark.parity
@pytest.mark.parametrize("part", sorted(cases()))
def test_float32_meets_the_frozen_float64(part: str, frozen: dict[str, np.ndarray], near: Callable[..., None]) -> None:
    found = {f"{part}/{name}": array for name, array in cases()[part](torch.float32).items()}
    assert sorted(found) == sorted(name for name in frozen if name.startswith(f"{part}/"))
    for name, array in found.items():
        near(f"frozen: {part}", array, frozen[name], LIMITS.get(name, 1e-4))


@pytest.mark.slow
@pytest.mark.parametrize("part", sorted(cases()))
def test_freezing_again_gives_the_same(part: str, frozen: dict[str, np.ndarray]) -> None:
    for name, array in cases()[part](torch.float64).items():
        expected = frozen[f"{part}/{name}"]
        assert array.dtype == expected.dtype
        limit = 1e-12 * max(1.0, float(np.abs(expected).max())) if part != "preprocessing" else 1e-6
        np.testing.assert_allclose(array, expected, rtol=0, atol=limit, err_msg=name)


def test_frozen_numbers_are_not_overwritten_unasked(tmp_path: Path) -> None:
    path = tmp_path / "frozen.npz"
    path.write_bytes(b"precious")
    with pytest.raises(FileExistsError, match="--overwrite replaces"):
        freeze(path, overwrite=False)
    assert path.read_bytes() == b"precious"


def test_frozen_numbers_are_small_and_finite(frozen: dict[str, np.ndarray]) -> None:
    assert FROZEN.stat().st_size < 400_000
    assert all(np.isfinite(array).all() and array.any() for array in frozen.values())
