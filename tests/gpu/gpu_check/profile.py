"""Part 6: one step of the whole loop under the profiler: the longest kernels, the longest gaps, what waits for the device."""

import torch

from gpu_check import experiments
from gpu_check.assignment import Assignment
from gpu_check.record import Record
from gpu_check.trace import Trace
from gpu_check.train import TRACED_STEPS, traced

KERNELS, GAPS = 30, 10


def run(assignment: Assignment, record: Record, device: torch.device) -> None:
    """Trace a few steps of the full model."""
    config = experiments.full(assignment.tiny, experiments.usual_precision(device))
    bench = experiments.diffusion_bench(config, experiments.store_of(config, assignment), device, assignment.plant)
    batch_size = 4 if assignment.tiny else 64
    record.facts(batch_size=batch_size, traced_steps=TRACED_STEPS)
    with record.step("trace"):
        folder = assignment.scratch_folder / "profile"
        trainer = bench.trainer(folder, batch_size=batch_size, images=experiments.WITHOUT_END)
        enter(traced(trainer, device, assignment), record)


def enter(trace: Trace, record: Record) -> None:
    """Per step: kernels, gaps, waits."""
    record.figure("busy", trace.busy / 1000 / TRACED_STEPS, "ms a step", better="less")
    record.figure("idle, under the profiler", 100 * trace.idle_share, "%", better="less")
    kernels = [
        {"name": name, "calls": calls / TRACED_STEPS, "ms": time / 1000 / TRACED_STEPS, "%": 100 * time / trace.busy}
        for name, calls, time in trace.kernels(KERNELS)
    ]
    record.table("longest kernels, per step", kernels)
    gaps = [{"ms": gap.microseconds / 1000, "after": gap.after, "before": gap.before} for gap in trace.gaps(GAPS)]
    record.table("longest gaps", gaps)
    waits = [
        {"name": name, "calls": calls / TRACED_STEPS, "ms": time / 1000 / TRACED_STEPS}
        for name, calls, time in trace.waits()
    ]
    record.table("waits and copies, per step", waits)
    for row in waits:
        if "Synchronize" in row["name"] and row["calls"] > 1:
            record.finding(
                f"{row['name']}: {row['calls']:.1f} times a step, {row['ms']:.1f} ms; one is needed, to read the loss"
            )
