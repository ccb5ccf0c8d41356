"""Augmentation: seeded per slice, and parity of gamma with arrays of the published pipeline."""

from pathlib import Path

import numpy as np
import pytest
import torch

from cddpm.config import AugmentationConfig
from cddpm.data.augment import apply_gamma, augment, gamma_exponents

ON = AugmentationConfig(enabled=True)


def test_gamma_worked_by_hand() -> None:
    x = torch.tensor([[-0.25, 0.0, 0.25, 1.0], [-0.25, 0.0, 0.25, 1.0]])
    y = apply_gamma(x, torch.tensor([0.5, 2.0]))
    torch.testing.assert_close(y, torch.tensor([[-0.5, 0.0, 0.5, 1.0], [-0.0625, 0.0, 0.0625, 1.0]]))


def test_off_changes_nothing() -> None:
    x = torch.rand(3, 1, 8, 8)
    assert augment(x, torch.arange(3), AugmentationConfig()) is x


def test_slices_that_are_not_chosen_keep_every_bit() -> None:
    x, seeds = torch.rand(64, 1, 8, 8) * 1.2 - 0.1, torch.arange(64)
    y = augment(x, seeds, ON)
    same = (y == x).flatten(1).all(1)
    assert torch.equal(same, gamma_exponents(seeds, ON) == 1)
    assert 16 < same.sum() < 48


def test_a_slice_does_not_depend_on_its_batch() -> None:
    x, seeds = torch.rand(8, 1, 8, 8), torch.arange(8) * 2**40 - 3
    y = augment(x, seeds, ON)
    single = torch.cat([augment(x[i : i + 1], seeds[i : i + 1], ON) for i in range(8)])
    assert torch.equal(y, single)


def test_all_bits_of_a_seed_count() -> None:
    always = AugmentationConfig(enabled=True, gamma_probability=1.0)
    assert len(gamma_exponents(torch.tensor([1, 1 + 2**32, 1 + 2**62, -1]), always).unique()) == 4


def test_exponents_follow_the_configuration() -> None:
    config = AugmentationConfig(enabled=True, gamma_probability=0.25, gamma_log_range=0.6)
    logs = gamma_exponents(torch.arange(4000), config).log()
    changed = logs[logs != 0]
    assert len(changed) / 4000 == pytest.approx(0.25, abs=0.03)
    assert changed.abs().max() <= 0.6
    assert changed.mean() == pytest.approx(0, abs=0.04)
    assert changed.std() == pytest.approx(0.6 / 3**0.5, rel=0.05)


def test_background_stays_zero() -> None:
    y = augment(torch.zeros(4, 1, 2, 2), torch.arange(4), AugmentationConfig(enabled=True, gamma_probability=1.0))
    assert not y.any()


@pytest.mark.parametrize("seeds", [torch.arange(2), torch.rand(3), torch.zeros(3, 1, dtype=torch.int64)])
def test_other_seeds_are_refused(seeds: torch.Tensor) -> None:
    with pytest.raises(ValueError, match=r"\(3,\) int64 is needed"):
        augment(torch.rand(3, 1, 4, 4), seeds, ON)


def test_parity_of_gamma(reference_dir: Path) -> None:
    arrays = np.load(reference_dir / "augment_ops.npz")
    y = apply_gamma(torch.tensor(arrays["x"])[None], torch.tensor([float(arrays["gamma"])]))
    np.testing.assert_allclose(y[0].numpy(), arrays["gamma_out"], rtol=1e-5, atol=1e-7)
