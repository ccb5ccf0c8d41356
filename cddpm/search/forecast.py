"""What a sweep will take of time and memory, from a few seconds of measuring: of the largest that its training space holds."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from cddpm.config import Choice, ExperimentConfig, Float, Integer, Parameter, value_at, with_values
from cddpm.errors import ConfigError
from cddpm.scoring.postprocess import median_filter
from cddpm.search import scoring_search
from cddpm.text.numbers import counted, size
from cddpm.training.probe import PROCESS_BYTES, Network, Probe


@dataclass(frozen=True)
class Memory:
    """What the steps of one worker take, and what there is."""

    device: str
    steps: dict[str, tuple[Network, int]]
    """By section of the configuration: its network, and the slices of one worker's step."""
    free_bytes: int
    """For one worker."""
    gpu: bool = False
    at_once: int = 1
    """Workers that share the device."""

    @property
    def needed(self) -> dict[str, int]:
        """Bytes of one worker's process, by section."""
        return {name: PROCESS_BYTES + network.step_bytes(batch) for name, (network, batch) in self.steps.items()}


def lacks(config: ExperimentConfig, memory: Memory) -> Iterator[str]:
    """What does not fit, each with the setting that makes it fit."""
    for name, needed in memory.needed.items():
        if needed > memory.free_bytes:
            network, batch = memory.steps[name]
            room = network.largest_batch(memory.free_bytes - PROCESS_BYTES) * config.compute.workers
            path = f"{name}.batch_size"
            if not room:
                remedy = "not even one slice has room: take a smaller model (model.base_width, encoder.width)"
            elif path in config.search.training.space:
                remedy = f"{room:,} or less fit: leave out the larger ones of search.training.space.{path}"
            else:
                remedy = f"set it to {room:,} or less" + (", or compute.workers to more" if memory.gpu else "")
            if memory.at_once > 1:
                kind = "gpus" if memory.gpu else "cpus"
                remedy += f"; {memory.at_once} share it (compute.{kind}_per_worker and search.concurrent_trials decide)"
            yield (
                f"{path}: {counted(batch, 'slice')} of one worker need {size(needed)} of memory, and for each "
                f"there are {size(memory.free_bytes)} on {memory.device}; {remedy}"
            )


def largest(config: ExperimentConfig) -> ExperimentConfig:
    """``config`` with the largest networks and batches of its training space, whatever their conditions."""
    chosen = {
        path: max((value_at(config, path), *ends(parameter)), key=lambda value: _size(value) or 0.0)
        for path, parameter in config.search.training.space.items()
        if path.startswith(SIZES) and all(_size(end) is not None for end in ends(parameter))
    }
    try:
        return with_values(config, chosen)
    except ConfigError:  # what is largest one by one need not go together
        return config


SIZES = ("model.", "encoder.", "training.batch_size", "pretraining.batch_size", "pretraining.decoder_width")


def _size(value: Any) -> float | None:
    """How large a setting makes a network; None for what says nothing of it."""
    if isinstance(value, list | tuple):
        return float(sum(value))
    if isinstance(value, str):
        digits = value.removeprefix("resnet")
        return float(digits) if digits.isdecimal() else None
    return None if value is None else float(value)


def ends(parameter: Parameter) -> list[Any]:
    """The outermost values of a parameter; all of a choice."""
    if isinstance(parameter, Choice):
        return list(parameter.choice)
    if isinstance(parameter, Float):
        return list(parameter.float)
    if isinstance(parameter, Integer):
        return list(parameter.int)
    raise TypeError(f"{type(parameter).__name__}: no parameter of a space")


POINT_OVER_MEDIAN = 1.25
"""What a point of a search takes, in medians of its volumes (measured: 1.16 to 1.32 with the median of 5 x 5 x 5 voxels)."""


def point_seconds(config: ExperimentConfig, volumes: int) -> float:
    """Seconds of a point whose residuals and medians nobody has yet."""
    width, height, slices = config.data.usual_shape
    z, y, x = np.ogrid[-1 : 1 : 1j * slices, -1 : 1 : 1j * height, -1 : 1 : 1j * width]
    brain = z**2 + y**2 + (x / 0.75) ** 2 < 1  # in one piece: a median of scattered voxels is 0, and costs nothing
    volume = np.where(brain, np.random.default_rng(0).random(brain.shape, np.float32), 0).astype(np.float16)
    kernel = max(config.scoring.median_kernel, 3)
    median_filter(volume, kernel)  # it may have to be compiled
    start = time.perf_counter()
    median_filter(volume, kernel)
    return POINT_OVER_MEDIAN * (time.perf_counter() - start) * volumes / scoring_search.cpus(config)


def memory(config: ExperimentConfig, probe: Probe) -> Memory:
    """All trainings that a machine's CPUs let run at once share its memory; those on one GPU share that of the GPU."""
    sizes, compute = largest(config), config.compute
    steps = {}
    if not config.training.artifact:
        steps["training"] = (probe.diffusion, -(-sizes.training.batch_size // compute.workers))
    if probe.encoder and not config.training.artifact:
        steps["pretraining"] = (probe.encoder, -(-sizes.pretraining.batch_size // compute.workers))
    trainings = min(config.search.training.trials, config.search.concurrent_trials or config.search.training.trials)
    share = 1 / compute.gpus_per_worker if probe.gpu else probe.cpus / compute.cpus_per_worker
    at_once = max(1, min(trainings * compute.workers, int(share)))
    return Memory(probe.device, steps, probe.memory_bytes // at_once, probe.gpu, at_once)
