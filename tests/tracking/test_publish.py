"""Publishing into a real MLflow (SQLite). Outages of a real server: test_outage.py; whole sweeps: search/test_lab.py."""

import json
import shutil
import sqlite3
import uuid
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.exceptions import MlflowException
from registered import make_package, publish, registration, run

from cddpm.config import TrackingConfig
from cddpm.errors import AwayError
from cddpm.tracking import connection, names
from cddpm.tracking.mirror import MirroredFile, MirroredRun, Point, curve, rows_file
from cddpm.tracking.publish import Mirror
from cddpm.tracking.registry import Registry

ROWS = [{"images": 64, "time": 5.0, "train/loss": 0.5}, {"images": 128, "train/loss": 0.25, "val/loss": 0.75}]


def client_of(output_dir: Path) -> MlflowClient:
    return connection.connect(connection.default_uri(output_dir), create=False)


def found(output_dir: Path) -> dict[str, Run]:
    """All runs by key; each is there once."""
    client = client_of(output_dir)
    runs = client.search_runs([e.experiment_id for e in client.search_experiments()])
    keys = [run.data.tags[names.RUN] for run in runs]
    assert len(keys) == len(set(keys))
    return dict(zip(keys, runs, strict=True))


def points(output_dir: Path, shown: Run, metric: str) -> list[tuple[int, float, int]]:
    history = client_of(output_dir).get_metric_history(shown.info.run_id, metric)
    return sorted((point.step, point.value, point.timestamp) for point in history)


def sweep(**more: Any) -> MirroredRun:
    return run("demo", names.KIND_SWEEP, **more)


@pytest.mark.slow
def test_a_run_shows_all_that_is_said_of_it(output_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a")
    trial = run(
        "demo/0003",
        name="0003 lr 0.001",
        tags={"colour": "red"},
        params={"lr": "0.001"},
        points=curve(ROWS, 1.0)[0],
        metrics={"objective": 0.5},
        step=128,
        files=[
            MirroredFile("notes/b.txt", tmp_path / "a.txt"),
            rows_file("rows.json", [{"x": 1.0}, {"x": float("nan")}]),
        ],
        data={"slices t2": "0123456789abcdef"},
    )
    mirror = publish(output_dir, sweep(), trial)
    parent, child = (found(output_dir)[key] for key in ("demo", "demo/0003"))
    assert child.data.tags[names.PARENT] == parent.info.run_id
    assert (child.info.run_name, child.info.status) == ("0003 lr 0.001", "FINISHED")
    assert (child.info.start_time, child.info.end_time) == (1000, 2000)
    assert child.data.params == {"lr": "0.001"}
    assert child.data.tags["colour"] == "red"
    assert (parent.data.tags[names.KIND], child.data.tags[names.KIND]) == ("sweep", "trial")
    assert points(output_dir, child, "train/loss") == [(64, 0.5, 5000), (128, 0.25, 1000)]
    assert points(output_dir, child, "val/loss") == [(128, 0.75, 1000)]
    assert points(output_dir, child, "objective") == [(128, 0.5, 2000)]
    assert [item.dataset.digest for item in child.inputs.dataset_inputs] == ["0123456789abcdef"]
    got = Path(client_of(output_dir).download_artifacts(child.info.run_id, "", str(tmp_path)))
    assert (got / "notes" / "b.txt").read_text() == "a"
    table = {"columns": ["x"], "data": [[1.0], [None]]}
    assert json.loads((got / "rows.json").read_text()) == table
    assert json.loads(child.data.tags[names.LOGGED_ARTIFACTS]) == [{"path": "rows.json", "type": "table"}]
    assert mirror.publish([sweep(), trial]) == 0


@pytest.mark.slow
def test_what_is_there_is_not_sent_again_by_another_process(output_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = [sweep(), run("demo/0000", points=curve(ROWS, 1.0)[0], data={"d": "s"})]
    publish(output_dir, *runs)
    before = {key: shown.to_dictionary() for key, shown in found(output_dir).items()}
    for name in ("create_run", "log_batch", "log_inputs", "log_artifact", "log_text", "set_terminated", "update_run"):
        monkeypatch.delattr(MlflowClient, name)
    assert Mirror.of(TrackingConfig(), output_dir).publish(runs) == 0
    assert {key: shown.to_dictionary() for key, shown in found(output_dir).items()} == before


@pytest.mark.slow
def test_a_resumed_run_is_reopened_and_keeps_its_params(output_dir: Path) -> None:
    publish(output_dir, sweep(), run("demo/0000", status="KILLED", params={"lr": "1"}))
    again = run("demo/0000", status="RUNNING", ended=None, params={"lr": "2", "images": "7"})
    publish(output_dir, sweep(), again)
    shown = found(output_dir)["demo/0000"]
    assert shown.info.status == "RUNNING"
    assert shown.data.params == {"lr": "1", "images": "7"}


@pytest.mark.slow
def test_a_result_that_changes_is_the_latest_value(output_dir: Path) -> None:
    for value, ended in ((2.0, 3.0), (1.0, 4.0)):
        publish(output_dir, sweep(metrics={names.SECONDS: value}, step=3, ended=ended))
    assert found(output_dir)["demo"].data.metrics == {names.SECONDS: 1.0}


@pytest.mark.slow
def test_a_run_that_is_tried_again_loses_its_error(output_dir: Path) -> None:
    failed = run(
        "demo/0000", status="FAILED", tags={names.ERROR: "no", f"{names.NONFINITE}.loss": "nan at 3", "x": "1"}
    )
    publish(output_dir, sweep(), failed)
    publish(output_dir, sweep(), run("demo/0000"))
    tags = found(output_dir)["demo/0000"].data.tags
    assert {name for name in tags if name.startswith((names.ERROR, names.NONFINITE))} == set()
    assert tags["x"] == "1"


@pytest.mark.slow
def test_a_file_that_cannot_be_read_holds_no_other_run_up(output_dir: Path, tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    runs = [sweep(), run("demo/0000", files=[MirroredFile("a.txt", file)]), run("demo/0001")]
    mirror = Mirror.of(TrackingConfig(), output_dir)
    assert mirror.publish(runs) == 2
    assert mirror.missing(runs) == 1
    assert str(file) in mirror.refusals["demo/0000: files"]
    file.write_text("there")
    assert mirror.publish(runs) == 1
    assert (mirror.missing(runs), mirror.refusals) == (0, {})


@pytest.mark.slow
def test_a_server_that_lost_its_database_gets_everything_again(output_dir: Path) -> None:
    mirror = publish(output_dir, sweep(), run("demo/0000"))
    client = client_of(output_dir)
    for shown in found(output_dir).values():
        client.delete_run(shown.info.run_id)
    with sqlite3.connect(output_dir / "mlflow.db") as database:
        for table in ("tags", "params", "latest_metrics", "metrics", "runs"):
            database.execute(f"DELETE FROM {table}")
    later = [sweep(tags={"a": "1"}), run("demo/0000", tags={"a": "1"})]
    for _ in range(5):
        try:
            mirror.publish(later)
            break
        except AwayError:
            continue
    assert mirror.refusals == {}
    assert set(found(output_dir)) == {"demo", "demo/0000"}


@pytest.mark.slow
def test_two_sweeps_of_one_name_from_two_desks_are_two(output_dir: Path) -> None:
    for desk in ("one", "two"):
        publish(output_dir, replace(sweep(), campaign=desk, tags={"desk": desk}))
    client = client_of(output_dir)
    runs = client.search_runs([e.experiment_id for e in client.search_experiments()])
    assert {shown.data.tags["desk"] for shown in runs} == {"one", "two"}


def test_what_is_no_finite_number_becomes_a_flag() -> None:
    bad = {"nan": float("nan"), "inf": np.float32("inf"), "none": None, "text": "x", "many": torch.zeros(2)}
    good = {"numpy": np.float64(0.5), "tensor": torch.tensor(0.25), "whole": np.int64(3), "truth": True}
    entered, flags = curve([{**bad, **good, "images": 64}], 1.0)
    assert {point.metric: point.value for point in entered} == {
        "numpy": 0.5,
        "tensor": 0.25,
        "whole": 3.0,
        "truth": 1.0,
    }
    assert set(flags) == {f"{names.NONFINITE}.{name}" for name in bad}
    assert flags[f"{names.NONFINITE}.nan"] == "nan at 64"


@pytest.mark.parametrize("key", ["../x", "a b", "", ".x", "a/b/c", "a/", "x'y"])
def test_a_key_that_is_none_is_refused(key: str) -> None:
    with pytest.raises(ValueError, match="allowed are SWEEP and SWEEP/NAME"):
        run(key)


@pytest.mark.slow
def test_long_values_are_cut_and_say_so(output_dir: Path) -> None:
    publish(output_dir, sweep(params={"a": "x" * 9000}, tags={"note": "y" * 9000}))
    shown = found(output_dir)["demo"]
    assert shown.data.params["a"].endswith("(is cut)")
    assert len(shown.data.tags["note"]) == 8000


@pytest.mark.slow
def test_what_mlflow_never_takes_is_told_and_the_rest_goes_on(output_dir: Path, tmp_path: Path) -> None:
    gone, good = MirroredFile("gone.txt", tmp_path / "gone.txt"), MirroredFile("good.txt", "good")
    (tmp_path / "gone.txt").write_text("x")
    bad = run("demo/0000", files=[gone, good], registration=registration(make_package(tmp_path, 1), {}))
    shutil.rmtree(tmp_path / "packages")
    mirror = Mirror.of(TrackingConfig(), output_dir)
    mirror.publish([sweep(), bad, run("demo/0001")])
    assert list(mirror.refusals) == ["demo/0000: registration"]
    assert set(found(output_dir)) == {"demo", "demo/0000", "demo/0001"}
    assert names.PUBLISHED not in found(output_dir)["demo/0000"].data.tags
    assert mirror.publish([sweep(), bad]) == 0  # not over and over
    assert mirror.missing([sweep(), bad]) == 1
    make_package(tmp_path, 1)
    mirror = publish(output_dir, sweep(), bad)  # the next process tries again
    assert mirror.version(bad) == 1
    assert found(output_dir)["demo/0000"].data.tags[names.PUBLISHED] == bad.digest


# The law: whatever is lost on the way, in whichever process, in the end MLflow is like the folder

_CALLS = (
    "create_run",
    "log_batch",
    "log_inputs",
    "log_text",
    "set_terminated",
    "update_run",
    "get_metric_history",
    "search_runs",
)


class _Line:
    """A line to MLflow that loses some requests, and the answers of some."""

    def __init__(self, faults: Iterator[str]) -> None:
        self._faults = faults

    def through(self, call: Any) -> Any:
        def tried(*arguments: Any, **named: Any) -> Any:
            fault = next(self._faults, "")
            if fault == "request":
                raise MlflowException("lost")
            answer = call(*arguments, **named)
            if fault == "answer":
                raise OSError("lost")
            return answer

        return tried


@st.composite
def _lives(draw: st.DrawFn) -> list[list[MirroredRun]]:
    """How a sweep looks at a few moments, each later than the one before."""
    moments, steps = [], 0
    for moment in range(draw(st.integers(1, 3))):
        steps += draw(st.integers(0, 3))
        ended = draw(st.booleans())
        trial = run(
            "demo/0000",
            status="FINISHED" if ended else "RUNNING",
            ended=10.0 + moment if ended else None,
            tags={"moment": str(moment)},
            points=[Point("loss", 1 / step, step, 1000 * step) for step in range(1, steps + 1)],
            metrics={"objective": draw(st.sampled_from([0.25, 0.5]))} if ended else {},
            step=99,
            files=[MirroredFile("a.txt", f"{moment}")],
            data={"slices": "s1"},
        )
        moments.append([sweep(status="RUNNING", ended=None), trial])
    return moments


@pytest.fixture(scope="module")
def line_folder(tmp_path_factory: pytest.TempPathFactory, database: Path) -> Path:
    folder = tmp_path_factory.mktemp("line")
    shutil.copyfile(database, folder / "mlflow.db")
    return folder


@pytest.mark.slow
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(_lives(), st.lists(st.sampled_from(["", "", "", "request", "answer"]), max_size=40), st.booleans())
def test_in_the_end_mlflow_is_like_the_folder(
    line_folder: Path, moments: list[list[MirroredRun]], faults: list[str], one_process: bool
) -> None:
    desk = uuid.uuid4()  # not drawn: every example needs its own
    line, mirror = _Line(iter(faults)), Mirror.of(TrackingConfig(), line_folder)
    moments = [[replace(one, campaign=str(desk)) for one in runs] for runs in moments]
    with pytest.MonkeyPatch.context() as patch:
        for name in _CALLS:
            patch.setattr(MlflowClient, name, line.through(getattr(MlflowClient, name)))
        for runs in moments:
            for _ in range(50):
                try:
                    mirror.publish(runs)
                    break
                except (MlflowException, OSError):
                    mirror = mirror if one_process else Mirror.of(TrackingConfig(), line_folder)
    assert mirror.refusals == {}
    client, wanted = client_of(line_folder), moments[-1][1]
    shown = client.search_runs(
        [e.experiment_id for e in client.search_experiments()], f"tags.`{names.CAMPAIGN}` = '{desk}'"
    )
    (trial,) = (one for one in shown if one.data.tags[names.RUN] == "demo/0000")
    assert len(shown) == 2
    assert points(line_folder, trial, "loss") == [(p.step, p.value, p.time_ms) for p in wanted.points]
    assert trial.info.status == wanted.status
    assert trial.data.tags["moment"] == wanted.tags["moment"]
    assert trial.data.tags[names.PUBLISHED] == wanted.digest
    if wanted.metrics:
        assert trial.data.metrics["objective"] == wanted.metrics["objective"]
    assert len(trial.inputs.dataset_inputs) == 1
    artifact = client.download_artifacts(trial.info.run_id, "a.txt")
    assert Path(artifact).read_text() == wanted.files[0].source


@pytest.mark.slow
def test_a_version_that_another_process_registered_is_known(output_dir: Path) -> None:
    one = sweep(
        registration=registration(
            make_package(output_dir, 1), {"objective": 0.5}, alias="champion", why="w", who="me", identity="i1"
        )
    )
    publish(output_dir, one)
    later = Mirror.of(TrackingConfig(), output_dir)
    assert later.publish([one]) == 0
    assert later.version(one) == 1
    entry = later.promotion(one)
    assert entry is not None
    assert (entry.version, entry.refused, entry.who) == (1, "", "me")
    assert len(Registry.open(later.uri).promotions()) == 1
