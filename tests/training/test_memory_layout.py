"""What a resumed training reads from files lies in memory as before: a GPU's fused optimizer asks for that."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from cddpm.training.loop import Hooks, Interrupted, Recipe, Trainer
from cddpm.training.ranks import Ranks

RECIPE = Recipe(
    images=80,
    batch_size=4,
    learning_rate=1e-2,
    weight_decay=0.0,
    evaluations=1,
    seed=7,
    optimizer="adam",
    ema_decay=0.6,
)


class Pictures(nn.Module):
    """Two convolutions; their weights lie channels-last on a GPU."""

    replayable = True

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Conv2d(2, 4, 3), nn.Conv2d(4, 2, 2))

    @property
    def module(self) -> nn.Module:
        return self

    def batch(self, rows: np.ndarray, positions: np.ndarray) -> tuple[Tensor]:
        return (torch.ones(len(rows), 2, 5, 5),)

    def validate(self, module: nn.Module, ranks: Ranks, images: int) -> dict[str, float]:
        return {"val/loss": 0.0}

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x).square().mean()


def strides(trainer: Trainer) -> dict[str, tuple[int, ...]]:
    assert trainer.average is not None
    found = {f"average {name}": tensor.stride() for name, tensor in trainer.average.items()}
    for name, parameter in trainer.module.named_parameters():
        kept = trainer.optimizer.state[parameter]
        found |= {
            name: parameter.stride(),
            **{f"{what} {name}": kept[what].stride() for what in ("exp_avg", "exp_avg_sq")},
        }
    return found


def test_what_is_resumed_lies_in_memory_as_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cddpm.training.loop.memory_format", lambda device: torch.channels_last)
    first = Trainer("train", Pictures(), RECIPE, np.arange(8), tmp_path, "pictures", Ranks())
    with pytest.raises(Interrupted):
        first.run(Hooks(stop=lambda: True))
    second = Trainer("train", Pictures(), RECIPE, np.arange(8), tmp_path, "pictures", Ranks())
    second._resume()
    found = strides(second)
    assert found == strides(first)
    weight = first.module.net[0].weight
    assert weight.stride() != weight.contiguous().stride()
    for what in ("exp_avg", "exp_avg_sq", "average"):
        assert found[f"{what} net.0.weight"] == weight.stride()
