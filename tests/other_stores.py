"""Servers that speak as Google Cloud Storage and Azure Blob Storage do, for tests."""

import contextlib
import importlib.util
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import s3_server

AZURE_NAME = "devstoreaccount1"
AZURE_KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
"""As every Azurite has them."""
_GOOGLE = """
import http.server, sys
from gcp_storage_emulator import server
server.server.HTTPServer = http.server.ThreadingHTTPServer  # its own answers one request after the other
server.create_server("127.0.0.1", int(sys.argv[1]), in_memory=True, default_bucket="tests").run()
"""


@dataclass(frozen=True)
class Store:
    """A running store with the bucket ``tests``."""

    pattern: str
    variables: dict[str, str] = field(default_factory=dict)

    def uri(self, place: str, port: int | None = None) -> str:
        """Of a place in it (``BUCKET/PREFIX``); with ``port`` of one that should answer there."""
        return self.pattern.replace("PLACE", place) if port is None else _moved(self.pattern, port, place)


def _moved(pattern: str, port: int, place: str) -> str:
    head, _, tail = pattern.partition("127.0.0.1:")
    return f"{head}127.0.0.1:{port}{tail.lstrip('0123456789')}".replace("PLACE", place)


@contextlib.contextmanager
def google(folder: Path) -> Iterator[Store]:
    """An emulator from PyPI."""
    if importlib.util.find_spec("gcp_storage_emulator") is None:
        pytest.skip("gcp-storage-emulator is not installed")
    port = s3_server.free_port()
    with s3_server.running([sys.executable, "-c", _GOOGLE, str(port)], folder / "google.log", port):
        yield Store(f"gs://anonymous@PLACE?scheme=http&endpoint_override=127.0.0.1:{port}")


@contextlib.contextmanager
def azure(folder: Path) -> Iterator[Store]:
    """Microsoft's own emulator, from npm."""
    program = shutil.which("azurite-blob")
    if program is None:
        pytest.skip("azurite-blob is not on PATH (npm install --global azurite)")
    from pyarrow import fs

    port = s3_server.free_port()
    command = [program, "--inMemoryPersistence", "--silent", "--blobPort", str(port), "--skipApiVersionCheck"]
    with s3_server.running([*command, "--disableTelemetry"], folder / "azure.log", port):
        there = {"blob_storage_authority": f"127.0.0.1:{port}", "dfs_storage_authority": f"127.0.0.1:{port}"}
        plain = {"blob_storage_scheme": "http", "dfs_storage_scheme": "http"}
        fs.AzureFileSystem(AZURE_NAME, account_key=AZURE_KEY, **there, **plain).create_dir("tests")
        yield Store(f"abfs://{AZURE_NAME}@127.0.0.1:{port}/PLACE?enable_tls=false", {"AZURE_STORAGE_KEY": AZURE_KEY})
