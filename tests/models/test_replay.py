"""Batches made ahead keep their order and their errors; losses come in order; passes give gradients anew."""

import threading
from collections.abc import Callable, Iterator

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from cddpm.models.replay import Inputs, Replay, ahead
from cddpm.training.losses import Losses

CPU, GPU = (
    torch.device("cpu"),
    torch.device("cuda"),
)  # no call here touches a GPU: the device says whether there is a thread


class BadBatchError(Exception):
    """What a call raises."""


def _calls(values: list[int], threads: set[str]) -> Iterator[Callable[[], int]]:
    def call(value: int) -> int:
        threads.add(threading.current_thread().name)
        if value < 0:
            raise BadBatchError(value)
        return value

    return (lambda value=value: call(value) for value in values)


@given(st.lists(st.integers(-1, 20), max_size=12), st.sampled_from([CPU, GPU]))
def test_what_is_made_ahead_comes_in_order_and_an_error_in_its_place(values: list[int], device: torch.device) -> None:
    threads: set[str] = set()
    found: list[int] = []
    try:
        found.extend(ahead(_calls(values, threads), device))
        failed = False
    except BadBatchError:
        failed = True
    good = values.index(-1) if -1 in values else len(values)
    assert found == values[:good]
    assert failed == (-1 in values)
    assert all(name.startswith("batches") == (device is GPU) for name in threads)


def test_a_thread_is_only_some_batches_ahead_and_ends_with_its_reader() -> None:
    made: list[int] = []
    batches = ahead((lambda i=i: made.append(i) for i in range(1000)), GPU)
    next(batches)
    batches.close()
    assert len(made) <= 4
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("batches")]


def test_losses_of_a_cpu_are_read_at_once() -> None:
    losses = Losses()
    for images in (4, 8):
        losses.put(images, torch.tensor(0.5 * images, requires_grad=True))
        assert list(losses.read()) == [(images, 0.5 * images)]
    assert list(losses.read(all_of_them=True)) == []


def test_passes_forget_the_gradients_of_before() -> None:
    layer = nn.Linear(2, 1)

    def run(inputs: Inputs) -> Tensor:
        (x,) = inputs
        assert x is not None
        loss: Tensor = layer(x).sum()
        loss.backward()
        return loss.detach()

    passes = Replay(run, recorded=False, forget=lambda: layer.zero_grad(set_to_none=True))
    for factor in (1.0, 3.0):
        passes((torch.full((1, 2), factor),))
        assert layer.weight.grad is not None
        assert layer.weight.grad.tolist() == [[factor, factor]]


def test_an_error_in_a_call_ends_the_thread() -> None:
    with pytest.raises(BadBatchError):
        list(ahead(_calls([1, -1, 2], set()), GPU))
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("batches")]
