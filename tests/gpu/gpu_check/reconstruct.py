"""Part 4: reconstruction of volumes, pretraining of the encoder, and small trainings side by side."""

from collections.abc import Sequence
from itertools import product
from statistics import fmean

import numpy as np
import torch

from cddpm.config import ExperimentConfig, with_values
from cddpm.data.store import SliceStore
from cddpm.models.cddpm import ConditionedDiffusion
from cddpm.models.device import memory_format
from cddpm.reconstruct.predict import Manner, Request, predict_volumes
from gpu_check import device as devices
from gpu_check import experiments, train
from gpu_check.assignment import Assignment
from gpu_check.experiments import Precision
from gpu_check.record import Record
from gpu_check.trainings import Training, together


def run(assignment: Assignment, record: Record, device: torch.device) -> None:
    """Each measurement by itself."""
    precision = experiments.usual_precision(device)
    config = experiments.full(assignment.tiny, precision)
    with record.step("reconstruct"):
        reconstruct(config, assignment, record, device)
    devices.forget_peak(device)
    with record.step("pretrain"):
        pretrain(config, assignment, record, device)
    devices.forget_peak(device)
    for number in (1, 2) if assignment.tiny else (1, 4):
        with record.step(f"small, {number} at once"):
            small(number, precision, assignment, record)


def reconstruct(config: ExperimentConfig, assignment: Assignment, record: Record, device: torch.device) -> None:
    """Volumes a second with all noise levels, without and with the unconditional branch, and what the networks alone take."""
    store = SliceStore.open(experiments.store_of(config, assignment), verify=False)
    model = ConditionedDiffusion(config.model, config.encoder, config.diffusion).to(device).eval()
    model.to(memory_format=memory_format(device))  # type: ignore[call-overload]
    steps = tuple(product(config.reconstruction.noise_levels, (0,)))
    record.facts(reconstructed_slices=store.image(0).shape[0], noise_levels=len(steps))
    volumes = range(1 if assignment.tiny else 24)
    for at, guided in (("c alone", False), ("c and u", True)):
        way = Manner.of(config, device, unconditional=guided)

        def predict(way=way) -> None:  # type: ignore[no-untyped-def]
            requests = (Request(f"{v}", store.image(v % len(store.volumes)), steps) for v in volumes)
            for _ in predict_volumes(model, requests, way):
                pass

        taken = devices.wall_seconds(predict, device, repeats=1 if assignment.tiny else 2)
        record.figure("volumes", len(volumes) / taken, "1/s", at)
        passes = len(volumes) * store.image(0).shape[0] * len(steps) * (2 if guided else 1)
        alone = passes / forward_rate(model, config, device)
        record.figure("networks", 100 * alone / taken, "%", at)
        record.figure("memory", devices.peak_gigabytes(device), "GB", at, better="less")


def forward_rate(model: ConditionedDiffusion, config: ExperimentConfig, device: torch.device) -> float:
    """Slices a second of the one-step prediction on tensors that lie ready."""
    batch, (height, width) = config.reconstruction.batch_size, config.data.slice_shape
    slices = torch.rand(batch, 1, height, width, device=device).to(memory_format=memory_format(device))
    noise, t = torch.randn_like(slices), torch.full((batch,), 499, device=device)
    half = config.reconstruction.precision == "bfloat16"

    def forward() -> None:
        model.predict_x0(slices, t, noise, condition)

    with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=half):
        condition = model.condition(slices)
        return batch / devices.seconds(forward, device, repeats=3)


def pretrain(config: ExperimentConfig, assignment: Assignment, record: Record, device: torch.device) -> None:
    """SparK: the whole loop, and data and masks alone."""
    bench = experiments.pretraining_bench(config, experiments.store_of(config, assignment), device)
    trainer = bench.trainer(assignment.scratch_folder / "pretrain", images=experiments.WITHOUT_END)
    batch_size, at = trainer.recipe.batch_size, f"pretrain {trainer.recipe.batch_size}"
    record.figure("loop", batch_size / train.loop_seconds(trainer, assignment), "slices/s", at)
    bare = devices.seconds(train.bare_step(bench, trainer, batch_size), device, repeats=3, warm=2)
    record.figure("bare", batch_size / bare, "slices/s", at)
    rows, positions = np.resize(bench.rows, batch_size), np.arange(batch_size)
    data = devices.wall_seconds(lambda: bench.objective.batch(rows, positions), device, repeats=3)
    record.figure("data", batch_size / data, "slices/s", at)
    record.figure("memory", devices.peak_gigabytes(device), "GB", at, better="less")


def small(number: int, precision: Precision, assignment: Assignment, record: Record) -> None:
    """Slices a second of ``number`` trainings of the quickstart's network at once, all together."""
    steps, warm = (3, 1) if assignment.tiny else (220, 20)
    config = with_values(experiments.quickstart(assignment.tiny, precision, steps), {"training.evaluations": 1})
    store = experiments.store_of(config, assignment)
    trainings = [
        Training(
            f"small {number}.{i}",
            config,
            store,
            assignment.scratch_folder / f"small-{number}-{i}",
            assignment.device,
            warm_steps=warm,
        )
        for i in range(number)
    ]
    told = together(trainings, assignment)
    rates = [rates_of(name, news) for name, news in told.items()]
    record.figure("together", sum(rates), "slices/s", f"{number} at once")
    record.figure("each", fmean(rates), "slices/s", f"{number} at once")


def rates_of(name: str, news: Sequence[tuple[str, object]]) -> float:
    """The rate that a training told. Raises ``RuntimeError`` with all that it told if there is none."""
    for what, value in news:
        if what == "rate" and isinstance(value, float):
            return value
    raise RuntimeError(f"{name}: told no rate, but {list(news)}")
