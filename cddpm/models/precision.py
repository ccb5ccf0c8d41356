"""Number formats of the networks: bfloat16 where the hardware computes it, float32 elsewhere.

``precision: auto`` follows from what the hardware can do, never from a timing, so that it is the same on every run. It is
settled before anything is computed: what enters a fingerprint is always the format that was used. This module is
imported without torch, so that a node can be asked in a moment.
"""

import os
import time
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from cddpm.config import ExperimentConfig

if TYPE_CHECKING:
    import torch

Format = Literal["float32", "bfloat16"]
Device = Literal["cpu", "cuda"]

CUDA_CAPABILITY = (8, 0)
"""The first one (Ampere) with bfloat16 in its tensor cores."""
CPU_FLAGS = {"amx_bf16": "AMX-BF16", "avx512_bf16": "AVX512-BF16"}
"""Flags of x86 processors that multiply bfloat16, as Linux writes them."""
_LOWER_ISAS = ("SSE41", "AVX", "AVX2", "AVX2_VNNI", "AVX2_VNNI_2", "AVX512_CORE", "AVX512_CORE_VNNI")
"""Values of ``ONEDNN_MAX_CPU_ISA`` under which oneDNN keeps away from those instructions."""


@dataclass(frozen=True)
class Hardware:
    """Whether a device computes in bfloat16, and what says so."""

    bfloat16: bool
    why: str
    """``a CPU with AMX-BF16``"""
    slowdown: float | None = None
    """How many times longer a convolution takes in bfloat16 than in float32, where that was measured."""


def hardware(device: Device, measure: bool = False) -> Hardware:
    """What this machine's ``device`` can do; with ``measure`` also how slow bfloat16 is where it is only emulated.

    Raises ``ValueError`` for another device.
    """
    if device == "cuda":
        return _gpu()
    if device == "cpu":
        found = _cpu()
        return Hardware(False, found.why, slowdown()) if measure and not found.bfloat16 else found
    raise ValueError(f"device: {device!r}; allowed are cpu and cuda")


def _gpu() -> Hardware:
    import torch

    if not torch.cuda.is_available():
        return Hardware(False, "no GPU is visible")
    several = [(torch.cuda.get_device_capability(i), torch.cuda.get_device_name(i)) for i in _visible_gpus()]
    (major, minor), name = min(several)
    return Hardware((major, minor) >= CUDA_CAPABILITY, f"{name}, CUDA capability {major}.{minor}")


def _visible_gpus() -> range:
    import torch

    return range(torch.cuda.device_count())


def _cpu() -> Hardware:
    limit = os.environ.get("ONEDNN_MAX_CPU_ISA", "").upper()
    if limit in _LOWER_ISAS:
        return Hardware(False, f"a CPU limited by ONEDNN_MAX_CPU_ISA={limit}")
    there = [name for flag, name in CPU_FLAGS.items() if flag in cpu_flags()]
    if there:
        return Hardware(True, f"a CPU with {' and '.join(there)}")
    return Hardware(False, f"a CPU without {' or '.join(CPU_FLAGS.values())}")


def cpu_flags(cpuinfo: Path = Path("/proc/cpuinfo")) -> frozenset[str]:
    """The processor's flags as Linux tells them; none on another system."""
    try:
        lines = cpuinfo.read_text().splitlines()
    except OSError:
        return frozenset()
    return frozenset(word for line in lines if line.startswith("flags") for word in line.partition(":")[2].split())


def slowdown(seconds: float = 0.25) -> float:
    """How many times longer a small convolution takes on this CPU in bfloat16 than in float32; at most twice ``seconds``."""
    import torch

    picture, weight = torch.randn(4, 32, 48, 48), torch.randn(32, 32, 3, 3)
    taken = {}
    for dtype in (torch.float32, torch.bfloat16):
        x, w = picture.to(dtype), weight.to(dtype)
        torch.conv2d(x, w, padding=1)  # the first one prepares
        start, count = time.perf_counter(), 0
        while count == 0 or time.perf_counter() - start < seconds:
            torch.conv2d(x, w, padding=1)
            count += 1
        taken[dtype] = (time.perf_counter() - start) / count
    return taken[torch.bfloat16] / taken[torch.float32]


def settled(config: ExperimentConfig, bfloat16: bool) -> ExperimentConfig:
    """``config`` without ``auto``: bfloat16 where the hardware computes it, else float32. What is explicit stays."""
    chosen: Format = "bfloat16" if bfloat16 else "float32"
    training, reconstruction = config.training, config.reconstruction
    if training.precision == "auto":
        training = training.model_copy(update={"precision": chosen})
    if reconstruction.precision == "auto":
        reconstruction = reconstruction.model_copy(update={"precision": chosen})
    return config.model_copy(update={"training": training, "reconstruction": reconstruction})


def settled_for(config: ExperimentConfig, device: Device) -> ExperimentConfig:
    """``config`` without ``auto``, as this machine's ``device`` computes it."""
    return settled(config, hardware(device).bfloat16) if "auto" in formats(config).values() else config


def formats(config: ExperimentConfig) -> dict[str, str]:
    """The formats that ``config`` asks for, by dotted path."""
    return {
        "training.precision": config.training.precision,
        "reconstruction.precision": config.reconstruction.precision,
    }


def certain(precision: str) -> Format:
    """``precision`` once it is settled. Raises ``ValueError`` for ``auto`` and for other words."""
    if precision in ("float32", "bfloat16"):
        return precision  # type: ignore[return-value]
    raise ValueError(f"precision: {precision!r}; allowed are float32 and bfloat16; auto is settled before work begins")


def autocast(precision: str, device: "torch.device") -> AbstractContextManager[object]:
    """What a forward pass in ``precision`` runs under. Raises ``ValueError`` as ``certain``."""
    import torch

    if certain(precision) == "float32":
        return nullcontext()
    return torch.autocast(device.type, dtype=torch.bfloat16)
