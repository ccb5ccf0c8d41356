"""What the device computes against float64 on the CPU: the same modules, the same numbers, in several ways.

The error of an array is the norm of the difference over the norm of what is expected. Gradients are compared all together,
and parameter by parameter, where a norm below a tenth of the whole gradient's counts as that: the gradient of a bias
before a normalisation is zero but for rounding.

Gradients are those of the same network with SiLU in place of ReLU: at ReLU's kink the last digit of a number switches a
gradient on or off, so that even float32 with float32 agrees in two digits only. Outputs and losses are the network's own.
"""

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cddpm.models.device import memory_format
from gpu_check import device as devices
from gpu_check.record import Record

FLOAT32_LIMIT, BFLOAT16_LIMIT = 1e-4, 2e-2
BATCH_NORM_FACTOR = 10
SMALLEST_SHARE = 0.1
Given = Sequence[Tensor | None]


@dataclass(frozen=True)
class Case:
    """A module and what is asked of it: ``output`` and a scalar ``loss`` of ``given``."""

    name: str
    module: nn.Module
    output: Callable[..., Tensor]
    loss: Callable[..., Tensor]
    given: Given
    normalised_by_batch: bool = False
    """Its gradients in bfloat16 are coarser: batch normalisation takes away what slices have in common, which is most."""


@dataclass(frozen=True)
class Way:
    """How the device computes, and what may come of it. ``limit`` None: listed only."""

    name: str
    limit: float | None
    bfloat16: bool = False
    tf32: bool = False

    def autocast(self, device: torch.device) -> torch.autocast:
        """Around forward passes; TF32 is a matter of backward passes too."""
        return torch.autocast(device.type, torch.bfloat16, enabled=self.bfloat16)


EXACT = Way("float32", FLOAT32_LIMIT)
HALF = Way("bf16", BFLOAT16_LIMIT, bfloat16=True)


def ways(device: torch.device, half: bool) -> list[Way]:
    """Float32 without and, on a GPU, with TF32; with ``half`` also bfloat16 autocast."""
    rounded = [Way("tf32", None, tf32=True)] if device.type == "cuda" else []
    return [EXACT, *rounded, *([HALF] if half else [])]


def apart(found: Tensor, expected: Tensor) -> float:
    """Relative error, NaN if anything is; ``expected`` zero asks for zero."""
    ours, theirs = found.detach().double().cpu(), expected.detach().double().cpu()
    if ours.shape != theirs.shape:
        raise ValueError(f"shape {tuple(ours.shape)}; {tuple(theirs.shape)} is expected")
    difference, size = float((ours - theirs).norm()), float(theirs.norm())
    if difference == 0:
        return 0.0
    return difference / size if size else math.inf


def enlivened(module: nn.Module, seed: int = 0) -> nn.Module:
    """``module`` with small random numbers where training starts from zeros, which would hide all that lies before them.

    Its last layer gets large ones. Every other weight moves a little, so that no two are alike by construction.
    """
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in module.named_parameters():
            noise = torch.randn(weight.shape, generator=random)
            if weight.ndim > 1:
                strength = 1.0 if name.startswith("unet.out.") else 0.1
                weight.add_(noise * (0.0 if weight.any() else strength / weight[0].numel() ** 0.5))
            elif name.endswith("weight"):
                weight.add_(0.05 * noise + (0.0 if weight.any() else 0.2))
            else:
                weight.add_(0.05 * noise)
    return module


def doubled(module: nn.Module) -> nn.Module:
    """A copy that computes in float64 on the CPU."""
    copied = copy.deepcopy(module).double()
    for name, part in copied.named_modules():
        if name.endswith("time_embed"):  # whose input is made as float32 whatever the weights are
            part.register_forward_pre_hook(lambda _, given: given[0].double())
    return copied


def on(device: torch.device, given: Given) -> list[Tensor | None]:
    """``given`` on the device, in the layout that training uses."""
    layout = memory_format(device)
    return [
        t
        if t is None
        else t.to(device, memory_format=layout)
        if t.ndim == 4 and t.is_floating_point()
        else t.to(device)
        for t in given
    ]


@dataclass(frozen=True)
class Results:
    """What one way gives."""

    output: Tensor
    loss: Tensor
    gradients: dict[str, Tensor]


@contextmanager
def smooth() -> Iterator[None]:
    """SiLU wherever a network asks for ReLU or ReLU6, while it lasts."""
    relu, hardtanh = F.relu, F.hardtanh
    F.relu = F.hardtanh = lambda x, *_, **__: F.silu(x)  # type: ignore[assignment]
    try:
        yield
    finally:
        F.relu, F.hardtanh = relu, hardtanh


def results(case: Case, module: nn.Module, given: Given, way: Way, device: torch.device) -> Results:
    """Output, loss and gradients of a training step of ``module``."""
    module.train()
    with devices.tf32(way.tf32):
        with way.autocast(device):
            with torch.no_grad():
                output, loss = case.output(module, *given), case.loss(module, *given)
            with smooth():
                steep = case.loss(module, *given)
        steep.backward()
    gradients = {name: p.grad for name, p in module.named_parameters() if p.grad is not None}
    return Results(output, loss, gradients)


def compare(
    record: Record,
    case: Case,
    device: torch.device,
    plant: Callable[[nn.Module], None] | None = None,
    half: bool = True,
) -> None:
    """Enter how far the device's output, loss and gradients are from float64's, in every way; ``half``: bfloat16 too."""
    doubles = [t.double() if t is not None and t.is_floating_point() else t for t in case.given]
    expected = results(case, doubled(case.module), doubles, EXACT, torch.device("cpu"))
    for way in ways(device, half):
        module = copy.deepcopy(case.module).to(device)
        module.to(memory_format=memory_format(device))  # type: ignore[call-overload]
        if plant is not None:
            plant(module)
        found = results(case, module, on(device, case.given), way, device)
        factor = BATCH_NORM_FACTOR if way.bfloat16 and case.normalised_by_batch else 1
        enter(record, f"{case.name}, {way.name}", found, expected, way, factor)


def enter(record: Record, name: str, found: Results, expected: Results, way: Way, factor: float) -> None:
    """Four comparisons of one way; ``factor`` widens the limit of gradients.

    Of bfloat16 the worst parameter is listed only: single ones are coarser than all together.
    """
    record.compare(f"{name}: output", apart(found.output, expected.output), way.limit)
    record.compare(f"{name}: loss", apart(found.loss, expected.loss), way.limit)
    missing = sorted(expected.gradients.keys() ^ found.gradients.keys())
    if missing:
        record.fault(f"{name}: gradients on one side only: {', '.join(missing[:5])}")
        return
    together, (worst, error) = gradient_errors(found.gradients, expected.gradients)
    limit = None if way.limit is None else factor * way.limit
    record.compare(f"{name}: gradients", together, limit, f"worst: {worst}")
    record.compare(f"{name}: worst gradient", error, None if way.bfloat16 else limit, worst)


def gradient_errors(found: dict[str, Tensor], expected: dict[str, Tensor]) -> tuple[float, tuple[str, float]]:
    """Error of all gradients together, and the parameter whose gradient is worst with its error."""
    differences = {name: (found[name].double().cpu() - expected[name].cpu()).norm() for name in expected}
    whole = math.hypot(*(float(g.norm()) for g in expected.values()))
    single = {
        name: float(difference) / max(float(expected[name].norm()), SMALLEST_SHARE * whole)
        for name, difference in differences.items()
    }
    unfit = [name for name, error in single.items() if not math.isfinite(error)]
    worst = unfit[0] if unfit else max(single, key=lambda name: single[name])
    return math.hypot(*(float(d) for d in differences.values())) / whole, (worst, single[worst])
