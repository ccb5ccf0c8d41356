"""How tensors lie on a device and come there."""

import torch
from torch import Tensor


def memory_format(device: torch.device | str) -> torch.memory_format:
    """How weights and slices lie in memory: channels-last on a GPU; on a CPU it makes GroupNorm's backward far slower."""
    return torch.channels_last if torch.device(device).type == "cuda" else torch.contiguous_format


def to_device(tensor: Tensor, device: torch.device, layout: torch.memory_format = torch.preserve_format) -> Tensor:
    """``tensor`` on ``device`` in this ``layout``. To a GPU it goes from pinned memory, so that neither side waits for it."""
    if device.type != "cuda" or tensor.is_cuda:
        return tensor.to(device, memory_format=layout)
    return tensor.pin_memory().to(device, non_blocking=True, memory_format=layout)
