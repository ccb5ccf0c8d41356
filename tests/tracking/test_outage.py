"""A real MLflow server on loopback that is killed and comes back, slow, or for the registry."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from cddpm.config import ExperimentConfig, ScoringConfig, TrackingConfig
from cddpm.errors import TrackingError
from cddpm.tracking.package import Pipeline, read_package, write_package
from cddpm.tracking.registry import Registry, register
from cddpm.tracking.runs import LabBook

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


class Server:
    """``mlflow server`` with one worker, on a port of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.uri = f"http://127.0.0.1:{self.port}"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port)]
        command += ["--workers", "1", "--backend-store-uri", f"sqlite:///{self.folder}/server.db"]
        command += ["--artifacts-destination", str(self.folder / "files")]
        environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        environment.pop("MLFLOW_TRACKING_URI", None)
        log = (self.folder / "server.log").open("ab")
        self.process = subprocess.Popen(
            command, cwd=self.folder, env=environment, stdout=log, stderr=log, start_new_session=True
        )
        self._wait(90)

    def kill(self) -> None:
        """SIGKILL to the server and its workers (its own process group)."""
        if self.process is not None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None

    def _wait(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            try:
                with urllib.request.urlopen(f"{self.uri}/health", timeout=2):
                    return
            except (urllib.error.URLError, OSError):
                time.sleep(0.2)
        pytest.fail(f"the MLflow server did not start: {(self.folder / 'server.log').read_text()[-2000:]}")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("server"))
    server.start()
    yield server
    server.kill()


def test_an_outage_costs_no_time_and_no_point(server: Server, tmp_path: Path) -> None:
    with LabBook.open(TrackingConfig(uri=server.uri, experiment="outage"), tmp_path, tmp_path / "spool") as book:
        trial = book.trial(book.parent("demo", {"a": 1}, {}), 0, {"b": 2}, {})
        slowest, restart = 0.0, threading.Thread(target=server.start)
        for step in range(1, 61):
            if step == 20:
                server.kill()
            if step == 40:
                time.sleep(3)
                restart.start()
            start = time.monotonic()
            book.log_history(trial, [{"images": step, "train/loss": 1 / step}])
            if step == 30:
                book.trial("demo", 1, {"b": 3}, {})
            slowest = max(slowest, time.monotonic() - start)
            time.sleep(0.01)
        restart.join()
        assert book.flush(60) == 0
        assert slowest < 0.5
        assert book.refused == 0
        client = book.client()
        history = client.get_metric_history(book.mlflow_id(trial), "train/loss")
        runs = client.search_runs([client.get_experiment_by_name("outage").experiment_id])
    assert [(point.step, point.value) for point in history] == [(step, 1 / step) for step in range(1, 61)]
    assert sorted(run.info.run_name for run in runs) == ["0000 b 2", "0001 b 3", "demo"]


def test_the_registry_over_http(server: Server, tmp_path: Path) -> None:
    pipeline = Pipeline(scoring=ScoringConfig(), thresholds={"all": 0.1})
    write_package(tmp_path / "package", {"w": torch.ones(3)}, ExperimentConfig(name="demo"), pipeline)
    with LabBook.open(TrackingConfig(uri=server.uri), tmp_path, tmp_path / "spool") as book:
        run = book.trial(book.parent("demo", {}, {}), 0, {}, {})
        for _ in range(2):
            assert register(book, run, tmp_path / "package", {"val/dice": 0.5}, {}) == 1
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
        with pytest.raises(TrackingError, match=r"does not answer .*Start it"):
            Registry.open(server.uri)
    finally:
        server.start()
