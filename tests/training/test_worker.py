"""What a worker group books, reports and raises; its stages without Ray."""

import math
import pickle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from tiny_training import tiny_config

from cddpm.config import ComputeConfig
from cddpm.data.store import SliceStore
from cddpm.errors import CddpmError, DataError, SearchError
from cddpm.reconstruct.reconstruction import Reconstruction
from cddpm.training import worker, worker_group
from cddpm.training.loop import DivergedError, Hooks
from cddpm.training.ranks import Ranks


@pytest.mark.parametrize(
    ("device", "gpus", "expected"), [("auto", 0, False), ("auto", 1, True), ("cpu", 8, False), ("cuda", 0, True)]
)
def test_device(device: Any, gpus: float, expected: bool) -> None:
    assert worker.on_gpu(ComputeConfig(device=device), gpus) is expected


@pytest.mark.parametrize(
    ("compute", "available", "fits"),
    [
        ({}, {"CPU": 2.0}, 2),
        ({"workers": 2}, {"CPU": 2.0}, 1),
        ({"workers": 2, "cpus_per_worker": 0.5}, {"CPU": 2.0}, 2),
        ({"workers": 2}, {"CPU": 64.0, "GPU": 8.0}, 4),
        ({"gpus_per_worker": 0.5}, {"CPU": 64.0, "GPU": 1.0}, 2),
        ({"device": "cpu"}, {"CPU": 3.0, "GPU": 1.0}, 3),
    ],
)
def test_how_many_fit(compute: dict[str, Any], available: dict[str, float], fits: int) -> None:
    assert worker.check_capacity(ComputeConfig(**compute), available) == fits


@pytest.mark.parametrize(
    ("compute", "available", "message"),
    [
        ({"workers": 4}, {"CPU": 2.0}, "4 workers need 4 CPU, the cluster has 2; lower compute.workers"),
        ({"device": "cuda"}, {"CPU": 2.0}, "1 workers need 1 GPU, the cluster has 0"),
        ({"workers": 2}, {"CPU": 8.0, "GPU": 1.0}, "2 workers need 2 GPU, the cluster has 1"),
    ],
)
def test_what_does_not_fit_is_told(compute: dict[str, Any], available: dict[str, float], message: str) -> None:
    with pytest.raises(SearchError, match=message):
        worker.check_capacity(ComputeConfig(**compute), available)


@pytest.mark.parametrize(
    ("objective", "value", "flagged"),
    [
        (0.25, 0.25, 2),
        (np.float32(0.5), 0.5, 2),
        (torch.tensor(0.5), 0.5, 2),
        (math.nan, 0.0, 3),
        (-math.inf, 0.0, 3),
        (None, 0.0, 3),
        ("high", 0.0, 3),
        (torch.zeros(2), 0.0, 3),
    ],
)
def test_reports_to_tune_are_finite_and_always_have_an_objective(objective: Any, value: float, flagged: int) -> None:
    metrics = {"images": 16, "val/loss": math.nan, "train/loss": math.inf, "mine": objective}
    plain = worker.plain_metrics(metrics, "mine", final=False)
    assert plain["objective"] == value
    assert plain["flagged"] == flagged
    assert plain["images"] == 16.0
    assert all(type(v) is float and math.isfinite(v) for v in plain.values())


def test_a_missing_objective_is_flagged_and_counts_as_the_worst() -> None:
    assert worker.plain_metrics({"images": 1}, "mine", final=True) == {
        "images": 1.0,
        "objective": 0.0,
        "flagged": 1.0,
        "final": 1.0,
    }


def test_the_last_validation_is_not_for_the_pruner() -> None:
    config, told = tiny_config(training__images=50, training__batch_size=4), []
    report = worker._reporter(config, told.append)
    for images in (16, 32, 48):
        report({"images": images, "monitor/objective": 0.5})
    assert [metrics["images"] for metrics in told] == [16, 32]


def test_the_users_fault_is_found_among_the_ranks_failures() -> None:
    lost = RuntimeError("Connection closed by peer")
    error = SimpleNamespace(worker_failures={0: lost, 1: DivergedError("the loss became nan")})
    assert worker_group._cause(error) is error.worker_failures[1]
    told = worker_group._cause(SimpleNamespace(worker_failures={1: lost}))
    assert isinstance(told, SearchError)
    assert str(told) == "training failed: RuntimeError: Connection closed by peer"


def test_an_error_without_text_has_a_message() -> None:
    assert str(worker_group._cause(SimpleNamespace(worker_failures={0: ValueError()}))) == "training failed: ValueError"


@pytest.mark.parametrize("failure", [DivergedError("the loss became nan"), DataError("gone")])
def test_an_error_that_a_restart_would_meet_again_ends_the_training(failure: CddpmError) -> None:
    """As Ray's controller goes about it: the callback's exception is its own failure, and that is never retried."""
    from ray.train import FailureConfig, UserCallback
    from ray.train.v2._internal.callbacks.user_callback import UserCallbackHandler
    from ray.train.v2._internal.execution.callback_manager import CallbackManager
    from ray.train.v2._internal.execution.failure_handling import FailureDecision, create_failure_policy
    from ray.train.v2.api.exceptions import ControllerError, WorkerGroupError

    policy = create_failure_policy(FailureConfig(max_failures=2))
    callbacks = [worker_group._end_at_once()]
    assert all(isinstance(callback, UserCallback) for callback in callbacks)
    controller = CallbackManager([UserCallbackHandler(callbacks, None)])
    lost = RuntimeError("Connection closed by peer")
    controller.invoke("after_worker_group_poll_status", SimpleNamespace(errors={0: lost}))  # raises nothing
    assert policy.make_decision(WorkerGroupError("lost", {0: lost})) is FailureDecision.RETRY
    with pytest.raises(ControllerError) as raised:
        controller.invoke("after_worker_group_poll_status", SimpleNamespace(errors={0: lost, 1: failure}))
    assert policy.make_decision(raised.value) is FailureDecision.RAISE
    cause = worker_group._cause(pickle.loads(pickle.dumps(raised.value)))
    assert (type(cause), str(cause)) == (type(failure), str(failure))


def test_no_memory_left_is_told_whoever_says_so() -> None:
    with pytest.raises(RuntimeError) as torch_says:
        torch.empty(2**50)
    with pytest.raises(MemoryError) as numpy_says:
        np.empty(2**50)
    for error in (torch_says.value, numpy_says.value, torch.OutOfMemoryError("CUDA out of memory")):
        assert worker.out_of_memory(error)
        assert "lower training.batch_size" in worker._too_large(error)
    assert not worker.out_of_memory(RuntimeError("Connection closed by peer"))


@pytest.mark.parametrize("error", [DivergedError("nan"), DataError("gone")])
def test_errors_cross_processes(error: CddpmError) -> None:
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), str(again)) == (type(error), str(error))


@pytest.mark.slow
def test_an_assignment_is_plain_data(finished: Any, tmp_path: Path) -> None:
    job = worker.Assignment(finished.config, finished.place, 3, tmp_path / "stop", None)
    assert pickle.loads(pickle.dumps(job)) == job


@pytest.mark.slow
def test_the_stages_end_with_the_whole_validation_cohort(finished: Any, store: SliceStore) -> None:
    outcome = worker.run_stages(finished.config, finished.place, Ranks(), Hooks())
    assert outcome.made.made == ()
    cache = Reconstruction.open(outcome.reconstruction)
    wanted = [v for name in ("A", "B", "IXI") for v in store.cohort(name, "val", 0)]
    assert sorted(cache.volumes) == sorted(store.volumes[v].id for v in wanted)
    assert (cache.levels, cache.guided) == ((10, 25), True)
    assert outcome.pass_seconds is None


@pytest.mark.slow
def test_a_pass_is_timed_where_the_search_weighs_it(finished: Any) -> None:
    aims = [{"metric": "dice", "goal": "maximize"}, {"metric": "seconds_per_volume", "goal": "minimize"}]
    outcome = worker.run_stages(tiny_config(search__objectives=aims), finished.place, Ranks(), Hooks())
    assert outcome.made.made == ()
    assert 0 < outcome.pass_seconds < 30


@pytest.mark.slow
def test_without_condition_dropout_there_is_no_guidance(store_path: Path, tmp_path: Path) -> None:
    values = {"pretraining__enabled": False, "diffusion__condition_dropout": 0.0, "training__images": 4}
    config = tiny_config(**values, training__evaluations=1)
    outcome = worker.run_stages(config, worker.stages.Place(tmp_path, store_path), Ranks(), Hooks())
    assert outcome.made.encoder is None
    assert not Reconstruction.open(outcome.reconstruction).guided
