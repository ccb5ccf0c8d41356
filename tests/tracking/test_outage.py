"""A real MLflow server (SQLite, PostgreSQL) that is killed and comes back, forbids, or is slow."""

import json
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import registered
import torch
from mlflow import MlflowClient
from mlflow_process import Gate, Server, postgresql, running
from typer.testing import CliRunner

from cddpm.cli.registry import app as registry_app
from cddpm.config import ExperimentConfig, ScoringConfig, TrackingConfig
from cddpm.errors import ArtifactError, AwayError, RefusedError, TrackingError
from cddpm.tracking import names
from cddpm.tracking.lab import Lab
from cddpm.tracking.mirror import MirroredFile, MirroredRun, Point, curve
from cddpm.tracking.package import Pipeline, read_package, write_package
from cddpm.tracking.package_files import INSIDE
from cddpm.tracking.publish import Mirror
from cddpm.tracking.registry import Registry
from cddpm.training import checkpoint

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


@pytest.mark.nightly
def test_a_server_killed_in_the_middle_has_everything_in_the_end(server: Server, tmp_path: Path) -> None:
    _work_through_an_outage(server, tmp_path)
    _check_nothing_is_missing_or_double(server)


@pytest.mark.nightly
def test_so_has_one_whose_database_is_postgresql(tmp_path: Path) -> None:
    (tmp_path / "server").mkdir()
    with postgresql() as backend, running(tmp_path / "server", "--backend", backend) as server:
        _work_through_an_outage(server, tmp_path)
        _check_nothing_is_missing_or_double(server)


class _Desk:
    """A sweep as its driver sees it: all kinds of things are added to its runs while MLflow comes and goes."""

    def __init__(self, name: str) -> None:
        self.name, self.steps, self.late, self.ended = name, 0, dict[int, MirroredRun](), False

    def runs(self) -> list[MirroredRun]:
        """As they are now."""
        whole = {"status": "RUNNING", "ended": None} if not self.ended else {}
        points = [Point(names.TRAIN_LOSS, 1 / step, step, 1000 * step) for step in range(1, self.steps + 1)]
        parent = registered.run(self.name, names.KIND_SWEEP, params={"a": "1"}, **whole)
        trial = registered.run(f"{self.name}/0000", params={"b": "2"}, points=points, **whole)
        return [parent, trial, *list(self.late.values())]


def _work_through_an_outage(server: Server, folder: Path) -> None:
    """Add all kinds of things."""
    slowest, desk = 0.0, _Desk("demo")
    mirror = Mirror(server.uri, "outage")
    with Lab(folder, mirror, desk.runs) as lab:
        lab.start(must_answer=True)
        restart = threading.Thread(target=server.start)
        for step in range(1, STEPS + 1):
            if step == 20:
                server.kill()
            if step == 40:
                time.sleep(3)
                restart.start()
            package = _package(folder / f"package{step}", step) if step in (10, 30, 50) else None
            start = time.monotonic()
            desk.steps = step
            if package:  # before, during and after
                promoted = {"alias": "champion", "why": f"step {step}", "who": "me", "identity": f"i{step}"}
                own = registered.registration(
                    package, {names.OBJECTIVE: step / 100}, "outage", **promoted, time_ms=int(1000 * time.time())
                )
                files = [MirroredFile("note.txt", f"note {step}")]
                key = f"demo/{step:04d}"
                tags = {names.TRIAL: str(step)}
                desk.late[step] = registered.run(key, tags=tags, params={"b": str(step)}, files=files, registration=own)
            lab.wake()
            slowest = max(slowest, time.monotonic() - start)
            time.sleep(0.05)
        restart.join()
        desk.ended = True
        end = time.monotonic() + 100
        while lab.flush(100) and time.monotonic() < end:
            time.sleep(0.5)  # a server that is slow to answer again is given up for now, as at the end of a sweep
        assert lab.flush(100) == 0
        assert mirror.refusals == {}
    assert slowest < 1  # nobody waits for a request


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
    assert _history(client, runs["demo/0000"].info.run_id) == expected
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
    gate, desk, slowest = Gate(server), _Desk("gate"), 0.0
    mirror = Mirror(gate.uri, "gate")
    with Lab(tmp_path, mirror, desk.runs) as lab:
        lab.start(must_answer=True)
        assert lab.flush(60) == 0
        for step in range(1, STEPS + 1):
            gate.forbids, gate.seconds = 10 < step <= 30, 5.0 if step > 30 else 0.0
            start = time.monotonic()
            desk.steps = step
            lab.wake()
            slowest = max(slowest, time.monotonic() - start)
            time.sleep(0.05)
        before = gate.requests
        assert lab.flush(0.1) > 0
        gate.seconds = 0.0
        assert lab.flush(100) == 0
        assert gate.requests > before
        assert mirror.refusals == {}
        assert slowest < 1
        history = _history(mirror.connect(), mirror.run_id(desk.runs()[1]) or "")
    gate.close()
    assert history == [(step, 1 / step) for step in range(1, STEPS + 1)]


def test_a_server_that_forbids_at_the_start_is_waited_for(server: Server, tmp_path: Path) -> None:
    gate = Gate(server)
    gate.forbids = True
    with Lab(tmp_path, Mirror(gate.uri, "gate"), _Desk("late").runs) as lab:
        lab.start(must_answer=False)
        assert "403" in (lab.away or "")
        gate.forbids = False
        assert lab.flush(60) == 0
    gate.close()


_DRIVER = """
import sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[2])
import registered
from cddpm.config import TrackingConfig
from cddpm.tracking import names
from cddpm.tracking.mirror import MirroredFile, MirroredRun, Point, curve
from cddpm.tracking.publish import Mirror
from cddpm.tracking.lab import Lab
from cddpm.training import checkpoint
from cddpm.tracking.mirror import curve
from cddpm.tracking.publish import Mirror
from cddpm.training import checkpoint

folder = Path(sys.argv[1])

def runs():
    points, _ = curve(checkpoint.timed_history(folder / "history.jsonl"), 1.0)
    return [registered.run("demo", names.KIND_SWEEP), registered.run("demo/0000", points=points)]

if __name__ == "__main__":
    mirror = Mirror.of(TrackingConfig(), folder)
    for images in range(1, 1000):
        checkpoint.append_history(folder / "history.jsonl", {"images": images, "train/loss": 1 / images})
        mirror.publish(runs())
        print(images, flush=True)
"""


@pytest.mark.parametrize("images", [pytest.param(3, marks=pytest.mark.nightly), 11])
def test_a_killed_driver_loses_and_doubles_nothing(tmp_path: Path, images: int) -> None:
    """Whatever it was doing, the folder has it; whoever publishes it next adds what is missing."""
    command: list[Any] = [sys.executable, "-c", _DRIVER, tmp_path, Path(registered.__file__).parent]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        for line in child.stdout:
            if int(line) == images:
                break
        child.send_signal(signal.SIGKILL)
    rows = checkpoint.timed_history(tmp_path / "history.jsonl")
    runs = [
        registered.run("demo", names.KIND_SWEEP),
        registered.run("demo/0000", points=curve(rows, 1.0)[0]),
    ]
    mirror = registered.publish(tmp_path, *runs)
    assert len(rows) >= images
    client = mirror.connect()
    assert _history(client, mirror.run_id(runs[1]) or "") == [(int(r["images"]), r["train/loss"]) for r in rows]
    assert len(client.search_runs([str(client.get_experiment_by_name("cddpm").experiment_id)])) == 2


def _registry(server: Server, *arguments: str) -> Any:
    """``cddpm registry ... --json`` over HTTP."""
    command = [*arguments, "--json", "--tracking-uri", server.uri]
    done = CliRunner().invoke(registry_app, command, catch_exceptions=False)
    assert done.exit_code == 0
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def filled(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Server:
    """The server with three registered versions."""
    folder = tmp_path_factory.mktemp("filled")
    runs = registered.demo(folder)
    for _ in range(2):
        mirror = registered.publish(folder, *runs, tracking=TrackingConfig(uri=server.uri))
        assert [mirror.version(run) for run in runs] == [None, 1, 2, 3]
    return server


def test_the_registry_over_http(filled: Server, tmp_path: Path) -> None:
    assert [version["number"] for version in _registry(filled, "list", "--sort", "dice")] == [2, 3, 1]
    fitting = _registry(filled, "best", "--where", "params.guidance_scale > 0.5", "--dataset", "Brats21")
    assert [version["number"] for version in fitting["versions"]] == [3, 2]
    _registry(filled, "promote", "demo/0000", "--alias", "champion", "--why", "the first")
    entry = _registry(filled, "promote", "2", "--alias", "champion", "--not-worse-than", "champion")
    assert (entry["previous"], entry["conditions"]) == (1, ["val/dice not worse than champion"])
    with pytest.raises(RefusedError, match=r"its val/dice is 0\.4000, that of version 2 is 0\.5000"):
        _registry(filled, "promote", "3", "--alias", "champion", "--not-worse-than", "champion")
    assert _registry(filled, "rollback", "champion")["version"] == 1
    pulled = _registry(filled, "pull", "champion", str(tmp_path / "pulled"))["directory"]
    assert torch.equal(read_package(Path(pulled)).weights["weight"], torch.zeros(2, 2))
    assert _registry(filled, "compare", "1", "2")["scores"][0]["against_first"][1]["p"] == 0.5
    steps = {step["kind"]: step["fingerprint"] for step in _registry(filled, "lineage", "champion")["steps"]}
    assert steps["checkpoint"] == "c1"
    _registry(filled, "archive", "3", "--why", "superseded")
    assert [version["number"] for version in _registry(filled, "list")] == [2, 1]
    _registry(filled, "restore", "3")
    assert [row["whole"] for row in _registry(filled, "verify")] == [True] * 3


def test_commands_over_http_need_neither_torch_nor_ray(filled: Server, tmp_path: Path) -> None:
    """MLflow's own client asks the server; PyTorch and Ray would take seconds more."""
    commands = [
        ["list"],
        ["best", "--where", "params.guidance_scale > 0 and metrics.dice > 0"],
        ["show", "1"],
        ["lineage", "1"],
        ["promote", "1", "--alias", "light", "--require", "dice > 0"],
        ["promote", "2", "--alias", "light", "--not-worse-than", "light"],
        ["rollback", "light"],
        ["archive", "3", "--why", "x"],
        ["restore", "3"],
        ["pull", "light", str(tmp_path / "model")],
        ["verify"],
        ["compare", "1", "2"],
    ]
    assert not {"torch", "ray"} & set(registered.imports_of(commands, "--tracking-uri", filled.uri))


def test_what_a_server_has_lost_is_named(filled: Server, tmp_path: Path) -> None:
    registry = Registry.open(filled.uri)
    for number, harm in ((2, "altered"), (3, "deleted")):
        (package,) = filled.folder.rglob(f"*/{registry.find(str(number)).model_id}/artifacts/{INSIDE}")
        if harm == "altered":
            registered.altered(package)
        else:
            shutil.rmtree(package.parents[1])
    command = ["verify", "--tracking-uri", filled.uri]
    with pytest.raises(ArtifactError, match="2 of 3 registered packages are damaged or gone") as caught:
        CliRunner().invoke(registry_app, command, catch_exceptions=False)
    assert caught.value.exit_code == 4
    for number in (2, 3):
        assert f"version {number} of 'cddpm': its registered package is damaged or gone" in str(caught.value)
        with pytest.raises(ArtifactError, match=f"version {number} of 'cddpm': .*Nothing was loaded"):
            registry.pull(str(number), tmp_path / "pulled")
    assert not (tmp_path / "pulled").exists()


def test_of_two_promotions_over_http_one_wins(filled: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    both_looked = threading.Barrier(2, timeout=100)
    monkeypatch.setattr(Registry, "verify", lambda self, version: both_looked.wait())
    outcomes: dict[str, bool] = {}

    def promote(number: str) -> None:
        try:
            Registry.open(filled.uri).promote(number, "busy", f"reason {number}")
            outcomes[number] = True
        except RefusedError:
            outcomes[number] = False

    threads = [threading.Thread(target=promote, args=(number,)) for number in ("1", "2")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    registry = Registry.open(filled.uri)
    assert sorted(outcomes.values()) == [False, True]
    assert outcomes[str(registry.find("busy").number)]
    assert {entry.why for entry in registry.promotions() if entry.alias == "busy"} == {"reason 1", "reason 2"}


def test_a_registry_that_goes_away_is_named(server: Server) -> None:
    gate = Gate(server)
    registry = Registry.open(gate.uri)
    assert registry.versions()
    gate.close()
    with pytest.raises(TrackingError, match=gate.uri):
        registry.versions()
    with pytest.raises(AwayError, match=r"does not answer .*Start it"):
        Registry.open(gate.uri)
