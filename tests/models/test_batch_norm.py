"""Batch normalisation over two processes: values, gradients and buffers are those of one with the whole batch."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from two_ranks import join, launch

from cddpm.config import DiffusionConfig, EncoderConfig, ModelConfig
from cddpm.models.cddpm import ConditionedDiffusion
from cddpm.models.encoder import ResNetEncoder
from cddpm.models.spark import SparK, draw_masks
from cddpm.models.sparse import BatchNorm
from cddpm.training.ranks import Ranks

ENCODER = EncoderConfig(architecture="resnet50", width=4, max_pool=False)
UNET = ModelConfig(base_width=32, width_multipliers=(1,), residual_blocks=1, attention_head_width=32, condition_width=8)


def random(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


INPUTS: dict[str, tuple[Tensor, int]] = {
    "maps": (random(1, 5, 3, 4, 6) * 2 + 1, 3),
    "channels last": (random(2, 6, 3, 4, 4).to(memory_format=torch.channels_last), 2),
    "list of sites": (random(3, 9, 3), 2),
    "one value on a rank": (random(4, 5, 3, 1, 1), 4),
    "mean far above the spread": (1000 + 0.05 * random(5, 4, 3, 8, 8), 2),
    "float64": (random(6, 4, 3, 2, 2).double(), 1),
    "bfloat16": (random(7, 4, 3, 6, 6).bfloat16(), 2),
}
"""Whole batches, and how many samples of each the first rank sees."""


def layer(x: Tensor) -> BatchNorm:
    norm = BatchNorm(3).to(torch.float64 if x.dtype == torch.float64 else torch.float32)
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([0.5, -1.0, 2.0]))
        norm.bias.copy_(torch.tensor([1.0, 0.0, -3.0]))
    return norm


def results(norm: nn.Module, x: Tensor, slope: Tensor) -> dict[str, Tensor]:
    """What two steps give: output, gradients, buffers."""
    x = x.clone(memory_format=torch.preserve_format).requires_grad_()
    norm(x.detach().roll(1, 1))
    y = norm(x)
    (y * slope).sum().backward()
    named = {"y": y.detach(), "dx": x.grad, "dweight": norm.weight.grad, "dbias": norm.bias.grad}
    return {name: value.clone() for name, value in {**named, **norm.state_dict()}.items()}


def slope_of(x: Tensor) -> Tensor:
    return random(9, *x.shape).to(x.dtype)


def of_layers(part: Callable[[Tensor, int], Tensor]) -> dict[str, dict[str, Tensor]]:
    return {name: results(layer(x), part(x, n), part(slope_of(x), n)) for name, (x, n) in INPUTS.items()}


class EncoderLoss(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = ResNetEncoder(ENCODER, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.encoder(x).square().mean()


SLICES = random(1, 4, 1, 32, 32).sigmoid()
NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[Tensor, ...]]] = {
    "encoder": (EncoderLoss, (SLICES,)),
    "conditioned": (
        lambda: ConditionedDiffusion(UNET, ENCODER, DiffusionConfig(timesteps=20, condition_dropout=0.5, p2_gamma=0.5)),
        (SLICES, torch.tensor([3, 11, 0, 19]), random(2, 4, 1, 32, 32), torch.tensor([False, True, False, False])),
    ),
    "masked": (
        lambda: SparK(ENCODER, 16, 0.65),
        (SLICES, draw_masks(4, (2, 2), 1, torch.Generator().manual_seed(1))),
    ),
}
"""Networks whose call gives the loss, and a whole batch for each."""
CASES = [("encoder", torch.float64), ("masked", torch.float64), ("conditioned", torch.float32)]


def of_network(name: str, dtype: torch.dtype, ranks: Ranks) -> dict[str, Tensor]:
    """Gradients and buffers of one step on this process's samples of the batch."""
    make, batch = NETWORKS[name]
    module = make().to(dtype)
    for number, parameter in enumerate(module.parameters()):  # branches that start at zero would have no gradient
        nn.init.normal_(parameter, std=0.2, generator=torch.Generator().manual_seed(number))
    mine = (x.to(dtype) if x.is_floating_point() else x for x in (y[ranks.rank :: ranks.world] for y in batch))
    parallel = ranks.wrap(module)  # must live until the gradients are there
    parallel(*mine).backward()
    gradients = {f"{n}.grad": p.grad for n, p in module.named_parameters()}
    return {**gradients, **{n: b for n, b in module.named_buffers() if "running" in n or "tracked" in n}}


def rank_main(rank: int, folder: Path) -> None:
    ranks = join(rank, folder)
    found: dict[Any, Any] = {"layers": of_layers(lambda x, n: x[n:] if rank else x[:n])}
    for case in CASES:
        found[case] = of_network(*case, ranks)
    torch.save(found, folder / f"rank{rank}")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> list[dict[Any, Any]]:
    folder = tmp_path_factory.mktemp("ranks")
    assert launch(rank_main, folder) == [0, 0]
    return [torch.load(folder / f"rank{rank}") for rank in range(2)]


def error(found: Tensor, expected: Tensor) -> float:
    """Relative to the largest number."""
    return float((found.double() - expected.double()).abs().max() / expected.double().abs().max())


TOLERANCE = {"float64": 1e-12, "bfloat16": 2.0**-8, "mean far above the spread": 5e-3}
"""The last one's mean is kept to 3e-5, a thousandth of its spread; E[x^2] - E[x]^2 would have no digit right."""


@pytest.mark.slow
@pytest.mark.parametrize("name", INPUTS)
def test_a_layer_over_two_processes_is_the_layer_of_the_whole_batch(both: list[dict[Any, Any]], name: str) -> None:
    x, parts = INPUTS[name][0], [rank["layers"][name] for rank in both]
    exact, tolerance = results(layer(x.double()), x.double(), slope_of(x).double()), TOLERANCE.get(name, 1e-5)
    assert error(torch.cat([part["y"] for part in parts]), exact["y"]) < tolerance
    assert error(torch.cat([part["dx"] for part in parts]), exact["dx"]) < tolerance
    for gradient in ("dweight", "dbias"):
        assert error(parts[0][gradient] + parts[1][gradient], exact[gradient]) < tolerance
    assert parts[0]["y"].dtype == x.dtype
    for buffer in ("running_mean", "running_var", "num_batches_tracked"):
        assert torch.equal(parts[0][buffer], parts[1][buffer])
        assert error(parts[0][buffer], exact[buffer]) < min(tolerance, 1e-5)


@pytest.mark.parametrize("name", INPUTS)
def test_one_process_has_the_plain_layer_bit_for_bit(name: str) -> None:
    x = INPUTS[name][0]
    norm = layer(x)
    plain = nn.BatchNorm2d(3) if x.ndim == 4 else nn.BatchNorm1d(3)
    plain.to(norm.weight.dtype).load_state_dict(norm.state_dict())
    found, expected = results(norm, x, slope_of(x)), results(plain, x, slope_of(x))
    assert all(torch.equal(found[key], expected[key]) for key in expected)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "dtype"), CASES)
def test_two_processes_have_the_gradients_of_the_whole_batch(
    both: list[dict[Any, Any]], name: str, dtype: torch.dtype
) -> None:
    expected, found = of_network(name, dtype, Ranks()), [rank[name, dtype] for rank in both]
    assert found[0].keys() == found[1].keys() == expected.keys()
    assert all(torch.equal(found[0][key], found[1][key]) for key in expected)
    for kind in ("grad", "running_var"):
        keys = [key for key in expected if key.endswith(kind)]
        worst = error(*(torch.cat([values[key].flatten() for key in keys]) for values in (found[0], expected)))
        print(f"{name}, {dtype}: {kind}: relative error {worst:.1e}")
        assert worst < (1e-10 if dtype == torch.float64 else 1e-4)


def test_evaluation_normalises_by_the_buffers() -> None:
    norm = layer(torch.zeros(1)).eval()
    norm.running_mean.copy_(torch.tensor([1.0, 2.0, 3.0]))
    x = torch.tensor([[1.0, 2.0, 5.0]])
    assert torch.allclose(norm(x), torch.tensor([[1.0, 0.0, 1.0]]), atol=1e-4)
