"""Cross-attention, pyramid noise and SSIM train, reconstruct and score through the whole loop."""

from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_training import tiny_config, train

from cddpm.models.cddpm import ConditionedDiffusion
from cddpm.training import stages
from cddpm.training.loop import Hooks

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def trained(store_path: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[list[dict], ConditionedDiffusion]:
    """Reports and the model of one training with all three options."""
    config = tiny_config(
        model__conditioning="cross-attention",
        diffusion__noise__kind="pyramid",
        diffusion__loss="ssim-l1",
        diffusion__ssim_weight=0.5,
        pretraining__enabled=False,
        training__learning_rate=0.003,
        training__validation_volumes=1,
    )
    reports: list[dict] = []
    made = train(config, store_path, tmp_path_factory.mktemp("options"), Hooks(report=reports.append))
    return reports, stages.load_model(made.checkpoint, torch.device("cpu"))[0]


def test_it_learns(trained: tuple[list[dict], ConditionedDiffusion]) -> None:
    losses = [report["val/loss"] for report in trained[0]]
    assert losses[-1] < 0.9 * losses[0]
    assert all(np.isfinite(report["monitor/objective"]) for report in trained[0])


def test_what_starts_at_zero_has_moved(trained: tuple[list[dict], ConditionedDiffusion]) -> None:
    model = trained[1]
    cross = model.unet.middle_block.cross
    assert cross.proj_out.weight.abs().max() > 1e-4
    assert model.null_token.abs().max() > 1e-4
    assert model.null_condition.abs().max() > 1e-4
