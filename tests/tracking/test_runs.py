"""The lab book on a real MLflow (SQLite). Outages of a real server: test_outage.py."""

import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mlflow import MlflowClient

from cddpm.config import ExperimentConfig, TrackingConfig, to_dict
from cddpm.errors import AwayError, TrackingError
from cddpm.tracking import names
from cddpm.tracking.delivery import Delivery
from cddpm.tracking.runs import LabBook
from cddpm.training import checkpoint

OpenBook = Callable[..., LabBook]
CONFIG = to_dict(ExperimentConfig(name="demo"))
ROWS = [{"images": 64, "train/loss": 0.5}, {"images": 128, "train/loss": 0.25, "val/loss": 0.75}]


def _points(client: MlflowClient, run_id: str, metric: str) -> list[tuple[int, float]]:
    return [(point.step, point.value) for point in client.get_metric_history(run_id, metric)]


def _one_trial(book: LabBook) -> str:
    parent = book.parent("demo", CONFIG, {}, params={"training.images": 9})
    return book.trial(parent, 3, {"training.learning_rate": 1e-3}, {"colour": "red"})


@pytest.mark.slow
def test_runs_are_found_by_their_tags(open_book: OpenBook) -> None:
    ids = []
    for _ in range(2):
        with open_book() as book:
            trial = _one_trial(book)
            ids.append((book.mlflow_id("demo"), book.mlflow_id(trial)))
            book.close(trial, "FINISHED")
            client = book.client()
    assert ids[0] == ids[1]
    parent, child = (client.get_run(run_id) for run_id in ids[0])
    assert child.data.tags[names.PARENT] == parent.info.run_id
    assert child.info.run_name == "0003 lr 0.001"
    assert child.info.status == "FINISHED"
    assert child.data.params == {"training.learning_rate": "0.001"}
    assert child.data.tags["colour"] == "red"
    assert parent.data.tags[names.KIND] == "sweep"
    assert parent.info.run_name == "demo"
    assert parent.data.params == {"training.images": "9"}
    assert child.data.tags[names.TRIAL] == "3"
    assert len(client.search_runs([parent.info.experiment_id])) == 2


@pytest.mark.slow
def test_a_table_is_found_by_mlflow(open_book: OpenBook, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "points.json").write_text('{"columns": ["number", "objective"], "data": [[0, 0.5], [1, 0.75]]}')
    with open_book() as book:
        trial = _one_trial(book)
        book.log_table(trial, tmp_path / "points.json")
        client, run_id = book.client(), book.mlflow_id(trial)
        assert book.flush(30) == 0
        monkeypatch.setattr(
            "mlflow.tracking._tracking_service.utils._tracking_uri", book.uri
        )  # where it looks for runs
    experiment = client.get_run(run_id).info.experiment_id
    table = client.load_table(experiment, "points.json", run_ids=[run_id], extra_columns=["run_id"])
    assert table["objective"].tolist() == [0.5, 0.75]
    assert set(table["run_id"]) == {run_id}


@pytest.mark.slow
def test_a_resumed_run_is_reopened_and_keeps_its_params(open_book: OpenBook, caplog: pytest.LogCaptureFixture) -> None:
    with open_book() as book:
        book.close(_one_trial(book), "KILLED")
    with open_book() as book:
        trial = book.trial(
            book.parent("demo", CONFIG, {}), 3, {"training.learning_rate": 2.0, "training.images": 7}, {}
        )
        assert book.flush(60) == 0
        run = book.client().get_run(book.mlflow_id(trial))
    assert run.info.status == "RUNNING"
    assert run.data.params == {"training.learning_rate": "0.001", "training.images": "7"}
    assert "param training.learning_rate stays '0.001' (now '2.0')" in caplog.text


@pytest.mark.slow
@pytest.mark.parametrize("fresh_spool", [False, True])
def test_points_are_entered_once_with_rising_steps(output_dir: Path, fresh_spool: bool) -> None:
    later = [*ROWS, {"images": 192, "train/loss": 0.125}]
    for rows, spool in ((ROWS, "spool"), (later, "other" if fresh_spool else "spool")):
        with LabBook.open(TrackingConfig(), output_dir, output_dir / spool) as book:
            trial = _one_trial(book)
            book.log_history(trial, rows)
            book.log_history(trial, rows[:1])
            run_id, client = book.mlflow_id(trial), book.client()
    assert _points(client, run_id, "train/loss") == [(64, 0.5), (128, 0.25), (192, 0.125)]
    assert _points(client, run_id, "val/loss") == [(128, 0.75)]


@pytest.mark.slow
def test_what_is_no_finite_number_becomes_a_flag(open_book: OpenBook) -> None:
    bad = {"nan": float("nan"), "inf": np.float32("inf"), "none": None, "text": "x", "many": torch.zeros(2)}
    good = {"numpy": np.float64(0.5), "tensor": torch.tensor(0.25), "whole": np.int64(3), "truth": True}
    with open_book() as book:
        trial = _one_trial(book)
        book.log_metrics(trial, {**bad, **good}, 64)
        run = book.client().get_run(book.mlflow_id(trial))
        assert book.flush(10) == 0
        run = book.client().get_run(run.info.run_id)
    assert run.data.metrics == {"numpy": 0.5, "tensor": 0.25, "whole": 3.0, "truth": 1.0}
    assert {tag for tag in run.data.tags if tag.startswith(names.NONFINITE)} == {f"{names.NONFINITE}.{n}" for n in bad}
    assert run.data.tags[f"{names.NONFINITE}.nan"] == "nan at 64"


@pytest.mark.slow
def test_files_are_kept_as_they_were(open_book: OpenBook, tmp_path: Path) -> None:
    file, folder = tmp_path / "note.txt", tmp_path / "figures"
    file.write_text("before")
    folder.mkdir()
    (folder / "one.txt").write_text("1")
    with open_book(must_answer=False) as book:
        trial = _one_trial(book)
        book.log_artifact(trial, file, "notes")
        book.log_artifact(trial, folder, "figures")
        book.log_dict(trial, {"a": [1]}, "scores/a.json")
        file.write_text("after")
        assert book.flush(10) == 0
        run_id, client = book.mlflow_id(trial), book.client()
        with pytest.raises(TrackingError, match="no such file"):
            book.log_artifact(trial, tmp_path / "absent")
    got = Path(client.download_artifacts(run_id, "", str(tmp_path)))
    assert (got / "notes" / "note.txt").read_text() == "before"
    assert (got / "figures" / "one.txt").read_text() == "1"
    assert '"a"' in (got / "scores" / "a.json").read_text()
    assert list((tmp_path / "outputs" / "spool" / "files").iterdir()) == []


def test_a_large_file_that_is_gone_is_refused_by_name(
    open_book: OpenBook, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("cddpm.tracking.runs._COPIED_BYTES", 3)
    file = tmp_path / "large.bin"
    file.write_bytes(b"1234")
    with open_book() as book:
        trial = _one_trial(book)
        assert book.flush(10) == 0
        book._sender.stop(5)
        book.log_artifact(trial, file)
    file.unlink()
    with open_book() as book:
        assert book.flush(10) == 0
        assert book.refused == 1
    assert "large.bin: this file of run demo/0003 is gone" in caplog.text


@pytest.mark.slow
def test_data_sets_are_inputs(open_book: OpenBook) -> None:
    with open_book() as book:
        trial = _one_trial(book)
        for _ in range(2):
            book.log_dataset_inputs(trial, "0123456789abcdef")
        assert book.flush(10) == 0
        run = book.client().get_run(book.mlflow_id(trial))
    assert [item.dataset.digest for item in run.inputs.dataset_inputs] == ["0123456789abcdef"]
    assert run.data.tags[names.FINGERPRINT_STORE] == "0123456789abcdef"


def test_odd_names_and_long_values_do_not_stop_anything(open_book: OpenBook) -> None:
    with open_book() as book:
        trial = book.trial(book.parent("demo", {}, {"note": "y" * 9000}, params={"a": "x" * 9000}), 0, {}, {})
        book.log_metrics(trial, {"dice@0.5": 1.0}, 1)
        assert book.flush(10) == 0
        assert book.refused == 0
        parent = book.client().get_run(book.mlflow_id("demo"))
    assert parent.data.params["a"].endswith("(is cut)")
    assert len(parent.data.tags["note"]) == 8000


@pytest.mark.slow
def test_delivering_twice_is_delivering_once(open_book: OpenBook, output_dir: Path) -> None:
    with open_book() as book:
        trial = _one_trial(book)
        book.log_history(trial, ROWS)
        book.log_dataset_inputs(trial, "0123456789abcdef")
        book.close(trial, "FAILED")
        assert book.flush(10) == 0
        run_id, client = book.mlflow_id(trial), book.client()
        before = client.get_run(run_id).to_dictionary(), _points(client, run_id, "train/loss")
        for _ in range(2):
            again = Delivery(book.client, "cddpm", book.uri)
            for entry in book._journals["demo"].entries():
                again.deliver(entry)
                again.deliver(entry)
    assert (client.get_run(run_id).to_dictionary(), _points(client, run_id, "train/loss")) == before


def test_a_run_must_be_open_here(open_book: OpenBook) -> None:
    with open_book() as book:
        with pytest.raises(ValueError, match="'absent' is not open here"):
            book.trial("absent", 0, {}, {})
        for bad in ("../x", "a b", "", ".x", "a/b"):
            with pytest.raises(ValueError, match="allowed are up to 120"):
                book.parent(bad, {}, {})


def test_the_second_sweep_of_one_name_is_refused(open_book: OpenBook) -> None:
    with open_book() as first:
        first.parent("demo", CONFIG, {})
        with open_book() as second:
            second.parent("another", CONFIG, {})
            with pytest.raises(TrackingError, match="another process is writing this sweep's journal"):
                second.parent("demo", CONFIG, {})


@pytest.mark.slow
def test_what_an_unreachable_server_missed_is_delivered_later(
    open_book: OpenBook, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def away(uri: str) -> None:
        raise AwayError(f"{uri}: does not answer")

    with monkeypatch.context() as patch:
        patch.setattr("cddpm.tracking.connection.connect", away)
        with pytest.raises(AwayError, match="does not answer"):
            open_book(must_answer=True)
        book = open_book()
        assert book.notice is not None
        assert "does not answer. The work goes on" in book.notice
        trial = _one_trial(book)
        book.log_history(trial, ROWS)
        with pytest.raises(TrackingError, match=r"has not reached MLflow within .*does not answer.* safe in"):
            book.mlflow_id(trial, timeout_seconds=0.3)
        assert book.end(timeout_seconds=0.3) == 4
    assert "4 entries wait in" in caplog.text
    with open_book() as book:
        assert book.flush(10) == 0
        client = book.client()
        (run,) = client.search_runs(["1"], f"tags.`{names.RUN}` = 'demo/0003'")
    assert _points(client, run.info.run_id, "train/loss") == [(64, 0.5), (128, 0.25)]


def test_leftovers_of_another_lab_book_are_left_alone(
    open_book: OpenBook, output_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    away = TrackingConfig(uri="http://127.0.0.1:9", experiment="cddpm")
    book = LabBook.open(away, output_dir, output_dir / "spool", must_answer=False)
    _one_trial(book)
    left = book.end(timeout_seconds=0.1)
    with open_book() as here:
        assert here.flush(5) == 0
        assert here.client().search_runs(["1"]) == []
    assert f"{left} entries wait for http://127.0.0.1:9" in caplog.text


_CHILD = """
import sys
from pathlib import Path
from cddpm.config import TrackingConfig
from cddpm.tracking.runs import LabBook
from cddpm.training import checkpoint
from cddpm.tracking.delivery import Delivery

folder, slow = Path(sys.argv[1]), float(sys.argv[2])
deliver = Delivery.deliver
def slowly(self, entry):
    import time
    deliver(self, entry)
    time.sleep(slow)  # delivered, but not yet in the bookmark: the kill falls here
Delivery.deliver = slowly
book = LabBook.open(TrackingConfig(), folder, folder / "spool")
trial = book.trial(book.parent("demo", {}, {}), 0, {"a": 1}, {})
for step in range(1, 41):
    book.log_history(trial, [{"images": step, "train/loss": 1 / step}])
print("written", flush=True)
book.flush(60)
"""


@pytest.mark.slow
def test_a_killed_driver_loses_and_doubles_nothing(output_dir: Path, open_book: OpenBook) -> None:
    command: list[Any] = [sys.executable, "-c", textwrap.dedent(_CHILD), output_dir, "0.03"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "written\n"
        child.send_signal(signal.SIGKILL)
    with open_book() as book:
        assert book._sender.undelivered() > 0
        assert book.flush(20) == 0
        client = book.client()
        (run,) = client.search_runs(["1"], f"tags.`{names.RUN}` = 'demo/0000'")
        trial = book.trial(book.parent("demo", {}, {}), 0, {"a": 1}, {})
        book.log_history(trial, [{"images": step, "train/loss": 1 / step} for step in range(1, 51)])
        assert book.mlflow_id(trial) == run.info.run_id
        assert book.flush(20) == 0
    assert _points(client, run.info.run_id, "train/loss") == [(step, 1 / step) for step in range(1, 51)]
    assert len(client.search_runs(["1"])) == 2


_WORKER = """
import os, signal, sys
from pathlib import Path
from cddpm.training import checkpoint

history = Path(sys.argv[1])
for images in range(1, 31):
    checkpoint.append_history(history, {"images": images, "train/loss": 1 / images})
with history.open("a") as stream:
    stream.write('{"images": 31, "train/l')
    stream.flush()
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.slow
def test_a_killed_workers_validations_are_entered(output_dir: Path, open_book: OpenBook) -> None:
    """A worker tells its history file, before anybody is told; the driver enters what stands there, a cut line never."""
    history = output_dir / checkpoint.HISTORY
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(_WORKER), str(history)], timeout=100, check=False)
    assert done.returncode == -signal.SIGKILL
    with open_book() as book:
        trial = _one_trial(book)
        for _ in range(2):
            book.log_history(trial, checkpoint.read_history(history))
        run_id, client = book.mlflow_id(trial), book.client()
        assert book.flush(20) == 0
    assert _points(client, run_id, "train/loss") == [(images, 1 / images) for images in range(1, 31)]
