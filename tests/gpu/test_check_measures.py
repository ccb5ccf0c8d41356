"""What the GPU check measures with: hand-made traces, counted operations, planted errors, stores and experiments."""

import math
import re
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from gpu_check import agreement, cohort, experiments, plant, requirements, train
from gpu_check import device as devices
from gpu_check.agreement import Case, apart
from gpu_check.record import Record
from gpu_check.trace import Trace
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from cddpm.config import load
from cddpm.data.store import SliceStore
from cddpm.models.cddpm import ConditionedDiffusion

CPU = torch.device("cpu")


def event(category: str, name: str, start: float, length: float, lane: int = 7) -> dict[str, Any]:
    """One event of a Chrome trace, in microseconds."""
    return {"ph": "X", "cat": category, "name": name, "ts": start, "dur": length, "pid": 0, "tid": lane}


GPU_EVENTS = [
    {"ph": "M", "name": "process_name"},
    event("cpu_op", "aten::conv2d", 0, 90),
    event("cuda_runtime", "cudaLaunchKernel", 1, 2),
    event("kernel", "conv", 10, 20),
    event("kernel", "add", 25, 15, lane=8),
    event("gpu_memcpy", "Memcpy DtoH (Device -> Pageable)", 60, 5),
    event("gpu_user_annotation", "Optimizer.step", 0, 100),
    event("kernel", "conv", 70, 30),
    event("cuda_runtime", "cudaMemcpyAsync", 58, 3),
    event("cuda_runtime", "cudaStreamSynchronize", 61, 4),
]


def test_a_device_is_busy_while_it_has_any_work() -> None:
    trace = Trace.of(GPU_EVENTS, gpu=True)
    assert trace.span == 90  # from 10 to 100
    assert trace.busy == 30 + 5 + 30  # two kernels side by side from 10 to 40 count once
    assert trace.idle_share == pytest.approx(25 / 90)


def test_gaps_are_named_by_the_work_around_them_longest_first() -> None:
    gaps = Trace.of(GPU_EVENTS, gpu=True).gaps(5)
    assert [(gap.microseconds, gap.after[:6], gap.before[:6]) for gap in gaps] == [
        (20, "add", "Memcpy"),
        (5, "Memcpy", "conv"),
    ]
    assert len(Trace.of(GPU_EVENTS, gpu=True).gaps(1)) == 1


def test_kernels_are_added_up_and_waits_are_those_that_wait() -> None:
    trace = Trace.of(GPU_EVENTS, gpu=True)
    assert trace.kernels(2) == [("conv", 2, 50), ("add", 1, 15)]
    assert trace.waits() == [("Memcpy DtoH (Device -> Pageable)", 1, 5), ("cudaStreamSynchronize", 1, 4)]


def test_of_a_cpu_an_operator_counts_without_those_inside() -> None:
    nested = [event("cpu_op", "outer", 0, 100), event("cpu_op", "inner", 10, 30), event("cpu_op", "inmost", 20, 5)]
    trace = Trace.of([*nested, event("cpu_op", "outer", 120, 10)], gpu=False)
    assert trace.kernels(3) == [("outer", 2, 80), ("inner", 1, 25), ("inmost", 1, 5)]
    assert trace.busy == 110


@pytest.mark.slow
@given(st.lists(st.tuples(st.integers(0, 1000), st.integers(1, 50)), min_size=1, max_size=40))
def test_work_and_gaps_make_the_span(times: list[tuple[int, int]]) -> None:
    trace = Trace.of([event("kernel", "k", start, length) for start, length in times], gpu=True)
    assert trace.busy + sum(gap.microseconds for gap in trace.gaps(100)) == pytest.approx(trace.span)
    assert 0 <= trace.idle_share < 1
    assert trace.busy == len({t for start, length in times for t in range(start, start + length)})


def test_nothing_recorded_has_no_idle_share() -> None:
    assert math.isnan(Trace.of([], gpu=True).idle_share)


@pytest.mark.slow
def test_operations_of_one_convolution() -> None:
    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Conv2d(1, 5, 3, padding=1)

        def forward(self, slices: Tensor, t: Tensor, noise: Tensor) -> Tensor:
            return self.layer(slices).mean()

    assert train.forward_operations(Plain(), (8, 6)) == 2 * 3 * 3 * 1 * 5 * 8 * 6


@pytest.mark.slow
@given(st.lists(st.integers(-1000, 1000), min_size=1, max_size=20), st.floats(0.1, 100))
def test_the_error_is_relative_and_never_hides_a_nan(values: list[int], factor: float) -> None:
    expected = torch.tensor(values, dtype=torch.float64)
    found = expected * 1.01
    assert apart(expected, expected) == 0
    assert apart(factor * found, factor * expected) == pytest.approx(0.01 if any(values) else 0.0, abs=1e-9)
    found[0] = math.nan
    assert not math.isfinite(apart(found, expected))


def test_shapes_that_differ_are_no_small_error() -> None:
    with pytest.raises(ValueError, match=r"shape \(2, 1\); \(2,\) is expected"):
        apart(torch.ones(2, 1), torch.ones(2))


class Small(nn.Module):
    """Two layers with a kink between them."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Linear(6, 8), nn.Linear(8, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(F.relu(self.first(x)))


def compared(folder: Path, planted: Any = None) -> list[dict[str, Any]]:
    """Comparisons of ``Small`` on the CPU."""
    made = Record(folder, "correct")
    case = Case("small", Small(), nn.Module.__call__, lambda m, x: m(x).square().mean(), (torch.randn(5, 6),))
    agreement.compare(made, case, CPU, planted)
    rows: list[dict[str, Any]] = made.content["comparisons"]
    return rows


def test_the_same_module_holds_in_every_way(tmp_path: Path) -> None:
    rows = compared(tmp_path)
    assert [row["name"] for row in rows if not row["held"]] == []
    assert {row["name"].split(":")[1] for row in rows} == {" output", " loss", " gradients", " worst gradient"}


def test_a_wrong_gradient_is_named_and_output_and_loss_are_not(tmp_path: Path) -> None:
    rows = compared(tmp_path, lambda module: module.first.weight.register_hook(lambda gradient: 1.1 * gradient))
    wrong = [row for row in rows if not row["held"]]
    assert {row["name"] for row in wrong} >= {"small, float32: gradients", "small, float32: worst gradient"}
    assert all("gradient" in row["name"] and "first.weight" in row["note"] for row in wrong)


def test_tf32_is_off_in_the_backward_pass_too(tmp_path: Path) -> None:
    seen = []

    def planted(module: Any) -> None:
        module.first.weight.register_hook(lambda _: seen.append(torch.backends.cudnn.allow_tf32))

    before = torch.backends.cudnn.allow_tf32
    with devices.tf32(True):
        compared(tmp_path, planted)
    assert seen == [False, False]  # float32, bfloat16
    assert torch.backends.cudnn.allow_tf32 == before


def test_a_missing_gradient_is_a_fault(tmp_path: Path) -> None:
    made = Record(tmp_path, "correct")
    case = Case("small", Small(), nn.Module.__call__, lambda m, x: m(x).mean(), (torch.randn(5, 6),))
    agreement.compare(made, case, CPU, lambda module: module.first.bias.requires_grad_(False))
    assert made.content["faults"][0] == "small, float32: gradients on one side only: first.bias"


def test_smooth_networks_are_so_only_for_a_while() -> None:
    x = torch.linspace(-3, 8, 12)
    with agreement.smooth():
        assert torch.equal(nn.ReLU6()(x), F.silu(x))
        assert torch.equal(F.relu(x), F.silu(x))
    assert torch.equal(nn.ReLU6()(x), x.clamp(0, 6))
    assert torch.equal(F.relu(x), x.clamp(min=0))


def test_no_part_of_an_enlivened_model_is_silent() -> None:
    config = experiments.full(True, "float32")
    model = agreement.enlivened(ConditionedDiffusion(config.model, config.encoder, config.diffusion))
    assert [name for name, p in model.named_parameters() if not p.any() or not p.isfinite().all()] == []
    assert plant.BROKEN in dict(model.named_parameters())


def test_the_stores_are_small_and_show_brains_with_a_lesion(tmp_path: Path) -> None:
    for size in (cohort.FULL, cohort.HALF, cohort.TINY):
        voxels = math.prod(size.shape) * (size.train + size.validation + size.unhealthy)
        assert 4 * voxels < 20e6  # float16 image, two masks of a byte
    path = cohort.made(cohort.TINY, tmp_path)
    store = SliceStore.open(path)
    assert store.slice_shape == (32, 32)
    for v in range(len(store.volumes)):
        image, brain = store.image(v).astype(np.float32), store.mask(v) > 0
        assert image.min() == 0
        assert image.max() == 1
        assert 0.05 < brain.mean() < 0.9
        assert image[brain].std() > 0.05
        assert store.segmentation(v).any() == (store.volumes[v].dataset == cohort.UNHEALTHY)
    assert cohort.made(cohort.TINY, tmp_path) == path


def test_the_networks_are_those_of_the_files() -> None:
    reference = load(experiments.CONFIGS / "reference.yaml")
    full = experiments.full(False, "bfloat16")
    assert (full.model, full.encoder) == (reference.model, reference.encoder)
    assert full.data.slice_shape == (96, 96)
    assert full.training.precision == "bfloat16"
    assert full.training.ema_decay > 0
    quickstart = load(experiments.CONFIGS / "quickstart.yaml")
    for tiny in (False, True):
        small = experiments.quickstart(tiny, "float32", steps=7)
        assert (small.model, small.encoder, small.diffusion) == (
            quickstart.model,
            quickstart.encoder,
            quickstart.diffusion,
        )
        assert small.training.images == 7 * small.training.batch_size
    assert experiments.quickstart(False, "float32").data.slice_shape == quickstart.data.slice_shape


def test_what_is_asked_for_is_all_that_it_needs_itself() -> None:
    """``--no-deps`` fetches nothing that is not named."""
    named = {line.split()[0] for line in requirements.lines() if not line.startswith("#")}
    for name in named - {"torch"}:
        try:
            asked = requires(name) or []
        except PackageNotFoundError:
            pytest.skip(f"{name} is not installed here")
        plain = [text for text in asked if "extra ==" not in text and "python_version <" not in text]
        needed = {re.split(r"[^A-Za-z0-9._-]", text)[0].lower().replace("_", "-") for text in plain}
        assert needed <= named, name
