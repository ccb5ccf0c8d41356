"""Faults that are planted on purpose (``--plant``), to see that the check names them. For testing the check itself."""

import time
from typing import Any

from torch import Tensor, nn

SLEEP_SECONDS = 0.25
BROKEN = "unet.middle_block.0.in_layers.2.weight"
FACTOR = 1.5


def slowed(objective: Any) -> None:
    """Every batch of ``objective`` takes a quarter of a second more."""
    prompt = objective.batch

    def batch(*given: Any) -> Any:
        time.sleep(SLEEP_SECONDS)
        return prompt(*given)

    objective.batch = batch


def broken(module: nn.Module) -> None:
    """The gradient of one weight of ``module`` is half too large."""

    def wrong(gradient: Tensor) -> Tensor:
        return gradient * FACTOR

    dict(module.named_parameters())[BROKEN].register_hook(wrong)
