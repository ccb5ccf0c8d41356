"""A server asked over HTTP says what its database holds, and understands what it is told."""

import http.server
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import registered
from mlflow_process import Server, running

from cddpm.errors import ArtifactError, AwayError, TrackingError
from cddpm.tracking import served_files
from cddpm.tracking import server as servers
from cddpm.tracking.address import file_uri
from cddpm.tracking.catalogue_client import CatalogueClient
from cddpm.tracking.catalogue_file import CatalogueFile
from cddpm.tracking.catalogue_server import CatalogueServer
from cddpm.tracking.registry import Registry

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def _no_way_in_of_the_desk(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in (*servers.OTHER_WAYS_IN, "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory, database: Path) -> Iterator[tuple[Server, Path]]:
    """A server over a database of 300 versions (two pages) and 600 runs."""
    folder = tmp_path_factory.mktemp("server")
    file = folder / "mlflow.db"
    file.write_bytes(database.read_bytes())
    registered.many(file, 10, 60, 300)
    with running(folder, "--backend", file_uri(file)) as server:
        yield server, file


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_server_says_what_its_database_holds(filled: tuple[Server, Path]) -> None:
    server, file = CatalogueServer(filled[0].uri), CatalogueFile(filled[1])
    assert server.model("cddpm") == file.model("cddpm")
    assert server.model("other") is None
    versions = sorted(server.versions("cddpm"), key=lambda version: version.number)
    assert versions == sorted(file.versions("cddpm"), key=lambda version: version.number)
    assert len(versions) == 300
    for count in (1, 3, 250):
        wanted = [*[version.run_id for version in versions][:count], "f" * 32]
        assert server.runs(wanted) == file.runs(wanted)
        assert len(server.runs(wanted)) == len({version.run_id for version in versions[:count]})
    model_id = versions[0].source.removeprefix("models:/")
    assert server.location(model_id) == file.location(model_id)
    assert server.location("m-" + "0" * 32) is None


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_server_keeps_what_it_is_told(filled: tuple[Server, Path]) -> None:
    server, file = CatalogueServer(filled[0].uri), CatalogueFile(filled[1])
    server.tag_model("cddpm", "note", "a 'quoted' text & more")
    server.tag_version("cddpm", 2, "note", "x")
    server.tag_version("cddpm", 3, "gone", "x")
    server.tag_version("cddpm", 3, "gone", None)
    server.set_alias("cddpm", "best_of", 1)
    server.set_alias("cddpm", "best_of", 2)
    found = file.model("cddpm")
    assert found is not None
    assert (found.tags["note"], found.aliases["best_of"]) == ("a 'quoted' text & more", 2)
    assert {v.number: v.tags.get("note") for v in file.versions("cddpm") if v.number < 4} == {1: None, 2: "x", 3: None}
    assert all("gone" not in version.tags for version in file.versions("cddpm"))
    assert server.model("cddpm") == found
    with pytest.raises(TrackingError, match="no such model, version or tag"):
        server.set_alias("cddpm", "best_of", 999)
    with pytest.raises(TrackingError, match="MLflow refuses: 400"):
        server.set_alias("cddpm", "not an alias!", 1)


@contextmanager
def _answering(status: int, body: str, seen: list[str | None]) -> Iterator[str]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            seen.append(self.headers.get("Authorization"))
            self.send_response(status)
            self.end_headers()
            self.wfile.write(body.encode())

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
        (403, '{"error_code": "PERMISSION_DENIED", "message": "no"}', AwayError, "403 no.*Check MLFLOW_TRACKING_USER"),
        (503, "busy", AwayError, "503.*busy"),
        (
            404,
            "<html>another program</html>",
            TrackingError,
            "404 no answer of an MLflow server: <html>another program",
        ),
        (200, "<html>another program</html>", TrackingError, "200 no answer of an MLflow server"),
        (200, "[1]", TrackingError, "200 no answer of an MLflow server"),
    ],
)
def test_what_does_not_let_us_in_is_quoted(
    status: int, body: str, kind: type[TrackingError], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(servers._TRIES, "backoff_factor", 0.01)
    with _answering(status, body, []) as uri, pytest.raises(TrackingError, match=message) as caught:
        CatalogueServer(uri)
    assert type(caught.value) is kind
    assert str(caught.value).startswith(f"{uri}: MLflow refuses: ")


def test_a_server_that_does_not_answer_is_named_without_a_password(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(servers._TRIES, "backoff_factor", 0.01)
    with pytest.raises(
        AwayError, match=r"http://me:\*\*\*@127\.0\.0\.1:9: the MLflow server does not answer .*Start it"
    ):
        CatalogueServer("http://me:secret@127.0.0.1:9")


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
        assert isinstance(Registry.open(uri)._catalogue, CatalogueServer)
    assert seen == [header]


@pytest.mark.parametrize("name", ["../x", "a/b", "..", "", "a\\b"])
def test_a_file_of_a_server_that_climbs_out_is_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / "here").mkdir()
    answer = json.dumps({"files": [{"path": name, "is_dir": False}]})
    with _answering(200, answer, []) as uri, pytest.raises(ArtifactError, match="climbs out of its folder"):
        served_files.fetch("mlflow-artifacts:/0/models/m-1/artifacts", tmp_path / "here", uri)
    assert [path.name for path in tmp_path.rglob("*")] in (["here"], ["here", "artifacts"])
    with pytest.raises(ArtifactError, match="climbs out of its folder"):
        served_files.fetch("mlflow-artifacts:/0/../x", tmp_path / "here", "http://127.0.0.1:9")


def test_only_what_the_server_hands_out_is_fetched_from_it() -> None:
    assert served_files.is_served("mlflow-artifacts:/0/a", "http://host:5000")
    assert not served_files.is_served("mlflow-artifacts://other:1/0/a", "http://host:5000")
    assert not served_files.is_served("s3://bucket/0/a", "http://host:5000")
    assert not served_files.is_served("mlflow-artifacts:/0/a", "sqlite:////a/mlflow.db")


@pytest.mark.parametrize("name", servers.OTHER_WAYS_IN)
def test_other_ways_in_are_left_to_mlflow(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert servers.is_plain("https://host")
    monkeypatch.setenv(name, "1")
    assert not servers.is_plain("https://host")


def test_credentials_in_mlflow_s_file_and_other_databases_are_left_to_mlflow(tmp_path: Path) -> None:
    assert not servers.is_plain("postgresql://host/db")
    (tmp_path / ".mlflow").mkdir()
    (tmp_path / ".mlflow/credentials").write_text("[mlflow]\n")
    assert not servers.is_plain("https://host")


def test_a_client_that_is_given_is_used(three_versions: Path) -> None:
    from cddpm.tracking import connection

    client = connection.connect(file_uri(three_versions), create=False)
    assert isinstance(Registry(client, "http://127.0.0.1:9")._catalogue, CatalogueClient)
