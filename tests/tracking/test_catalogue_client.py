"""A server that does not let us in, is none or hands out bad names: told in one line, and nothing comes of it."""

import http.server
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cddpm import tracking
from cddpm.errors import ArtifactError, AwayError, TrackingError
from cddpm.tracking import package_files
from cddpm.tracking.registry import Registry

pytestmark = pytest.mark.slow

WAYS_IN = ("AUTH", "AWS_SIGV4", "CLIENT_CERT_PATH", "INSECURE_TLS", "USERNAME", "PASSWORD", "TOKEN")


@pytest.fixture(autouse=True)
def _no_way_in_of_the_desk(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in WAYS_IN:
        monkeypatch.delenv(f"MLFLOW_TRACKING_{name}", raising=False)
    for name, value in tracking._VARIABLES.items():  # as in our commands
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("HOME", str(tmp_path))


@contextmanager
def _answering(status: int, body: str, seen: list[str | None]) -> Iterator[str]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            seen.append(self.headers.get("Authorization"))
            self.send_response(status)
            self.end_headers()
            self.wfile.write(body.encode())

        do_POST = do_GET  # noqa: N815

        def log_message(self, format: str, *args: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.parametrize(
    ("status", "body", "kind", "message"),
    [
        (401, "who are you", AwayError, "401.*who are you.*Check MLFLOW_TRACKING_USERNAME"),
        (403, '{"error_code": "PERMISSION_DENIED", "message": "no"}', AwayError, "no.*Check MLFLOW_TRACKING_USER"),
        (503, "busy", AwayError, "503"),
        (404, "<html>another program</html>", TrackingError, "404.*<html>another program"),
        (200, "<html>another program</html>", AwayError, "not in a valid JSON format.*<html>another program"),
        (200, "[1]", AwayError, "not in a valid JSON format"),
    ],
)
def test_what_does_not_let_us_in_is_quoted(status: int, body: str, kind: type[TrackingError], message: str) -> None:
    with _answering(status, body, []) as uri, pytest.raises(TrackingError, match=message) as caught:
        Registry.open(uri)
    assert type(caught.value) is kind
    assert str(caught.value).startswith(f"{uri}: MLflow ")
    assert "\n" not in str(caught.value)


def test_no_password_is_shown() -> None:
    with pytest.raises(
        AwayError, match=r"http://me:\*\*\*@127\.0\.0\.1:9: the MLflow server does not answer .*Start it"
    ):
        Registry.open("http://me:secret@127.0.0.1:9")
    with _answering(403, "no", []) as uri, pytest.raises(AwayError) as caught:
        Registry.open(uri.replace("http://", "http://me:secret@"))
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("environment", "header"),
    [
        ({}, None),
        ({"MLFLOW_TRACKING_TOKEN": "t"}, "Bearer t"),
        ({"MLFLOW_TRACKING_USERNAME": "me", "MLFLOW_TRACKING_PASSWORD": "pw"}, "Basic bWU6cHc="),
        (
            {"MLFLOW_TRACKING_USERNAME": "me", "MLFLOW_TRACKING_PASSWORD": "pw", "MLFLOW_TRACKING_TOKEN": "t"},
            "Basic bWU6cHc=",
        ),
    ],
)
def test_the_way_in_is_that_of_mlflow(
    environment: dict[str, str], header: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    seen: list[str | None] = []
    with _answering(200, "{}", seen) as uri:
        Registry.open(uri)
    assert seen[-1] == header


@pytest.mark.parametrize("name", ["../x", "a/../../x", "..", "/etc/x"])
def test_a_file_of_a_server_that_climbs_out_is_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / "here").mkdir()
    answer = json.dumps({"files": [{"path": name, "is_dir": False}]})
    with (
        _answering(200, answer, []) as uri,
        pytest.raises(ArtifactError, match="MLflow refuses to fetch it: Invalid path"),
    ):
        package_files.fetch_model("mlflow-artifacts:/0/models/m-1/artifacts", tmp_path / "here", uri)
    assert not [path.name for path in tmp_path.rglob("*") if path.is_file()]
