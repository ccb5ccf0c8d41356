"""What a training will take, measured for a few seconds on the device it will run on: time of a slice, and memory.

A step's memory is what it holds whatever the batch (weights, gradients, Adam's two moments, the moving average), and what each
slice leaves for the backward pass. On a GPU both come from the allocator's peak with two and with three slices, on a CPU from
the tensors that the forward pass saves (``torch.autograd.graph.saved_tensors_hooks``).
"""

import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from cddpm.config import ExperimentConfig
from cddpm.models.cddpm import ConditionedDiffusion
from cddpm.models.device import memory_format
from cddpm.models.precision import Device, autocast, settled_for
from cddpm.models.spark import SparK, seeded_masks

ENOUGH_SECONDS = 0.7
"""A step that takes so long is told from the clock's noise."""
PATIENCE_SECONDS = 5.0
"""A first step that takes longer is not repeated."""
FLOAT = 4
PROCESS_BYTES = 700 * 2**20
"""Of a worker's process that has imported torch and Ray, whatever it trains (measured: 0.6 to 0.7 GB); about as much is CUDA's
own on a GPU."""
Inputs = tuple[Tensor, ...]


@dataclass(frozen=True)
class Network:
    """One network that is trained: what a slice takes, and what a step holds."""

    seconds: float
    """Of a training step, per slice of one worker."""
    forward_seconds: float
    """Of a forward pass, per slice."""
    fixed_bytes: int
    """Of a step, whatever its batch."""
    slice_bytes: int
    """Of each slice until its backward pass."""

    def step_bytes(self, batch: int) -> int:
        """Memory of a step of one worker's ``batch`` slices."""
        return self.fixed_bytes + batch * self.slice_bytes

    def largest_batch(self, free: int) -> int:
        """The largest batch of one worker whose step has room in ``free`` bytes; 0 if none has."""
        return max(0, (free - self.fixed_bytes) // max(1, self.slice_bytes))


@dataclass(frozen=True)
class Probe:
    """A device, and what the networks of a configuration take on it."""

    device: str
    """Its name: ``2 CPUs``, or that of a GPU."""
    gpu: bool
    cpus: int
    """Of the machine."""
    memory_bytes: int
    """Of the machine, or of one GPU."""
    diffusion: Network
    encoder: Network | None
    """Its pretraining; None where there is none."""


def measure(config: ExperimentConfig, device: Device) -> Probe:
    """Time both networks of ``config`` on this machine's ``device``, with the threads of one worker.

    Takes a few seconds; a slice of the full model takes some on a CPU. Raises ``torch.OutOfMemoryError`` where not even three
    slices have room.
    """
    config, where = settled_for(config, device), torch.device(device)
    before = torch.get_num_threads()
    if device == "cpu":
        torch.set_num_threads(config.compute.threads_per_worker or max(1, int(config.compute.cpus_per_worker)))
    try:
        workers, share = config.compute.workers, config.training.batch_size
        diffusion = _network(
            _diffusion(config), config, where, math.ceil(share / workers), config.training.ema_decay > 0
        )
        encoder = None
        if config.model.conditioned and config.pretraining.enabled and config.pretraining.artifact is None:
            most = math.ceil(config.pretraining.batch_size / workers)
            encoder = _network(_spark(config), config, where, most, averaged=False)
    finally:
        torch.set_num_threads(before)
    cpus = host_cpus()
    name = torch.cuda.get_device_name(where) if where.type == "cuda" else f"{cpus} CPUs"
    return Probe(name, where.type == "cuda", cpus, _memory_bytes(where), diffusion, encoder)


def _memory_bytes(where: torch.device) -> int:
    return torch.cuda.get_device_properties(where).total_memory if where.type == "cuda" else host_bytes()


def host_cpus() -> int:
    """CPUs that this process may use, of the machine or of the container that it is: as many as Ray would count."""
    cpus = len(os.sched_getaffinity(0))
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return max(1, min(cpus, int(int(quota) / int(period))))
    except (OSError, ValueError):  # not there, or "max"
        return cpus


def host_bytes() -> int:
    """Memory of this machine, or of the container that it is."""
    whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for limit in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            whole = min(whole, int(Path(limit).read_text()))
        except (OSError, ValueError):  # not there, or "max"
            continue
    return whole


def _diffusion(config: ExperimentConfig) -> tuple[nn.Module, Callable[[int], Inputs]]:
    shape = config.data.slice_shape

    def inputs(batch: int) -> Inputs:
        slices = torch.rand(batch, 1, *shape)
        return slices, torch.arange(batch) % config.diffusion.timesteps, torch.randn_like(slices)

    return ConditionedDiffusion(config.model, config.encoder, config.diffusion), inputs


def _spark(config: ExperimentConfig) -> tuple[nn.Module, Callable[[int], Inputs]]:
    settings = config.pretraining
    spark = SparK(config.encoder, settings.decoder_width, settings.mask_ratio)

    def inputs(batch: int) -> Inputs:
        slices = torch.rand(batch, 1, *config.data.slice_shape)
        grid = spark.grid(slices)
        return slices, seeded_masks(torch.arange(batch), grid, spark.visible_patches(grid))

    return spark, inputs


def _network(
    made: tuple[nn.Module, Callable[[int], Inputs]],
    config: ExperimentConfig,
    where: torch.device,
    most: int,
    averaged: bool,
) -> Network:
    """``most``: the slices of one worker's step, of which no more are tried."""
    module, inputs = made
    layout = memory_format(where)
    module.to(where).to(memory_format=layout)  # type: ignore[call-overload]
    weights = sum(p.numel() for p in module.parameters())
    copies = 4 + averaged  # weights, gradients, two moments; DDP sends gradients from where they lie

    def passed(batch: int) -> tuple[float, Tensor]:
        given = tuple(t.to(where, memory_format=layout) if t.ndim == 4 else t.to(where) for t in inputs(batch))
        start = _now(where)
        with autocast(config.training.precision, where):
            loss = module(*given)
        return _now(where) - start, loss

    def step(batch: int) -> tuple[float, float]:
        module.zero_grad(set_to_none=False)  # what a step takes beside gradients is measured
        forward, loss = passed(batch)
        start = _now(where)
        loss.backward()
        return forward, forward + _now(where) - start

    if where.type == "cuda":
        two, three = (_peak_bytes(partial(step, batch), where) for batch in (2, 3))
    else:
        two, three = (_saved_bytes(partial(passed, batch), module) for batch in (2, 3))
    each = max(three - two, 1)
    found = Network(0.0, 0.0, FLOAT * weights * copies + max(two - 2 * each, 0), each)
    most = min(most, found.largest_batch(_memory_bytes(where)))
    batch = 2  # of one slice a layer that normalises over the batch may have nothing to learn from
    forward, whole = step(batch)
    if whole < PATIENCE_SECONDS:
        forward, whole = step(batch)  # the first one prepares
    while whole < ENOUGH_SECONDS and batch < most:
        batch = min(most, 2 * batch)
        step(batch)  # sizes that are new are prepared for
        forward, whole = step(batch)
    return replace(found, seconds=whole / batch, forward_seconds=forward / batch)


def _now(where: torch.device) -> float:
    if where.type == "cuda":
        torch.cuda.synchronize(where)
    return time.perf_counter()


def _peak_bytes(step: Callable[[], object], where: torch.device) -> int:
    """What a step took on a GPU beside weights and gradients."""
    step()  # gradients and whatever libraries take are there
    torch.cuda.reset_peak_memory_stats(where)
    before = torch.cuda.memory_allocated(where)
    step()
    return torch.cuda.max_memory_allocated(where) - before


def _saved_bytes(passed: Callable[[], object], module: nn.Module) -> int:
    """What a forward pass leaves in memory for the backward pass, beside the weights."""
    own, found = {p.untyped_storage().data_ptr() for p in module.parameters()}, dict[int, int]()

    def saved(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            found[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(saved, lambda tensor: tensor):
        kept = passed()  # noqa: F841 - while it lives no place is used twice
    return sum(found.values())
