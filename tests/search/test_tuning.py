"""Trials on a real Ray: what a trial that was stopped early still holds, and what the janitor frees."""

import io
import json
import os
import signal
import threading
import time
from dataclasses import asdict
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
from cddpm.config import ExperimentConfig, override, parse
from cddpm.data.layout import find_root, read_layout
from cddpm.data.store import build_store
from cddpm.errors import SearchError
from cddpm.models.precision import settled_for
from cddpm.search import study as studies
from cddpm.search import trial as trials
from cddpm.search import tuning
from cddpm.search.display import Display
from cddpm.search.point import Point
from cddpm.text import Console
from cddpm.training import stages
from cddpm.training.worker import plain_metrics

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(300)]
RELEASE_SECONDS = 15.0


class Watch:
    """A lab book that notes how trials end, and how long after an early stop all CPUs are free again."""

    def __init__(self) -> None:
        self.ends: list[tuple[int, str]] = []
        self.freed_after: float | None = None
        self._threads: list[threading.Thread] = []

    def started(self, number: int, params: dict[str, Any], store: str) -> None:
        pass

    def wake(self) -> None:
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


def tune_on(config: ExperimentConfig, sweep: Path, place: stages.Place, fits: int, watch: Watch) -> optuna.Study:
    """Run what is missing of the sweep; gives its study."""
    (sweep / "ray").mkdir(parents=True, exist_ok=True)
    with cluster.janitor():  # as in a sweep
        tuning.run(config, sweep, place, fits, watch, Display(Console(file=io.StringIO())))
    return optuna.load_study(study_name=studies.STUDY, storage=f"sqlite:///{sweep / studies.FILE}")


class First(optuna.pruners.BasePruner):
    """Gives up every trial at its first preview."""

    def prune(self, study: optuna.Study, trial: optuna.trial.FrozenTrial) -> bool:
        return True


def test_a_trial_stopped_early_holds_nothing(
    shared_ray: str, ten_scans: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = {"output_dir": str(tmp_path), "pretraining.enabled": False, "search.training.trials": 1}
    config = settled_for(
        parse(override(ONE_PROCESS, changes, "test"), "test"), "cpu"
    )  # as a sweep does before it tunes
    root = find_root(ten_scans)
    rows = read_layout(config.data, root).rows
    place = stages.Place(tmp_path / "artifacts", build_store(config.data, root, rows, tmp_path / "artifacts", map))
    sweep, watch = tmp_path / "sweep", Watch()
    monkeypatch.setattr(studies, "pruner_of", lambda config: First())
    study = tune_on(config, sweep, place, 1, watch)
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
    _found_nothing(given["sweep"], number)
    odd: dict[str, Any] = {} if number == 2 else {"objective": float("nan")}
    tune.report(plain_metrics({"images": 10, **odd}, "objective", final=True))


def _found_nothing(sweep: Path, number: int) -> None:
    point = Point(0, {}, 0.5, {}, {}, 0.1)
    result = trials.TrialResult(number, {}, point, point, "c", None, "r", (), 1.0)
    artifact.write_json(trials.folder_of(sweep, number) / trials.RESULT, asdict(result))


def _well(proposal: dict[str, Any], **given: Any) -> None:
    _found_nothing(given["sweep"], proposal["number"])
    tune.report(plain_metrics({"objective": 0.5, "images": 10}, "objective", final=True))


@pytest.mark.timeout(600)
def test_equal_failures_before_any_report_end_a_start_and_the_next_goes_on(
    shared_ray: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A real trial, of a configuration that cannot be, says so and nothing else."""
    changes = {"search.training.trials": 3, "search.equal_failures": 2}
    config, watch = parse(override(ONE_PROCESS, changes, "test"), "test"), Watch()
    place = stages.Place(tmp_path / "artifacts", tmp_path / "store")
    alike = r"2 trials in a row failed alike \(0000, 0001\): trial 0: reconstruction\.noise_levels: 5000"
    with monkeypatch.context() as patch:
        patch.setattr(tuning.spaces, "suggest", lambda *_: {"reconstruction.noise_levels": [5000]})
        with pytest.raises(SearchError, match=alike):
            tune_on(config, tmp_path, place, 1, watch)
    monkeypatch.setattr(trials, "run", _well)
    study = tune_on(config, tmp_path, place, 1, watch)
    assert [t.state.name for t in study.trials] == ["FAIL", "FAIL", "COMPLETE"]
    assert watch.ends == [(0, "failed"), (1, "failed"), (2, "finished")]


@pytest.mark.nightly
@pytest.mark.timeout(600)
def test_trials_that_raise_or_run_out_of_memory_or_find_nothing_leave_the_others_alone(
    shared_ray: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = {"search.training.trials": 4, "search.equal_failures": 3}
    config, watch = parse(override(ONE_PROCESS, changes, "test"), "test"), Watch()
    monkeypatch.setattr(trials, "run", _faulty)
    study = tune_on(config, tmp_path, stages.Place(tmp_path / "artifacts", tmp_path / "store"), 4, watch)
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
