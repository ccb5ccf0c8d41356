"""A real MLflow server (SQLite, PostgreSQL) that is killed and comes back, forbids, or is slow. See also test_spool.py."""

import threading
import time
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from mlflow import MlflowClient
from mlflow_process import Gate, Server, postgresql, running

from cddpm.config import ExperimentConfig, ScoringConfig, TrackingConfig
from cddpm.errors import AwayError, TrackingError
from cddpm.tracking import names
from cddpm.tracking.package import Pipeline, read_package, write_package
from cddpm.tracking.registry import Registry
from cddpm.tracking.runs import LabBook
from cddpm.tracking.values import Promised

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

STEPS = 60


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running(tmp_path_factory.mktemp("server")) as server:
        yield server


def _package(folder: Path, value: float = 1.0) -> Path:
    pipeline = Pipeline(scoring=ScoringConfig(), thresholds={"all": 0.1})
    write_package(folder, {"w": torch.full((3,), value)}, ExperimentConfig(name="demo"), pipeline)
    return folder


def _history(client: MlflowClient, run_id: str) -> list[tuple[int, float]]:
    return [(point.step, point.value) for point in client.get_metric_history(run_id, names.TRAIN_LOSS)]


@pytest.mark.parametrize("database", ["sqlite", "postgresql"])
def test_a_server_killed_in_the_middle_has_everything_in_the_end(database: str, tmp_path: Path) -> None:
    (tmp_path / "server").mkdir()
    with nullcontext("") if database == "sqlite" else postgresql() as backend:
        options = ["--backend", backend] if backend else []
        with running(tmp_path / "server", *options) as server:
            slowest = _work_through_an_outage(server, tmp_path)
            _check_nothing_is_missing_or_double(server)
    assert slowest < 4  # no entry waits for a request: this one takes as long as a slow disk does


def _work_through_an_outage(server: Server, folder: Path) -> float:
    """Write all kinds of entries; returns the longest time that one of them took."""
    slowest = 0.0
    tracking = TrackingConfig(uri=server.uri, experiment="outage")
    with LabBook.open(tracking, folder, folder / "spool") as book:
        trial = book.trial(book.parent("demo", {"a": 1}, {}, params={"a": 1}), 0, {"b": 2}, {})
        restart = threading.Thread(target=server.start)
        for step in range(1, STEPS + 1):
            if step == 20:
                server.kill()
            if step == 40:
                time.sleep(3)
                restart.start()
            start = time.monotonic()
            book.log_history(trial, [{"images": step, "train/loss": 1 / step}])
            if step in (10, 30, 50):  # before, during and after
                late = book.trial("demo", step, {"b": step}, {})
                (folder / "note.txt").write_text(f"note {step}")
                book.log_artifact(late, folder / "note.txt")
                promised = Promised("champion", f"step {step}")
                book.register(
                    late, _package(folder / f"package{step}", step), {"val/dice": 0.5}, {}, "outage", promised
                )
            slowest = max(slowest, time.monotonic() - start)
            time.sleep(0.01)
        restart.join()
        book.close("demo", "FINISHED")
        assert book.flush(100) == 0
        assert book.refused == 0
    return slowest


def _check_nothing_is_missing_or_double(server: Server) -> None:
    client = MlflowClient(server.uri, server.uri)
    experiment = client.get_experiment_by_name("outage")
    found = client.search_runs([experiment.experiment_id])
    runs = {run.data.tags[names.RUN]: run for run in found}
    assert sorted(run.data.tags[names.RUN] for run in found) == [
        "demo",
        "demo/0000",
        "demo/0010",
        "demo/0030",
        "demo/0050",
    ]
    expected = [(step, 1 / step) for step in range(1, STEPS + 1)]
    assert _history(client, runs["demo/0000"].info.run_id) == pytest.approx(expected)
    assert runs["demo"].data.params == {"a": "1"}
    assert runs["demo"].info.status == "FINISHED"
    registry = Registry.open(server.uri, "outage")
    for step in (10, 30, 50):
        run = runs[f"demo/{step:04d}"]
        assert run.data.params == {"b": str(step)}
        assert [file.path for file in client.list_artifacts(run.info.run_id)] == ["note.txt"]
        assert registry.find(f"demo/{step:04d}").run_id == run.info.run_id
    assert len(registry.versions()) == len(registry.promotions()) == 3
    assert registry.find("champion").trial_name == "demo/0050"


def test_a_server_that_forbids_or_is_slow_holds_nothing_up(server: Server, tmp_path: Path) -> None:
    gate = Gate(server)
    tracking, slowest = TrackingConfig(uri=gate.uri, experiment="gate"), 0.0
    with LabBook.open(tracking, tmp_path, tmp_path / "spool") as book:
        trial = book.trial(book.parent("gate", {}, {}), 0, {}, {})
        assert book.flush(60) == 0
        for step in range(1, STEPS + 1):
            gate.forbids, gate.seconds = 10 < step <= 30, 5.0 if step > 30 else 0.0
            start = time.monotonic()
            book.log_history(trial, [{"images": step, "train/loss": 1 / step}])
            slowest = max(slowest, time.monotonic() - start)
            time.sleep(0.05)
        before = gate.requests
        assert book.flush(0.1) > 0
        gate.seconds = 0.0
        assert book.flush(100) == 0
        assert gate.requests > before
        assert book.refused == 0
        assert slowest < 4
        history = _history(book.client(), book.mlflow_id(trial))
    gate.close()
    assert history == [(step, 1 / step) for step in range(1, STEPS + 1)]


def test_a_server_that_forbids_at_the_start_is_waited_for(server: Server, tmp_path: Path) -> None:
    gate = Gate(server)
    gate.forbids = True
    tracking = TrackingConfig(uri=gate.uri, experiment="gate")
    with LabBook.open(tracking, tmp_path, tmp_path / "spool") as book:
        assert "403" in (book.notice or "")
        book.parent("late", {}, {})
        gate.forbids = False
        assert book.flush(60) == 0
    gate.close()


def test_the_registry_over_http(server: Server, tmp_path: Path) -> None:
    with LabBook.open(TrackingConfig(uri=server.uri), tmp_path, tmp_path / "spool") as book:
        run = book.trial(book.parent("demo", {}, {}), 0, {}, {})
        for _ in range(2):
            book.register(run, _package(tmp_path / "package"), {"val/dice": 0.5}, {}, "cddpm")
        assert book.flush(60) == 0
        assert book.registered(run, "cddpm") == 1
    registry = Registry.open(server.uri)
    registry.promote("demo/0000", "champion", "the only one")
    assert registry.best()[0].aliases == ("champion",)
    pulled = registry.pull("champion", tmp_path / "pulled")
    assert torch.equal(read_package(pulled).weights["w"], torch.ones(3))


def test_a_registry_that_goes_away_is_named(server: Server) -> None:
    registry = Registry.open(server.uri)
    server.kill()
    try:
        with pytest.raises(TrackingError, match=server.uri):
            registry.versions()
        with pytest.raises(AwayError, match=r"does not answer .*Start it"):
            Registry.open(server.uri)
    finally:
        server.start()
