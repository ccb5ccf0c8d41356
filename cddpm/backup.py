"""The folder of a sweep or an evaluation, kept in the storage as well: small files, sent there within a second of each change.

With a storage that is the output folder itself nothing is done. Else a new machine with an empty disk goes on from what is there:
``restored`` brings the folder back before a campaign is resumed. Databases are sent as a consistent copy, taken before the other
files are looked at and sent after them: what a study says is finished has its result there.
"""

import contextlib
import hashlib
import logging
import sqlite3
import tempfile
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path

from cddpm.errors import StorageError
from cddpm.storage import Bucket, is_uri

logger = logging.getLogger(__name__)

WRITER = "writer"
"""In the folder and in the storage: which machine's writing it was, so that an older copy is never taken for the newest."""
EVERY_SECONDS = 1.0
_LEFT = frozenset({"ray", "stop", "spent", "holder.json", WRITER})
"""Files and folders that are of no use elsewhere."""


class Backup:
    """Of ``folder``, which lies at ``name`` below ``storage`` (a settled place)."""

    def __init__(self, folder: Path, storage: str, name: str) -> None:
        place = storage if is_uri(storage) else f"file://{Path(storage).resolve()}"
        self.folder, self.needed = folder, is_uri(storage) or Path(storage).resolve() / name != folder.resolve()
        self._bucket = Bucket(place) / name
        self._seen: dict[str, tuple[int, int]] = {}
        self._sent: dict[str, str] = {}
        self._started = False
        self._failed = ""

    def exists(self) -> bool:
        """Whether the storage knows the folder. Raises ``StorageError``."""
        return self.needed and self._bucket.read(WRITER) is not None

    def restored(self) -> str | None:
        """Bring the folder back if the storage knows it and it is not here, or another machine went on with it; what was done.

        Raises ``StorageError``.
        """
        if not self.needed:
            return None
        writer = self._bucket.read(WRITER)
        own = self.folder / WRITER
        if writer is None or (own.exists() and own.read_bytes() == writer):
            return None
        if self.folder.exists() and any(self.folder.iterdir()):
            self.folder.rename(self.folder.with_name(f"{self.folder.name}.before-{uuid.uuid4().hex[:8]}"))
        fresh = self.folder.with_name(f".{self.folder.name}.{uuid.uuid4().hex[:8]}.partial")
        for name in self._bucket.names():
            (fresh / name).parent.mkdir(parents=True, exist_ok=True)
            self._bucket.download(name, fresh / name)
        fresh.rename(self.folder)
        return f"{self.folder.name}: brought back from {self._bucket.place('')}"

    @contextlib.contextmanager
    def following(self) -> Iterator["Backup"]:
        """Once it was started in the block, the folder is kept in the storage until the end, whatever that is."""
        over = threading.Event()
        thread = threading.Thread(target=self._run, args=(over,), name="backup", daemon=True)
        if self.needed:
            thread.start()
        try:
            yield self
        finally:
            over.set()
            if self.needed:
                thread.join()

    def withdraw(self, name: str) -> None:
        """Take one file out of the storage, if it is there, before anything else is sent. Raises ``StorageError``."""
        if self.needed:
            self._bucket.delete(name)

    def start(self) -> None:
        """From here on the folder is this process's."""
        if self.needed:
            writer = uuid.uuid4().hex.encode()
            self._bucket.write(WRITER, writer)
            (self.folder / WRITER).write_bytes(writer)
            self._sent = {name: "" for name in self._bucket.names() if name != WRITER}
            self._started = True

    def _run(self, over: threading.Event) -> None:
        while not over.wait(EVERY_SECONDS):
            self._try()
        self._try()

    def _try(self) -> None:
        if not self._started:
            return
        try:
            self.send()
        except (StorageError, OSError, sqlite3.Error) as error:
            if str(error) != self._failed:
                logger.warning("%s; the sweep goes on, and its folder is sent when the storage is back", error)
            self._failed = str(error)
        else:
            self._failed = ""

    def send(self) -> None:
        """Make the storage's copy like the folder. Raises ``StorageError``."""
        with tempfile.TemporaryDirectory(prefix="cddpm-backup-") as aside:
            databases = {name: self._copied(path, Path(aside)) for name, path in self._files() if path.suffix == ".db"}
            files = {name: path for name, path in self._files() if path.suffix != ".db"}
            for name, path in {**files, **databases}.items():
                self._send(name, path, self.folder / name)
            for name in self._sent.keys() - files.keys() - databases.keys():
                self._bucket.delete(name)
                self._sent.pop(name)

    def _files(self) -> Iterator[tuple[str, Path]]:
        for path in sorted(self.folder.rglob("*")):
            name = path.relative_to(self.folder)
            hidden = any(part.startswith(".") or part in _LEFT for part in name.parts)
            if not hidden and path.is_file() and not path.name.endswith(("-journal", "-wal", "-shm")):
                yield name.as_posix(), path

    @staticmethod
    def _copied(path: Path, aside: Path) -> Path:
        copy = aside / path.name
        with contextlib.closing(sqlite3.connect(path)) as source, contextlib.closing(sqlite3.connect(copy)) as target:
            source.backup(target)
        return copy

    def _send(self, name: str, path: Path, original: Path) -> None:
        try:
            stat = original.stat()
            if self._seen.get(name) == (stat.st_mtime_ns, stat.st_size) and name in self._sent:
                return
            data = path.read_bytes()
        except FileNotFoundError:
            return  # replaced or removed meanwhile: the next look sees
        digest = hashlib.sha256(data).hexdigest()
        if self._sent.get(name) != digest:
            self._bucket.write(name, data)
        self._sent[name], self._seen[name] = digest, (stat.st_mtime_ns, stat.st_size)
