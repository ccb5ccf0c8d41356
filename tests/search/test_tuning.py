"""Trials on a real Ray: what a trial that was stopped early still holds, and what the janitor frees."""

import json
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
import ray
from ray import tune
from ray.util.placement_group import placement_group
from small_sweep import ONE_PROCESS

from cddpm import artifact, cluster
from cddpm.cluster import internals
from cddpm.config import override, parse
from cddpm.data.layout import find_root, read_layout
from cddpm.data.store import build_store
from cddpm.models.precision import settled_for
from cddpm.search import study as studies
from cddpm.search import trial as trials
from cddpm.search import tuning
from cddpm.search.budget import Failures
from cddpm.training import stages
from cddpm.training.worker import plain_metrics

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(300)]
RELEASE_SECONDS = 15.0


class Watch:
    """Notes how trials end, and how long after an early stop all CPUs are free again."""

    def __init__(self) -> None:
        self.ends: list[tuple[int, str]] = []
        self.freed_after: float | None = None
        self._threads: list[threading.Thread] = []

    def started(self, number: int, params: dict[str, Any]) -> None:
        pass

    def reported(self, number: int, metrics: dict[str, Any]) -> None:
        pass

    def ended(self, number: int, how: str) -> None:
        self.ends.append((number, how))
        if how == "stopped":
            self._threads.append(threading.Thread(target=self._measure, args=(time.monotonic(),)))
            self._threads[-1].start()

    def _measure(self, start: float) -> None:
        total = ray.cluster_resources()["CPU"]
        while time.monotonic() - start < 2 * RELEASE_SECONDS:
            if ray.available_resources().get("CPU", 0.0) == total:
                self.freed_after = time.monotonic() - start
                return
            time.sleep(0.2)

    def join(self) -> None:
        for thread in self._threads:
            thread.join()


class First(optuna.pruners.BasePruner):
    """Gives up every trial at its first preview."""

    def prune(self, study: optuna.Study, trial: optuna.trial.FrozenTrial) -> bool:
        return True


def test_a_trial_stopped_early_holds_nothing(shared_ray: str, ten_scans: Path, tmp_path: Path) -> None:
    changes = {"output_dir": str(tmp_path), "pretraining.enabled": False, "search.training.trials": 1}
    config = settled_for(
        parse(override(ONE_PROCESS, changes, "test"), "test"), "cpu"
    )  # as a sweep does before it tunes
    root = find_root(ten_scans)
    rows = read_layout(config.data, root).rows
    place = stages.Place(tmp_path / "artifacts", build_store(config.data, root, rows, tmp_path / "artifacts", map))
    sweep = tmp_path / "sweep"
    (sweep / "ray").mkdir(parents=True)
    study, watch = studies.open_study(sweep / "study.db", config), Watch()
    study.pruner = First()

    tuning.run(config, study, sweep, place, 1, cluster.Board(), Failures(None), watch)
    watch.join()

    assert watch.ends == [(0, "stopped")]
    assert watch.freed_after is not None, "the stopped trial still holds CPUs"
    assert watch.freed_after < RELEASE_SECONDS
    stopped = json.loads((trials.folder_of(sweep, 0) / "stopped.json").read_text())
    (trial,) = study.trials
    assert trial.state.name == "PRUNED"
    assert stopped["images"] == 64
    assert trial.intermediate_values[64] == stopped["objective"]  # it may have come a little further before it was told
    saved = [int(path.name.removeprefix("images-")) for path in (tmp_path / "artifacts").rglob("images-*")]
    assert 64 <= max(saved) < 256  # where it was stopped, another sweep may go on
    assert all(g["state"] == "REMOVED" for g in ray.util.placement_group_table().values())


def _faulty(proposal: dict[str, Any], **given: Any) -> None:
    """Trial 0 has no memory left, 1 is killed as the kernel kills what has taken too much; the others have odd results."""
    number = proposal["number"]
    if number == 0:
        np.empty(2**50)
    if number == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    artifact.write_json(trials.folder_of(given["sweep"], number) / "result.json", {})
    odd: dict[str, Any] = {} if number == 2 else {"objective": float("nan")}
    tune.report(plain_metrics({"images": 10, **odd}, "objective", final=True))


def _well(proposal: dict[str, Any], **given: Any) -> None:
    artifact.write_json(trials.folder_of(given["sweep"], proposal["number"]) / "result.json", {})
    tune.report(plain_metrics({"objective": 0.5, "images": 10}, "objective", final=True))


@pytest.mark.timeout(600)
def test_equal_failures_before_any_report_end_a_start_and_the_next_goes_on(
    shared_ray: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A real trial, of a configuration that cannot be, says so and nothing else."""
    config = parse(override(ONE_PROCESS, {"search.training.trials": 3}, "test"), "test")
    study, watch = studies.open_study(tmp_path / "study.db", config), Watch()
    (tmp_path / "ray").mkdir()
    place = stages.Place(tmp_path / "artifacts", tmp_path / "store")
    failures = Failures(2)
    with monkeypatch.context() as patch:
        patch.setattr(tuning.spaces, "suggest", lambda *_: {"reconstruction.noise_levels": [5000]})
        tuning.run(config, study, tmp_path, place, 1, cluster.Board(), failures, watch)
    assert failures.met is not None
    assert "2 trials in a row failed alike (0000, 0001): trial 0: reconstruction.noise_levels: 5000" in failures.met
    assert [t.state.name for t in study.trials] == ["FAIL", "FAIL"]
    monkeypatch.setattr(tuning, "_trainable", _well)
    tuning.run(config, study, tmp_path, place, 1, cluster.Board(), Failures(2), watch)
    assert watch.ends == [(0, "failed"), (1, "failed"), (2, "finished")]


@pytest.mark.nightly
@pytest.mark.timeout(600)
def test_trials_that_raise_or_run_out_of_memory_or_find_nothing_leave_the_others_alone(
    shared_ray: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = parse(override(ONE_PROCESS, {"search.training.trials": 4}, "test"), "test")
    study, watch = studies.open_study(tmp_path / "study.db", config), Watch()
    (tmp_path / "ray").mkdir()
    monkeypatch.setattr(tuning, "_trainable", _faulty)
    place = stages.Place(tmp_path / "artifacts", tmp_path / "store")
    tuning.run(config, study, tmp_path, place, 4, cluster.Board(), Failures(3), watch)
    assert sorted(watch.ends) == [(0, "failed"), (1, "failed"), (2, "finished"), (3, "finished")]
    assert [t.state.name for t in study.trials] == ["FAIL", "FAIL", "COMPLETE", "COMPLETE"]
    assert [t.value for t in study.trials] == [None, None, 0.0, 0.0]
    said = [json.loads((trials.folder_of(tmp_path, n) / "failed.json").read_text())["error"] for n in (0, 1)]
    assert "Unable to allocate" in said[0]
    assert "process has died" in said[1]


class Creator:
    def reserve(self) -> str:
        self.group = placement_group([{"CPU": 1000}])
        name: str = self.group.id.hex()
        return name


def test_the_janitor_frees_a_pending_group_of_a_dead_actor_only(shared_ray: str) -> None:
    creator = ray.remote(num_cpus=0)(Creator).remote()
    ours = placement_group([{"CPU": 1}])
    theirs = ray.get(creator.reserve.remote())
    assert list(internals.abandoned_placement_groups()) == []
    ray.kill(creator)
    end = time.monotonic() + 10
    while not (found := list(internals.abandoned_placement_groups())) and time.monotonic() < end:
        time.sleep(0.1)
    assert found == [theirs]
    assert internals.free_abandoned() == 1
    assert ray.util.placement_group_table(ours)["state"] != "REMOVED"
    ray.util.remove_placement_group(ours)


def _double(number: int) -> int:
    if number == 7:
        raise KeyError("seven")
    return 2 * number


def test_parallel_map_keeps_order_and_errors(shared_ray: str) -> None:
    assert list(cluster.parallel_map(_double, [3, 1, 2, 5, 4, 6])) == [6, 2, 4, 10, 8, 12]
    assert list(cluster.parallel_map(_double, [])) == []
    with pytest.raises(KeyError, match="seven"):
        list(cluster.parallel_map(_double, [1, 7, 2]))
