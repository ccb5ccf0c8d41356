"""Object storage: a prefix of a bucket, ``s3://bucket/prefix`` or another URI that ``pyarrow.fs`` or fsspec opens.

Names here are relative to the URI, with ``/`` between their parts. What a store refuses is a ``StorageError`` that names the
place and what to do; what passes (503, a connection that was cut, keys that were renewed) is tried again, with growing pauses.
Keys are found where the store's own library looks for them (``AWS_*``, ``~/.aws``, the machine's role), and are never passed on.
"""

import contextlib
import functools
import hashlib
import logging
import os
import random
import re
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from cddpm.errors import ConfigError, StorageError
from cddpm.place import address
from cddpm.text.likeness import did_you_mean

logger = logging.getLogger(__name__)

T = TypeVar("T")

SCHEMES = ("s3", "gs", "gcs", "abfs", "abfss", "hdfs")
"""What Arrow itself opens; fsspec knows more."""
PATIENCE_SECONDS = 120.0
"""A store that is away may come back for so long; training goes on meanwhile."""
CHUNK = 8 * 2**20
AHEAD = 2
"""Chunks of a file that are fetched at once."""
UNSENT = 4
"""Chunks of a file that may wait to be sent: Arrow sends them in the background, and would take the whole file into memory."""
PARTS = 4
"""Files of an artifact that are on their way at once."""

AZURE_KEY = "AZURE_STORAGE_KEY"
"""Environment variable: key of an Azure storage account, where the machine has no role."""
_OPTIONS = {
    "s3": ("allow_delayed_open", "true"),  # a small object is one request then, not three
    "gs": ("retry_limit_seconds", "5"),  # else it is silent for a quarter of an hour where nothing answers
    "gcs": ("retry_limit_seconds", "5"),
}

_URI = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://(.*)", re.DOTALL)
_NO_BUCKET = "there is no such bucket; make it, or correct the name"
_FINAL = {
    "NO_SUCH_BUCKET|NoSuchBucket|BucketNotFound|ContainerNotFound": _NO_BUCKET,
    "AuthenticationException|CredentialUnavailable": (
        f"no key and no role; set {AZURE_KEY}, or give this machine a role that may read and write there"
    ),
    "AuthorizationFailure|AuthenticationFailed": f"the keys are wrong; correct {AZURE_KEY}",
    "EXPIRED_TOKEN|ExpiredToken|TokenRefreshRequired": "the keys have expired; renew them (aws sso login, say)",
    "REQUEST_TIME_TOO_SKEWED|RequestTimeTooSkewed|REQUEST_EXPIRED": "this machine's clock is wrong; set it (timedatectl)",
    "INVALID_ACCESS_KEY|InvalidAccessKeyId|SIGNATURE|SignatureDoesNotMatch|INVALID_CLIENT_TOKEN|UNRECOGNIZED_CLIENT": (
        "the keys are wrong; correct AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or the profile"
    ),
    "ACCESS_DENIED|AccessDenied|Forbidden|HTTP response code 403|HTTP status 403": (
        "access denied; give the keys or the machine's role the right to list, read, write and delete below this place"
    ),
    r"HTTP status 4(?!08|29)\d\d": "the store refuses this request; look whether the place is named as this store asks",
}
_PASSING = {
    "SLOW_DOWN|SlowDown|SERVICE_UNAVAILABLE|THROTTLING|(HTTP status|response code) 503": "the store is overloaded (503)",
    "resolve host|Couldn't resolve": "the endpoint's name is unknown; correct AWS_ENDPOINT_URL",
    "connect to server|Failed to connect|Fail to get a new connection": (
        "nothing answers at the endpoint; start it, or correct its address (s3: AWS_ENDPOINT_URL)"
    ),
}
_RENEWED = ("EXPIRED", "Expired", "INVALID_ACCESS_KEY", "InvalidAccessKeyId", "TokenRefreshRequired")
"""A filesystem object keeps the keys that it was made with: one made anew may find others."""


def settled(place: str) -> str:
    """``place`` as it is kept: the URI of an object store, or a path (also of a ``file://`` URI).

    Raises ``ConfigError`` for a scheme that nothing here opens, naming the nearest, and for a URI without a bucket.
    """
    found = _URI.fullmatch(place.strip())
    if found is None:
        return str(Path(place).expanduser())
    scheme, rest = found[1].lower(), found[2].strip("/")
    if scheme == "file":
        return f"/{rest}"
    if scheme not in SCHEMES and scheme not in _protocols():
        raise ConfigError(
            f"{place}: unknown scheme '{found[1]}'{did_you_mean(scheme, SCHEMES)}; allowed are a folder and "
            "s3://BUCKET/PREFIX, gs://BUCKET/PREFIX, abfs://CONTAINER@ACCOUNT/PREFIX"
        )
    if not rest.partition("?")[0]:
        raise ConfigError(f"{place}: names no bucket; allowed is {scheme}://BUCKET/PREFIX")
    return f"{scheme}://{rest}"


def as_setting(value: Any) -> Any:
    """``settled``, of what a setting is given. Raises as pydantic asks; what is no text or path is left as it is."""
    from pydantic_core import PydanticCustomError

    if not isinstance(value, str | Path) or not str(value):
        return value
    try:
        return settled(address(value) or str(value))
    except ConfigError as error:
        raise PydanticCustomError("place", "{said}", {"said": str(error)}) from None


def is_uri(place: str) -> bool:
    """Whether a settled ``place`` is an object store, not a folder."""
    return "://" in place


def _protocols() -> Iterable[str]:
    from fsspec import available_protocols

    return available_protocols()


class Bucket:
    """The objects below one URI. Pickles; each process opens it anew."""

    def __init__(self, uri: str, patience_seconds: float = PATIENCE_SECONDS) -> None:
        self.uri, self.patience_seconds = uri, patience_seconds

    def __repr__(self) -> str:
        return f"Bucket({self.uri!r})"

    def __truediv__(self, name: str) -> "Bucket":
        head, question, query = self.uri.partition("?")
        return Bucket(f"{head.rstrip('/')}/{name}{question}{query}", self.patience_seconds)

    def place(self, name: str) -> str:
        """URI of an object, for messages."""
        return (self / name).uri.partition("?")[0] if name else self.uri.partition("?")[0]

    def read(self, name: str) -> bytes | None:
        """An object's bytes, None if there is none. Raises ``StorageError``."""

        def read(system: Any, root: str) -> bytes:
            with system.open_input_file(f"{root}/{name}") as stream:
                data: bytes = stream.read()
            return data

        try:
            return self._tried(name, read)
        except FileNotFoundError:
            return None

    def write(self, name: str, data: bytes) -> None:
        """Make or replace an object: a reader sees the old or the new bytes. Raises ``StorageError``."""

        def write(system: Any, root: str) -> None:  # uncompressed: Arrow would guess from the name, and zip a .gz again
            _make_parent(system, f"{root}/{name}")
            with system.open_output_stream(f"{root}/{name}", compression=None) as stream:
                stream.write(data)

        self._sent(name, write)

    def delete(self, name: str) -> None:
        """Remove an object; one that is not there is no fault. Raises ``StorageError``."""
        with contextlib.suppress(FileNotFoundError):
            self._tried(name, lambda system, root: system.delete_file(f"{root}/{name}"))

    def names(self, prefix: str = "") -> dict[str, int]:
        """Size in bytes of each object below ``prefix``, by name. Raises ``StorageError``."""
        return {name: size for name, (size, _) in self.objects(prefix).items()}

    def objects(self, prefix: str = "") -> dict[str, tuple[int, int]]:
        """Size in bytes of each object below ``prefix`` and when it was written (ns since 1970), by name.

        Raises ``StorageError``.
        """

        def find(system: Any, root: str) -> dict[str, tuple[int, int]]:
            from pyarrow.fs import FileSelector, FileType

            folder = f"{root}/{prefix}".rstrip("/")
            found = system.get_file_info(FileSelector(folder, recursive=True, allow_not_found=True))
            files = {one.path.removeprefix(f"{root}/"): one for one in found if one.type == FileType.File}
            if climbing := [name for name in files if name.startswith("/") or ".." in name.split("/")]:
                raise StorageError(f"{self.place('')}: holds a name that leads out of it: {climbing[0]}; remove it")
            return {name: (one.size, one.mtime_ns or 0) for name, one in files.items()}

        try:
            return self._tried(prefix, find)
        except FileNotFoundError:
            return {}

    def facts(self, name: str) -> tuple[int, int] | None:
        """Size in bytes of one object and when it was written (ns since 1970); None if there is none. Raises ``StorageError``."""

        def look(system: Any, root: str) -> tuple[int, int] | None:
            from pyarrow.fs import FileType

            found = system.get_file_info(f"{root}/{name}")
            return (found.size, found.mtime_ns or 0) if found.type == FileType.File else None

        try:
            return self._tried(name, look)
        except FileNotFoundError:
            return None

    def delete_all(self, prefix: str) -> None:
        """Remove every object below ``prefix``. Raises ``StorageError``."""
        for name in self.names(prefix):
            self.delete(name)

    def upload(self, file: Path, name: str) -> None:
        """Put a local file there, in chunks; at most a few of them are in memory. Raises ``StorageError``."""

        def send(system: Any, root: str) -> None:
            _make_parent(system, f"{root}/{name}")
            with file.open("rb") as source, system.open_output_stream(f"{root}/{name}", compression=None) as stream:
                for number, chunk in enumerate(iter(lambda: source.read(CHUNK), b""), start=1):
                    stream.write(chunk)
                    if number % UNSENT == 0:
                        stream.flush()

        self._sent(name, send)

    def download(self, name: str, file: Path) -> str:
        """Fetch an object into the new local ``file``; its SHA-256 as hex. Raises ``StorageError``, also if it is not there."""

        def fetch(system: Any, root: str) -> str:
            digest = hashlib.sha256()
            with system.open_input_file(f"{root}/{name}") as source, file.open("wb") as target:
                for chunk in _chunks(source):
                    digest.update(chunk)
                    target.write(chunk)
            return digest.hexdigest()

        try:
            return self._tried(name, fetch)
        except FileNotFoundError:
            raise StorageError(f"{self.place(name)}: missing, or deleted meanwhile") from None

    def upload_all(self, files: Iterable[tuple[Path, str]]) -> None:
        """``upload`` of several files at once."""
        at_once(lambda pair: self.upload(*pair), list(files))

    def check(self) -> None:
        """Write, read and delete a small object, at once and without patience. Raises ``StorageError`` that says what fails."""
        probe, data = f".probe-{os.getpid()}-{time.monotonic_ns()}", b"cddpm"
        quick = Bucket(self.uri, 0.0)
        quick.write(probe, data)
        found = quick.read(probe)
        quick.delete(probe)
        if found != data:
            raise StorageError(f"{self.place('')}: what was written there is not what is read; look after the store")

    def _sent(self, name: str, action: Callable[[Any, str], None]) -> None:
        try:
            self._tried(name, action)
        except FileNotFoundError as error:
            if error.filename is not None:
                raise  # a file of this machine's
            raise StorageError(f"{self.place(name)}: {_NO_BUCKET}") from error

    def _tried(self, name: str, action: Callable[[Any, str], T]) -> T:
        from pyarrow import ArrowException

        deadline, pause, renewed = time.monotonic() + self.patience_seconds, 0.5, False
        while True:
            try:
                return action(*opened(self.uri))
            except FileNotFoundError:
                raise
            except (OSError, ArrowException) as error:
                if isinstance(error, OSError) and error.errno is not None:
                    raise  # this machine's disk
                said = str(error)
                if not renewed and any(word in said for word in _RENEWED):
                    renewed = True
                    opened.cache_clear()
                    continue
                final = _advice(said, _FINAL)
                if final or time.monotonic() + pause > deadline:
                    raise StorageError(f"{self.place(name)}: {final or _passing(said)}") from error
                logger.info("%s: %s; tried again", self.place(name), said)
                time.sleep(pause * random.uniform(0.5, 1.5))
                pause = min(2 * pause, 15.0)


def _passing(said: str) -> str:
    first = next(iter(said.splitlines()), "the store does not answer")
    return _advice(said, _PASSING) or f"{first}; look after the store and the network"


def _advice(said: str, known: dict[str, str]) -> str | None:
    return next((remedy for pattern, remedy in known.items() if re.search(pattern, said)), None)


def _make_parent(system: Any, path: str) -> None:
    """Where folders are real (fsspec's ``file``, HDFS); an object store has none."""
    if system.type_name in ("hdfs", "local") or system.type_name.startswith("py::fsspec"):
        system.create_dir(path.rpartition("/")[0], recursive=True)


@functools.lru_cache(maxsize=8)
def opened(uri: str) -> tuple[Any, str]:
    """Arrow's filesystem for ``uri``, and the path in it."""
    # Servers older than these checksums refuse uploads with them (411 MissingContentLength)
    os.environ.setdefault("AWS_REQUEST_CHECKSUM_CALCULATION", "when_required")
    os.environ.setdefault("AWS_RESPONSE_CHECKSUM_VALIDATION", "when_required")
    from pyarrow import ArrowInvalid, ArrowNotImplementedError, fs

    scheme = uri.partition("://")[0]
    if scheme not in SCHEMES:
        from fsspec.core import url_to_fs

        try:
            inner, path = url_to_fs(uri)
        except (ImportError, ValueError) as error:
            raise StorageError(f"{uri}: {error}") from error
        return fs.PyFileSystem(fs.FSSpecHandler(inner)), path.rstrip("/")
    name, value = _OPTIONS.get(scheme, ("", ""))
    if name and name not in uri:
        uri += f"{'&' if '?' in uri else '?'}{name}={value}"
    try:
        system, path = fs.FileSystem.from_uri(uri)
    except (ArrowInvalid, ArrowNotImplementedError) as error:
        raise StorageError(f"{uri}: {error}") from error
    if scheme in ("abfs", "abfss") and (
        key := os.environ.get(AZURE_KEY)
    ):  # Arrow knows roles, and no variable for keys
        (options,) = system.__reduce__()[1]
        system = fs.AzureFileSystem(**{name: value for name, value in options.items() if value}, account_key=key)
    return system, path.rstrip("/")


def _chunks(source: Any) -> Iterator[bytes]:
    """A file's bytes in order; some chunks are fetched ahead. Raises ``OSError`` where the file ends too early."""
    size = source.size()
    offsets = range(0, size, CHUNK)
    pending: list[Future[bytes]] = []
    with ThreadPoolExecutor(AHEAD) as pool:
        waiting = iter(offsets)

        def more() -> None:
            offset = next(waiting, None)
            if offset is not None:
                pending.append(pool.submit(source.read_at, min(CHUNK, size - offset), offset))

        for _ in range(AHEAD):
            more()
        read = 0
        while pending:
            chunk = pending.pop(0).result()
            more()
            read += len(chunk)
            yield chunk
    if read != size:
        raise OSError(f"the object ended after {read} of {size} bytes")


def at_once(function: Callable[[Any], Any], items: list[Any], most: int = PARTS) -> list[Any]:
    """``function`` of each item, ``most`` at a time, in threads; the first error is raised."""
    if len(items) < 2:
        return [function(item) for item in items]
    with ThreadPoolExecutor(most) as pool:
        return list(pool.map(function, items))
