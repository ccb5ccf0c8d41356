"""Rows about what networks cost: noise, data, a training step, a volume's reconstruction; and the machine's ceilings beside them.

The comparison is the plain way of the same networks in the same process: float32, contiguous, one batch after the other, nothing
made ahead. Operations are counted on the networks themselves.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from cddpm.config import ExperimentConfig, load
from cddpm.data.store import SliceStore
from cddpm.models.cddpm import ConditionedDiffusion
from cddpm.models.diffusion import level_index
from cddpm.models.noise import noise, octave_field
from cddpm.models.precision import settled_for
from cddpm.reconstruct.predict import Manner, Request, predict_volumes
from cddpm.training.diffusion import STAGE, DiffusionObjective, recipe
from cddpm.training.loop import Hooks, Trainer
from cddpm.training.preview import Preview
from cddpm.training.ranks import Ranks
from speed.cohort import DATASET, FULL, HEALTHY, draw
from speed.row import Row
from speed.timing import compare, seconds, spread_of

CONFIG = Path(__file__).resolve().parents[2] / "tune_configs" / "reference.yaml"
PASSES_A_STEP = 3
"""A backward pass computes twice what the forward pass does."""


@dataclass(frozen=True)
class Sizes:
    """How much is measured, with the published networks on slices of the published size."""

    shape: tuple[int, int, int] = FULL
    batch: int = 4
    slices: int = 4
    """Of the volume that is reconstructed; its time is that of the slices, times what a volume has of them."""
    steps: int = 3
    fields: int = 4096
    repeats: int = 3
    edge: int = 2048
    small: bool = False

    def experiment(self) -> ExperimentConfig:
        """The networks of ``reference.yaml``, trained with noise per slice, augmentation and a moving average."""
        slices, height, width = self.shape
        values = {
            "data.unhealthy": [DATASET],
            "data.volume_shape": [height, width, slices],
            "data.rescale_factor": 1,
            "search.datasets": [DATASET],
            "diffusion.noise.shared": False,
            "diffusion.condition_dropout": 0.1,
            "training.batch_size": self.batch,
            "training.images": 10**6,
            "training.evaluations": 1,
            "training.ema_decay": 0.999,
            "training.keep": "last",
            "training.augmentation.enabled": True,
            "reconstruction.batch_size": self.batch,
        }
        less = {
            "encoder.architecture": "resnet18",
            "encoder.width": 8,
            "encoder.max_pool": False,
            "pretraining.enabled": False,
            "model.base_width": 16,
            "model.width_multipliers": [1, 1],
            "model.attention_head_width": 16,
        }
        return load(CONFIG, {**values, **(less if self.small else {})})


QUICK = Sizes((12, 32, 32), 2, 2, 2, 64, 2, 128, small=True)


def noise_rows(sizes: Sizes) -> Iterator[Row]:
    """Independent noise fields, one per slice."""
    config = sizes.experiment().diffusion.noise
    shape = sizes.shape[1:]
    seeds = list(range(sizes.fields))
    noise(config, seeds[:64], shape)
    taken, spread = spread_of([seconds(lambda: noise(config, seeds, shape)) for _ in range(sizes.repeats)])
    few = seeds[: min(4, sizes.fields)]

    def exact() -> list[np.ndarray]:
        return [octave_field(seed, shape, config.octaves, config.persistence, config.frequency) for seed in few]

    plain = seconds(exact) / len(few)
    ours = noise(config.model_copy(update={"standardise": False}), few, shape)[:, 0].numpy()
    apart = float(np.abs(np.stack(exact()) - ours).max())
    told = f"one core; {plain * sizes.fields / taken:,.0f} times the formula written down in NumPy, {apart:.1e} apart"
    yield Row(
        f"noise fields of {_area(sizes)}, one per slice",
        "fields/s",
        sizes.fields / taken,
        5000,
        detail=told,
        spread=spread,
    )


def data_rows(folder: Path, sizes: Sizes) -> Iterator[Row]:
    """Batches as a training makes them: read, augmented, with levels, dropped conditions and noise."""
    objective, rows = _objective(folder, sizes.experiment())
    count = 64 if not sizes.small else 8
    taken, number = [], 0
    for _ in range(sizes.repeats + 1):
        positions = np.arange(number, number + count)
        number += count
        taken.append(seconds(lambda at=positions: objective.batch(np.resize(rows, count), at)))  # type: ignore[misc]
    usual, spread = spread_of(taken[1:])
    yield Row("data with augmentation and noise", "slices/s", count / usual, 1500, detail="one thread", spread=spread)


def train_rows(folder: Path, sizes: Sizes, cores: int) -> Iterator[Row]:
    """A training step of the full model, as users run it, against the plain one."""
    config = settled_for(sizes.experiment(), "cpu")
    torch.set_num_threads(cores)
    yield from (ceilings := _Ceilings.measured(sizes, config.training.precision)).rows()
    objective, rows = _objective(folder, config)
    operations = PASSES_A_STEP * _forward_operations(objective.model, sizes)
    step = _loop_seconds(
        Trainer(STAGE, objective, recipe(config), rows, folder / "work", "bench", Ranks()), sizes.steps
    )
    data = median(
        seconds(lambda: objective.batch(np.resize(rows, sizes.batch), np.arange(sizes.batch))) for _ in range(3)
    )
    plain = _plain_step(config, sizes)
    plain()
    usual = median(seconds(plain) for _ in range(sizes.steps))
    rate = sizes.batch * operations / step
    told = (
        f"batch {sizes.batch}, {config.training.precision}, {cores} cores; {rate / 1e9:,.0f} GFLOP/s, "
        f"{100 * rate / ceilings.product:.0f} % of the product"
    )
    yield Row("training, full model", "slices/s", sizes.batch / step, detail=told)
    bar = 3.0 if config.training.precision == "bfloat16" else 0.95
    told = f"{usual:.2f} s a step in float32 against {step:.2f} s"
    yield Row("the same step the plain way", "times slower", usual / step, bar, detail=told)
    yield Row("data and noise, of a step", "%", 100 * data / step, 2.0, "at most", f"{1000 * data:.1f} ms")


def reconstruct_rows(folder: Path, sizes: Sizes, cores: int) -> Iterator[Row]:
    """One volume with three noise levels, as users reconstruct it, against the plain way."""
    config = settled_for(sizes.experiment(), "cpu")
    torch.set_num_threads(cores)
    model = ConditionedDiffusion(config.model, config.encoder, config.diffusion).eval()
    image = SliceStore.open(draw(folder, 1, sizes.shape).store, verify=False).image(0)
    slices = image[len(image) // 2 :][: sizes.slices].astype(np.float32)
    wanted = tuple((level, 0) for level in config.reconstruction.noise_levels)
    request, manner = Request("bench", slices, wanted), Manner.of(config, "cpu", unconditional=False)

    def plain() -> None:
        for level, _ in wanted:
            for start in range(0, len(slices), sizes.batch):
                part = torch.from_numpy(slices[start : start + sizes.batch]).unsqueeze(1)
                fields = noise(config.diffusion.noise, list(range(len(part))), sizes.shape[1:])
                t = torch.full((len(part),), level_index(level))
                with torch.inference_mode():
                    model.predict_x0(part, t, fields, model.condition(part))

    pair = compare(lambda: list(predict_volumes(model, [request], manner)), plain, sizes.repeats)
    whole = pair.ours_seconds * sizes.shape[0] / len(slices)
    told = f"{config.reconstruction.precision}, {cores} cores, from {len(slices)} slices; {len(wanted)} levels"
    yield Row("reconstruction of a volume", "s", whole, detail=told)
    bar = 2.0 if config.reconstruction.precision == "bfloat16" else 0.95
    yield Row("the same the plain way, in float32", "times slower", pair.ratio, bar)


@dataclass(frozen=True)
class _Ceilings:
    """What the machine can do at best: operations and bytes a second."""

    product: float
    copy: float
    precision: str

    @classmethod
    def measured(cls, sizes: Sizes, precision: str) -> "_Ceilings":
        form = torch.bfloat16 if precision == "bfloat16" else torch.float32
        a, b = (torch.randn(sizes.edge, sizes.edge).to(form) for _ in range(2))
        product = _best(lambda: torch.mm(a, b))
        source = torch.zeros(64 * sizes.edge**2 // 16, dtype=torch.uint8)
        target = torch.empty_like(source)
        return cls(2 * sizes.edge**3 / product, 2 * len(source) / _best(lambda: target.copy_(source)), precision)

    def rows(self) -> Iterator[Row]:
        yield Row(f"ceiling: product of matrices, {self.precision}", "GFLOP/s", self.product / 1e9)
        yield Row("ceiling: copy in memory", "GB/s", self.copy / 1e9)


def _best(work: Callable[[], object]) -> float:
    work()
    return min(seconds(work) for _ in range(5))


def _objective(folder: Path, config: ExperimentConfig) -> tuple[DiffusionObjective, np.ndarray]:
    width, height, slices = config.data.usual_shape
    store = SliceStore.open(draw(folder, 2, (slices, width, height)).store, verify=False)
    validation = store.slice_ids(store.cohort(HEALTHY, "val"))
    objective = DiffusionObjective(config, store, validation, Preview(config, store), torch.device("cpu"))
    return objective, store.slice_ids(store.cohort(HEALTHY, "train"), config.training.minimum_brain_fraction)


def _forward_operations(model: ConditionedDiffusion, sizes: Sizes) -> float:
    slices, t = torch.zeros(1, 1, *sizes.shape[1:]), torch.zeros(1, dtype=torch.int64)
    model.eval()  # moments of one slice of one value do not exist
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(slices, t, slices)
    model.train()
    return float(counter.get_total_flops())


class _Enough(Exception):  # noqa: N818 - not an error: what was to be seen of a training has been seen
    pass


def _loop_seconds(trainer: Trainer, steps: int) -> float:
    """Median seconds of a step of the real loop, after the first two."""
    times: list[float] = []

    def progress(stage: str, images: int, budget: int, loss: float) -> None:
        times.append(time.perf_counter())
        if len(times) >= steps + 3:
            raise _Enough

    try:
        trainer.run(Hooks(progress=progress))
    except _Enough:
        return float(median(np.diff(times)[2:]))
    raise ValueError("the training ended before enough of its steps were seen")


def _plain_step(config: ExperimentConfig, sizes: Sizes) -> Callable[[], None]:
    torch.manual_seed(0)
    model = ConditionedDiffusion(config.model, config.encoder, config.diffusion)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4)
    shape = (sizes.batch, 1, *sizes.shape[1:])
    slices, fields, t = (
        torch.rand(shape),
        torch.randn(shape),
        torch.randint(0, config.diffusion.timesteps, (sizes.batch,)),
    )

    def step() -> None:
        optimizer.zero_grad()
        model(slices, t, fields).backward()
        optimizer.step()

    return step


def _area(sizes: Sizes) -> str:
    return f"{sizes.shape[1]}x{sizes.shape[2]}"
