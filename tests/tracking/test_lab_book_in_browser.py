"""MLflow's own pages in Chromium after a small sweep: what a person looks for is there and can be read."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import built_sweep
import mlflow
import pytest
import torch
from browser import Browser, browser, chromium
from mlflow.entities import Run

from cddpm.search import scoring_search
from cddpm.tracking import connection, names

__all__ = ["browser", "chromium"]
pytestmark = [pytest.mark.browser, pytest.mark.nightly, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def output_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a sweep that was trained, scored, entered and registered."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("swept")
    built_sweep.trained(folder, book=True)
    return folder


@pytest.fixture(scope="module")
def address(output_dir: Path) -> Iterator[str]:
    """Of ``mlflow ui`` over the sweep's lab book, started as the README says, on a port of its own."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "ui", "--workers", "1", "--port", str(port)]
    command += ["--backend-store-uri", connection.default_uri(output_dir)]
    environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    environment.pop("MLFLOW_TRACKING_URI", None)
    log = output_dir / "ui.log"
    with log.open("w") as stream:
        server = subprocess.Popen(command, env=environment, stdout=stream, stderr=stream, start_new_session=True)
    try:
        wait_for(f"http://127.0.0.1:{port}", server, log)
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


def wait_for(address: str, server: subprocess.Popen[bytes], log: Path, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        assert server.poll() is None, f"the server ended:\n{log.read_text()[-2000:]}"
        try:
            with urllib.request.urlopen(f"{address}/health", timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)
    pytest.fail(f"no answer from {address} in {seconds} s:\n{log.read_text()[-2000:]}")


@pytest.fixture(scope="module")
def runs(output_dir: Path) -> dict[str, Run]:
    """Runs of the lab book by their key."""
    client = mlflow.MlflowClient(connection.default_uri(output_dir))
    found = client.search_runs([client.get_experiment_by_name("cddpm").experiment_id])
    return {run.data.tags[names.RUN]: run for run in found}


def look(browser: Browser, address: str, *words: str) -> None:
    """Open a page of MLflow and wait until all ``words`` can be read."""
    browser.open(address)
    read(browser, *words)


def read(browser: Browser, *words: str) -> None:
    wanted = json.dumps([" ".join(word.split()) for word in words])
    browser.wait(f"{wanted}.every((word) => document.body.innerText.replace(/\\s+/g, ' ').includes(word))", seconds=120)


def of_run(address: str, run: Run, part: str = "") -> str:
    return f"{address}/#/experiments/{run.info.experiment_id}/runs/{run.info.run_id}{part}"


def test_the_list_of_runs_has_the_sweep_with_its_trials(
    browser: Browser, address: str, runs: dict[str, Run], tmp_path: Path
) -> None:
    trials = [runs[key].info.run_name for key in ("tiny/0000", "tiny/0001")]
    page = f"{address}/#/experiments/{runs['tiny'].info.experiment_id}/runs"
    browser.resize(1280, 1800)  # the list holds only rows that are in sight
    look(browser, page, "tiny", "matching runs")
    browser.wait("document.querySelector('.ag-row button')", seconds=120)
    browser.run("document.querySelector('.ag-row button').click()")  # the sweep's own row; its children unfold
    read(browser, *trials)
    browser.picture(tmp_path / "runs.png", whole=False)


def test_the_sweeps_run_tells_what_came_of_it(
    browser: Browser, address: str, runs: dict[str, Run], tmp_path: Path
) -> None:
    look(
        browser,
        of_run(address, runs["tiny"]),
        "Description",
        "validation dice",
        "intensity threshold",
        "Registered model",
    )
    assert len(runs["tiny"].data.params) < 60
    browser.picture(tmp_path / "sweep.png", whole=False)


def test_a_trial_has_curves(browser: Browser, address: str, runs: dict[str, Run], tmp_path: Path) -> None:
    look(browser, of_run(address, runs["tiny/0000"], "/model-metrics"), "loss")
    browser.wait("document.querySelectorAll('.js-plotly-plot .main-svg').length > 0", seconds=120)
    browser.picture(tmp_path / "curves.png", whole=False)


def test_a_trial_has_a_picture(browser: Browser, address: str, runs: dict[str, Run], tmp_path: Path) -> None:
    browser.open(of_run(address, runs["tiny/0000"], f"/artifacts/{scoring_search.PICTURE}"))
    drawn = "Array.from(document.images).some((i) => i.complete && i.naturalWidth > 500 && i.naturalHeight > 200)"
    browser.wait(drawn, seconds=120)
    browser.picture(tmp_path / "picture.png", whole=False)


def test_the_registry_has_the_champion(browser: Browser, address: str, runs: dict[str, Run], tmp_path: Path) -> None:
    look(browser, f"{address}/#/models/cddpm", "Version 1", "@ champion")
    browser.picture(tmp_path / "registry.png", whole=False)
