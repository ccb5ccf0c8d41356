"""The way into a cluster: a dead address is told within seconds; a Ray of our own finds a folder and a token."""

import http.server
import logging
import os
import socket
import threading
from collections.abc import Iterator
from concurrent import futures
from pathlib import Path

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cddpm.cluster import door
from cddpm.errors import SearchError, StorageError

ONE, OTHER = "leave out --address to use this machine", "unset RAY_ADDRESS to use this machine"


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RAY_ADDRESS", "RAY_TMPDIR", "TMPDIR", "RAY_USE_TLS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(door, "PATIENCE_SECONDS", 0.3)


@pytest.fixture
def silent() -> Iterator[int]:
    """The port of somebody who listens and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


@pytest.fixture
def closed_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


@pytest.fixture
def website() -> Iterator[int]:
    class Quiet(http.server.BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Quiet) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_port
        server.shutdown()


@pytest.mark.parametrize("form", ["127.0.0.1:{}", "ray://127.0.0.1:{}", "localhost:{}"])
@pytest.mark.parametrize("source", ["--address", "RAY_ADDRESS", "auto"])
def test_a_dead_address_is_told_at_once(
    form: str, source: str, closed_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = form.format(closed_port)
    if source != "--address":
        monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(SearchError) as caught:
        door.check_answers({"--address": address, "RAY_ADDRESS": None, "auto": "auto"}[source])
    instead = ONE if source == "--address" else OTHER
    assert str(caught.value) == (
        f"Ray at '{address}' does not answer (Connection refused); start a cluster there, or {instead}"
    )


@pytest.mark.slow
def test_who_listens_and_is_no_ray_is_told(silent: int, website: int) -> None:
    for scheme in ("", "ray://"):
        with pytest.raises(SearchError, match="something listens, but says nothing for"):
            door.check_answers(f"{scheme}127.0.0.1:{silent}")
        with pytest.raises(SearchError, match="something else listens there"):
            door.check_answers(f"{scheme}127.0.0.1:{website}")


def test_a_service_without_health_is_no_head_but_may_be_a_server_of_clients() -> None:
    server = grpc.server(futures.ThreadPoolExecutor(1))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        door.check_answers(f"ray://127.0.0.1:{port}")
        with pytest.raises(SearchError, match="something else listens there"):
            door.check_answers(f"127.0.0.1:{port}")
    finally:
        server.stop(None)


@pytest.mark.parametrize("address", ["http://127.0.0.1:8265", "head", "a b:1", "ray://head", "s3://x:1/y", ":1", "a:b"])
def test_what_is_no_address_is_told_with_those_that_are(address: str) -> None:
    with pytest.raises(
        SearchError, match=r"no address of a cluster; allowed are HOST:PORT .* auto and local; or leave out"
    ):
        door.check_answers(address)


@pytest.mark.slow
@given(st.text(max_size=30))
def test_any_address_is_a_fault_or_fits(address: str) -> None:
    fits = door._ADDRESS.fullmatch(address)
    assert fits is None or int(fits["port"]) >= 0


def test_this_machine_is_meant_without_an_address(monkeypatch: pytest.MonkeyPatch, closed_port: int) -> None:
    door.check_answers()
    monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{closed_port}")
    door.check_answers("local")


def test_what_ray_raises_is_one_line() -> None:
    for address, said in (
        ("local", "cannot be started on this machine (a)"),
        ("h:1", "Ray at 'h:1' does not answer (a)"),
    ):
        with pytest.raises(SearchError) as caught, door.told(address, "x"):
            raise RuntimeError("a\nb")
        assert said in str(caught.value)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("variable", ["TMPDIR", "RAY_TMPDIR"])
@pytest.mark.parametrize("length", range(30, 90, 3))
def test_a_folder_too_long_for_sockets_gives_way(
    variable: str, length: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    base = Path("/dev/shm" if os.access("/dev/shm", os.W_OK) else "/tmp")
    folder = str(base / ("x" * (length - len(str(base)) - 1)))
    monkeypatch.setattr(door, "_SHORT", ("/tmp",))
    monkeypatch.setenv(variable, folder)
    with caplog.at_level(logging.WARNING):
        taken = door.settle_folder()
    fits = len(f"{folder}{door._IN_RAY}") <= 107
    assert taken == (None if fits else "/tmp")
    assert len(caplog.records) == (0 if fits else 1)
    for place in (Path(folder, "ray"), Path(folder)):
        if place.exists():
            place.rmdir()


def test_a_folder_that_cannot_be_written_gives_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", "/dev/null/x")
    assert door.settle_folder() == "/tmp"
    monkeypatch.setattr(door, "_SHORT", ("/dev/null/y",))
    with pytest.raises(
        StorageError, match=r"/dev/null/x: cannot be written \(Not a directory\); set RAY_TMPDIR to a short"
    ):
        door.settle_folder()


def test_a_home_that_cannot_be_written_gives_a_token_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    door.settle_token()
    assert "RAY_AUTH_TOKEN" not in os.environ
    monkeypatch.setenv("HOME", "/dev/null")
    door.settle_token()
    assert len(os.environ["RAY_AUTH_TOKEN"]) == 64
    assert [record.getMessage().split(":")[0] for record in caplog.records] == ["/dev/null/.ray"]
    monkeypatch.delenv("RAY_AUTH_TOKEN")
