import http.server
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import mlflow
import pytest
import registered
from registered import begun_lab

from cddpm.config import TrackingConfig
from cddpm.errors import AwayError, TrackingError
from cddpm.tracking import connection

_SEVERAL = """
import os, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from cddpm.config import TrackingConfig
from registered import begun_lab, run

folder = Path(sys.argv[1])
gate, door = os.pipe()
for number in range(int(sys.argv[3])):  # forked after the imports, so that they arrive together
    if os.fork() == 0:
        os.close(door)
        os.read(gate, 1)
        shown = run(f"sweep{number}", "sweep", metrics={"objective": number})
        left = begun_lab(folder / str(number), TrackingConfig(uri=f"sqlite:///{folder}/mlflow.db"), shown).end(60)
        os._exit(left)
os.close(door)
sys.exit(sum(os.wait()[1] != 0 for _ in range(int(sys.argv[3]))))
"""


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, pytest.param(4, marks=pytest.mark.nightly)])
def test_processes_open_a_fresh_database_at_once(tmp_path: Path, count: int) -> None:
    tests = str(Path(registered.__file__).parent)
    done = subprocess.run(
        [sys.executable, "-c", _SEVERAL, str(tmp_path), tests, str(count)], capture_output=True, text=True, timeout=110
    )
    assert (done.returncode, done.stderr) == (0, "")
    client = connection.connect(connection.default_uri(tmp_path), create=False)
    (experiment,) = (e for e in client.search_experiments() if e.name == "cddpm")
    runs = client.search_runs([experiment.experiment_id])
    assert sorted(run.data.metrics["objective"] for run in runs) == list(range(count))
    assert Path(experiment.artifact_location.removeprefix("file://")) == tmp_path / "mlartifacts"


def test_a_missing_lab_book_is_not_made_by_looking(tmp_path: Path) -> None:
    with pytest.raises(TrackingError, match=r"mlflow\.db: no lab book here.*--tracking-uri"):
        connection.connect(f"sqlite:///{tmp_path}/mlflow.db", create=False)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", [b"rubbish", b"\0" * 5000])
def test_what_is_no_database_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "mlflow.db").write_bytes(content)
    with pytest.raises(TrackingError, match=r"mlflow\.db: is not a SQLite database"):
        connection.connect(connection.default_uri(tmp_path))


def test_a_folder_in_place_of_the_database_is_named(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").mkdir()
    with pytest.raises(TrackingError, match="is not a SQLite database"):
        connection.connect(connection.default_uri(tmp_path))


def test_a_damaged_database_is_named(output_dir: Path) -> None:
    file = output_dir / "mlflow.db"
    file.write_bytes(file.read_bytes()[:5000])
    with pytest.raises(TrackingError, match=r"mlflow\.db: the database is damaged"):
        connection.connect(connection.default_uri(output_dir))


def test_nobody_there(tmp_path: Path) -> None:
    tracking = TrackingConfig(uri="http://127.0.0.1:9", when_away="refuse")
    with pytest.raises(
        AwayError, match=r"http://127\.0\.0\.1:9: the MLflow server does not answer .*refused.*Start it"
    ):
        begun_lab(tmp_path, tracking)


@pytest.fixture
def forbidding() -> Iterator[str]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_error(403)

        do_POST = do_GET  # noqa: N815

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.slow
def test_a_server_that_forbids_is_quoted(forbidding: str, tmp_path: Path) -> None:
    with pytest.raises(AwayError, match=r"MLflow refuses: .*403.*MLFLOW_TRACKING_USERNAME"):
        begun_lab(tmp_path, TrackingConfig(uri=forbidding, when_away="refuse"))


@pytest.mark.parametrize("uri", ["htp://host:5000", "localhost:5000", "/srv/mlruns", "file:///srv/mlruns", ""])
def test_what_is_no_lab_book_is_never_waited_for(tmp_path: Path, uri: str) -> None:
    with pytest.raises(TrackingError, match=r"is no lab book; allowed are http://HOST:PORT.*sqlite:////.*postgresql"):
        connection.connect(uri)
    if uri:
        with pytest.raises(TrackingError, match="is no lab book"):
            begun_lab(tmp_path, TrackingConfig(uri=uri))


def test_a_database_server_that_is_away_is_named_without_its_password() -> None:
    with pytest.raises(AwayError, match=r"postgresql://me:\*\*\*@127\.0\.0\.1:9/x: the database does not answer"):
        connection.connect("postgresql://me:secret@127.0.0.1:9/x")


def test_a_deleted_experiment_is_named(output_dir: Path) -> None:
    tracking = TrackingConfig(experiment="mine")
    client = registered.publish(output_dir, tracking=tracking).connect()
    client.delete_experiment(client.get_experiment_by_name("mine").experiment_id)
    with pytest.raises(TrackingError, match="experiment 'mine' was deleted"):
        begun_lab(output_dir, tracking)


@pytest.mark.parametrize("before", [None, "http://elsewhere:5000"])
def test_the_process_wide_uri_is_put_back(
    output_dir: Path, monkeypatch: pytest.MonkeyPatch, before: str | None
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    if before:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", before)
    uri = connection.default_uri(output_dir)
    with connection.as_global(uri):
        assert mlflow.get_tracking_uri() == uri
    assert os.environ.get("MLFLOW_TRACKING_URI") == before
    assert mlflow.get_tracking_uri() != uri
    mlflow.set_tracking_uri(None)
