"""Part 3: training of the full model: the whole loop as users run it, the bare step, data and noise alone.

The whole loop is ``Trainer.run`` with its real objective, store, moving average and reading of the loss. Of the rates the
share of the device's ceiling is told (``ceilings``); three times the forward pass's operations count for a step.
"""

import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from cddpm.config import ExperimentConfig
from cddpm.models.device import memory_format
from cddpm.training.loop import Hooks, Trainer
from gpu_check import device as devices
from gpu_check import experiments
from gpu_check.assignment import Assignment
from gpu_check.ceilings import product_ceiling
from gpu_check.experiments import Bench
from gpu_check.record import Record
from gpu_check.trace import Recorder, Trace

BATCHES, TINY_BATCHES = (32, 64, 128, 256), (1, 2)
WARM_STEPS, TRACED_STEPS = 2, 2
NOMINAL_FORWARD = 149e9
"""Operations of the reference networks' forward pass of one slice of 96 x 96, as counted for the paper's comparison."""
PASSES_A_STEP = 3
"""A backward pass computes twice what the forward pass does."""
SLOW_LOADER = 0.25
"""From this share of a step on, data and noise are told as a finding."""
COMPILING_SECONDS = 150.0
"""What a compiled variant may take: the full model is translated for a GPU in a minute or two."""


@dataclass(frozen=True)
class Variant:
    """How the bare step is run."""

    batch_size: int
    layout: torch.memory_format
    compiled: bool

    @property
    def name(self) -> str:
        """Its row in the table."""
        layout = "contiguous" if self.layout == torch.contiguous_format else "channels-last"
        return f"batch {self.batch_size} {layout}{' compiled' if self.compiled else ''}"


class Rates:
    """Enters rates of one device into the record, against its ceiling."""

    def __init__(self, record: Record, ceiling: float | None, operations: float) -> None:
        self.record, self.ceiling, self.operations = record, ceiling, operations

    def bare(self, at: str, slices_per_second: float) -> None:
        """Rate of the bare step, and what it is in operations."""
        self.record.figure("bare", slices_per_second, "slices/s", at)
        rate = slices_per_second * PASSES_A_STEP * self.operations
        self.record.figure("rate", rate / 1e12, "TFLOP/s", at)
        if self.ceiling:
            self.record.figure("share", 100 * rate / self.ceiling, "%", at)


def run(assignment: Assignment, record: Record, device: torch.device) -> None:
    """The loop at each batch size, then other ways of the bare step as long as there is time."""
    precision = experiments.usual_precision(device)
    config = experiments.full(assignment.tiny, precision)
    store = experiments.store_of(config, assignment)
    bench = experiments.diffusion_bench(config, store, device, assignment.plant)
    rates = Rates(record, product_ceiling(assignment, precision), counted(config, bench, record, assignment.tiny))
    batches = TINY_BATCHES if assignment.tiny else BATCHES
    for batch_size in batches:
        with record.step(f"batch {batch_size}"), memory_told(record, f"batch {batch_size}"):
            measure(bench, batch_size, rates, assignment)
        devices.forget_peak(device)
    with record.step("a save and a validation"):
        taken = milestone_seconds(bench, batches[0], assignment)
        record.figure("a save and a validation", taken, "s", better="less")
    for variant in variants(batches, device)[: 2 if assignment.tiny else None]:
        if assignment.left() < max(0.3 * assignment.seconds, _seconds_of(variant, device)):
            record.finding(f"{variant.name}: not measured, no time was left")
            continue
        with record.step(variant.name), memory_told(record, variant.name):
            measure_variant(bench, variant, rates, assignment)
        devices.forget_peak(device)


def counted(config: ExperimentConfig, bench: Bench, record: Record, tiny: bool) -> float:
    """Operations of the forward pass of one slice."""
    operations = forward_operations(bench.objective.module.to(bench.device), config.data.slice_shape)
    record.figure("forward pass of a slice", operations / 1e9, "GFLOP", better="neither")
    if not tiny:
        record.compare("operations of a forward pass, counted", abs(operations / NOMINAL_FORWARD - 1), 0.03)
    return operations


def forward_operations(model: nn.Module, shape: tuple[int, int]) -> float:
    """Floating point operations of the training loss of one slice (two for a multiplication with addition)."""
    device = next(model.parameters()).device
    slices, t = torch.zeros(1, 1, *shape, device=device), torch.zeros(1, dtype=torch.int64, device=device)
    model.eval()  # moments of one slice of one value do not exist
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(slices, t, slices)
    model.train()
    return float(counter.get_total_flops())


@contextmanager
def memory_told(record: Record, name: str) -> Iterator[None]:
    """Turns a GPU's lack of memory into a finding: not every card is made for every batch size."""
    try:
        yield
    except torch.OutOfMemoryError:
        record.finding(f"{name}: the device's memory is too small")


def measure(bench: Bench, batch_size: int, rates: Rates, assignment: Assignment) -> None:
    """All figures of one batch size, as users run it: the row ``batch N`` of the table."""
    record, device, at = rates.record, bench.device, f"batch {batch_size}"
    folder = assignment.scratch_folder / f"train-{batch_size}"
    trainer = bench.trainer(folder, batch_size=batch_size, images=experiments.WITHOUT_END)
    devices.forget_peak(device)
    loop = loop_seconds(trainer, assignment)
    record.figure("loop", batch_size / loop, "slices/s", at)
    record.figure("memory", devices.peak_gigabytes(device), "GB", at, better="less")
    trace = traced(trainer, device, assignment)
    record.figure("idle", 100 * max(0.0, 1 - trace.busy / 1e6 / TRACED_STEPS / loop), "%", at, better="less")
    rates.bare(at, batch_size / devices.seconds(bare_step(bench, trainer, batch_size), device, repeats=3, warm=2))
    data = devices.wall_seconds(lambda: ready(bench, batch_size), device, repeats=3)
    record.figure("data", batch_size / data, "slices/s", at)
    if data > SLOW_LOADER * loop:
        record.finding(
            f"{at}: data and noise take {100 * data / loop:.0f} % of a step of the loop "
            f"({1000 * data:.0f} of {1000 * loop:.0f} ms): the loader holds the device up"
        )


def loop_seconds(trainer: Trainer, assignment: Assignment) -> float:
    """Seconds a step of the whole loop, after the first ones."""
    fewest, most = (2, 0.0) if assignment.tiny else (10, 6.0)
    times: list[float] = []

    def after_step(made: int, loss: float) -> bool:
        times.append(time.perf_counter())  # the loss was read: the device is done with the step
        return made < WARM_STEPS + fewest or times[-1] - times[0] < most

    experiments.run_steps(trainer, after_step)
    return (times[-1] - times[WARM_STEPS - 1]) / (len(times) - WARM_STEPS)


def traced(trainer: Trainer, device: torch.device, assignment: Assignment) -> Trace:
    """What the device did in a few steps of the whole loop."""
    recorder, found = Recorder(device, assignment.scratch_folder), list[Trace]()

    def after_step(made: int, loss: float) -> bool:
        if made == 1:
            recorder.start()
        if made == 1 + TRACED_STEPS:
            found.append(recorder.stop())
        return not found

    experiments.run_steps(trainer, after_step)
    return found[0]


def milestone_seconds(bench: Bench, batch_size: int, assignment: Assignment) -> float:
    """What a training spends at each of its milestones: its state is written and it is validated."""
    folder = assignment.scratch_folder / "milestone"
    trainer = bench.trainer(folder, batch_size=batch_size, images=2 * batch_size)
    times: list[float] = []
    trainer.run(Hooks(progress=lambda *_: times.append(time.perf_counter())))
    taken = time.perf_counter() - times[-1]
    shutil.rmtree(folder)
    return taken


def ready(bench: Bench, batch_size: int) -> tuple[Tensor | None, ...]:
    """A batch on the device, made as the loop makes it."""
    rows = np.resize(bench.rows, batch_size)
    return bench.objective.batch(rows, np.arange(batch_size))


def bare_step(
    bench: Bench, trainer: Trainer, batch_size: int, layout: torch.memory_format | None = None, compiled: bool = False
) -> Callable[[], None]:
    """One optimizer step on tensors that lie ready: no data, no noise, no moving average, nobody reads the loss."""
    device = bench.device
    batch = ready(bench, batch_size)
    if layout is not None:
        trainer.module.to(memory_format=layout)  # type: ignore[call-overload]
        batch = tuple(t if t is None or t.ndim != 4 else t.contiguous(memory_format=layout) for t in batch)
    module = torch.compile(trainer.module, backend=backend(device)) if compiled else trainer.module
    module.train()
    half = trainer.recipe.precision == "bfloat16"

    def step() -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=half):
            loss = module(*batch)
        trainer.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        trainer.optimizer.step()

    return step


def backend(device: torch.device) -> str:
    """Of ``torch.compile``; on a CPU only the graph is captured: to translate it takes longer than the whole check."""
    return "inductor" if device.type == "cuda" else "eager"


def variants(batches: tuple[int, ...], device: torch.device) -> list[Variant]:
    """Other ways of the bare step, in the order of their worth; the loop runs eager in the layout of ``memory_format``."""
    usual = memory_format(device)
    other = torch.contiguous_format if usual == torch.channels_last else torch.channels_last
    middle, largest = batches[len(batches) // 2 - 1], batches[-1]
    return [
        Variant(middle, usual, compiled=True),
        Variant(middle, other, compiled=False),
        Variant(largest, usual, compiled=True),
        Variant(largest, other, compiled=False),
        Variant(middle, other, compiled=True),
    ]


def _seconds_of(variant: Variant, device: torch.device) -> float:
    """What has to be left before it is begun."""
    return COMPILING_SECONDS if variant.compiled and device.type == "cuda" else 0.0


def measure_variant(bench: Bench, variant: Variant, rates: Rates, assignment: Assignment) -> None:
    """Rate and memory of one way of the bare step, and how long the first step took (compilation)."""
    record, device = rates.record, bench.device
    torch.compiler.reset()
    trainer = bench.trainer(assignment.scratch_folder / "variant", batch_size=variant.batch_size)
    devices.forget_peak(device)
    step = bare_step(bench, trainer, variant.batch_size, variant.layout, variant.compiled)
    record.figure("first", devices.wall_seconds(step, device, repeats=1, warm=0), "s", variant.name, better="less")
    rates.bare(variant.name, variant.batch_size / devices.seconds(step, device, repeats=3, warm=2))
    record.figure("memory", devices.peak_gigabytes(device), "GB", variant.name, better="less")
