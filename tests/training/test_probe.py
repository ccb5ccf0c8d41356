"""What a training will take is told by a few steps: memory by what is saved, time by the clock, both as trainings need it."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_training import tiny_config

from cddpm.config import ExperimentConfig
from cddpm.training import probe

PRETRAINED = {"pretraining__enabled": True, "pretraining__batch_size": 8}


@pytest.fixture(scope="module")
def tiny() -> ExperimentConfig:
    return tiny_config(compute__workers=2, **PRETRAINED)


@pytest.fixture(scope="module")
def found(tiny: ExperimentConfig) -> probe.Probe:
    return probe.measure(tiny, "cpu")


def test_both_networks_are_measured(found: probe.Probe) -> None:
    assert not found.gpu
    assert found.device == f"{found.cpus} CPUs"
    assert 2**30 < found.memory_bytes < 2**44
    for network in (found.diffusion, found.encoder):
        assert network is not None
        assert 0 < network.forward_seconds < network.seconds < 1
        assert network.slice_bytes > 24 * 24 * 4


def test_what_is_held_whatever_the_batch_is_weights_gradients_moments_and_average(
    tiny: ExperimentConfig, found: probe.Probe
) -> None:
    module, _ = probe._diffusion(tiny)
    weights = 4 * sum(p.numel() for p in module.parameters())
    assert 5 * weights <= found.diffusion.fixed_bytes < 5 * weights + 4 * found.diffusion.slice_bytes
    alone = probe.measure(tiny_config(training__ema_decay=0.0, pretraining__enabled=False), "cpu")
    assert alone.encoder is None
    assert alone.diffusion.fixed_bytes == found.diffusion.fixed_bytes - weights


@pytest.mark.parametrize("made", [probe._diffusion, probe._spark])
@pytest.mark.parametrize("form", ["float32", "bfloat16"])
def test_each_further_slice_leaves_as_much_as_the_third(tiny: ExperimentConfig, made, form: str) -> None:  # type: ignore[no-untyped-def]
    module, inputs = made(tiny)

    def passed(batch: int) -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=form == "bfloat16"):
            loss: torch.Tensor = module(*inputs(batch))
        return loss

    two, three, seven = (probe._saved_bytes(partial(passed, batch), module) for batch in (2, 3, 7))
    assert seven == pytest.approx(two + 5 * (three - two), rel=0.05)


def test_threads_are_those_of_a_worker_and_afterwards_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr(probe, "_network", lambda *_, **__: seen.append(torch.get_num_threads()))
    before = torch.get_num_threads()
    probe.measure(tiny_config(compute__threads_per_worker=3), "cpu")
    assert set(seen) == {3}
    assert torch.get_num_threads() == before


sizes = st.integers(0, 2**40)


@given(sizes, st.integers(1, 2**33), sizes)
def test_the_largest_batch_has_room_and_one_slice_more_has_none(fixed: int, each: int, free: int) -> None:
    network = replace(probe.Network(1.0, 0.5, 0, 0), fixed_bytes=fixed, slice_bytes=each)
    most = network.largest_batch(free)
    assert most == 0 or network.step_bytes(most) <= free
    assert network.step_bytes(most + 1) > free
