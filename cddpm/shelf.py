"""Where artifacts are kept, as one node sees them: the storage's own folder, or the node's cache before an object store.

With a folder for storage nothing is copied: ``artifacts`` is the place itself. With an object store every node has a cache with
the same layout (``artifacts/KIND/NAME``). An artifact lies in the store as objects named after the SHA-256 of their bytes, and a
manifest, written last, that says which of them are its files: a reader sees a whole artifact or none, never a mixture of two
that were made at once.

    artifacts/KIND/NAME/manifest.json       the artifact's own manifest
    artifacts/KIND/NAME/parts/DIGEST        a file of it

Other files (predictions, scores, states of trainings) have names of their own below the same prefix.
"""

import contextlib
import fcntl
import json
import logging
import os
import shutil
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from cddpm import artifact
from cddpm.errors import ArtifactError, StorageError
from cddpm.storage import Bucket, at_once, is_uri

logger = logging.getLogger(__name__)

ARTIFACTS = "artifacts"
STORAGE = "storage"
"""In a node's cache: the URI of the store that it is a cache of."""
CACHE, CACHE_GB = "CDDPM_CACHE", "CDDPM_CACHE_GB"
"""Environment variables: folder of a node's cache (default: ``~/.cache/cddpm``), and how large it may grow."""
PARTS, _USED = "parts", ".used"
_GIGABYTE = 2**30
_HELD: dict[Path, IO[bytes]] = {}
"""Artifacts that this process uses: shared locks, which end with it, or with ``release``."""


def cache_root() -> Path:
    """The folder of this node's caches."""
    usual = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cddpm"
    return Path(os.environ.get(CACHE) or usual)


def cache_folder(uri: str) -> Path:
    """This node's cache of the object store ``uri``."""
    return cache_root() / artifact.fingerprint("storage", uri)


@dataclass(frozen=True)
class Shelf:
    """``artifacts``: their folder on this node; ``storage``: URI of the object store behind it, empty if there is none."""

    artifacts: Path
    storage: str = ""

    @classmethod
    def of(cls, storage: str) -> "Shelf":
        """The shelf of a storage, a folder or a URI (``storage.settled``), on this node."""
        if is_uri(storage):
            folder = cache_folder(storage)
            if not (folder / STORAGE).is_file():
                artifact.write_text(folder / STORAGE, storage)
            return cls(folder / ARTIFACTS, storage)
        return cls(Path(storage) / ARTIFACTS)

    def here(self) -> "Shelf":
        """The same shelf on the node that asks: each has its cache elsewhere."""
        return Shelf.of(self.storage) if self.storage else self

    @property
    def bucket(self) -> Bucket:
        """The objects behind it."""
        return Bucket(self.storage) / ARTIFACTS

    def path(self, kind: str, name: str) -> Path:
        """Where an artifact lies on this node, or will lie."""
        return self.artifacts / kind / name

    def place(self, path: Path) -> str:
        """How a person finds what lies at ``path`` on this node: its URI, or the path itself."""
        return self.bucket.place(self._name(path)) if self.storage else str(path)

    def get(self, path: Path) -> Path | None:
        """``path`` if its artifact is there, fetched if need be; of several processes of a node one fetches it, once.

        Raises ``StorageError`` if the store fails, ``ArtifactError`` if what it holds is damaged.
        """
        if not self.storage:
            return path if artifact.is_complete(path) else None
        if not artifact.is_complete(path):
            with artifact.lock(path.with_name(f".{path.name}.fetch")):
                if not artifact.is_complete(path) and not self._fetch(path):
                    return None
        _hold(path)
        return path

    def has(self, path: Path) -> bool:
        """Whether an artifact is there; nothing is fetched."""
        return artifact.is_complete(path) or (bool(self.storage) and self._manifest(path) is not None)

    def need(self, path: Path) -> Path:
        """``get`` of what must be there. Raises ``ArtifactError`` if it is not."""
        found = self.get(path)
        if found is None:
            raise ArtifactError(f"{self.place(path)}: this {path.parent.name} does not exist")
        return found

    def put(self, path: Path) -> Path:
        """Keep the finished artifact ``path`` of this node; one that is there already stays. Raises ``StorageError``."""
        if self.storage and self._manifest(path) is None:
            manifest = (path / artifact.MANIFEST).read_bytes()
            files: Mapping[str, str] = json.loads(manifest)["files"]
            self.send(path, files, path / PARTS)
            self.write(path / artifact.MANIFEST, manifest)
        if self.storage:
            _hold(path)
        return path

    def ensure(
        self, path: Path, kind: str, made_from: dict[str, Any], fill: Callable[[Path], None]
    ) -> tuple[Path, bool]:
        """As ``artifact.ensure``: ``path``, found or made now, and whether it was made."""
        if self.get(path) and artifact.is_sound(path, kind):
            return self.put(path), False  # what was freed in the store may still be here
        found = artifact.ensure(path, kind, path.name, made_from, fill)
        self.put(path)
        return found

    def send(self, folder: Path, files: Mapping[str, str], parts: Path) -> None:
        """Put files below ``folder`` (their SHA-256 by name) into ``parts`` of the store, each named after its digest."""
        digests = {digest: folder / name for name, digest in files.items()}
        self.bucket.upload_all((path, self._name(parts / digest)) for digest, path in digests.items())

    def receive(self, folder: Path, files: Mapping[str, str], parts: Path) -> None:
        """Fetch what ``send`` put there into the new ``folder``.

        Raises ``ArtifactError`` for a digest that differs and for a part that is gone, ``StorageError`` when the store is away.
        """
        bucket, prefix = self.bucket, self._name(parts)

        def fetch(pair: tuple[str, str]) -> None:
            name, digest = pair
            if Path(name).is_absolute() or ".." in Path(name).parts:
                raise ArtifactError(f"{bucket.place(prefix)}: names a file outside of the artifact: {name}")
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            part = f"{prefix}/{digest}"
            try:
                found = bucket.download(part, folder / name)
            except StorageError as error:
                if bucket.facts(part) is not None:
                    raise
                raise ArtifactError(f"{bucket.place(part)}: is gone, and its manifest is there") from error
            if found != digest:
                raise ArtifactError(
                    f"{bucket.place(part)}: truncated, altered or damaged since it was written (its "
                    "SHA-256 is another); delete it and what it belongs to, that it be made again"
                )

        with artifact.storage_errors(folder):
            at_once(fetch, list(files.items()))

    def gather(self, folder: Path, wanted: Callable[[str], bool] = lambda name: True) -> None:
        """Fetch those single files below ``folder`` (names relative to it) that lie in the store and not here."""
        if not self.storage:
            return
        prefix = self._name(folder)
        missing = [name for name in self.names(folder) if wanted(name) and not (folder / name).exists()]

        def fetch(name: str) -> None:
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}")
            try:
                self.bucket.download(f"{prefix}/{name}", temporary)
                temporary.replace(target)
            finally:
                temporary.unlink(missing_ok=True)

        with artifact.storage_errors(folder):
            at_once(fetch, missing)

    def share(self, files: Iterable[Path]) -> None:
        """Put single files of this node there, under their own names."""
        if self.storage:
            self.bucket.upload_all((file, self._name(file)) for file in files)

    def read(self, path: Path) -> bytes | None:
        """What the store has at ``path``; None if nothing. This and what follows is for who has an object store alone."""
        return self.bucket.read(self._name(path))

    def write(self, path: Path, data: bytes) -> None:
        """Put a small object there, or replace it."""
        self.bucket.write(self._name(path), data)

    def names(self, folder: Path) -> list[str]:
        """Objects below ``folder``, relative to it."""
        prefix = f"{self._name(folder)}/"
        return [name.removeprefix(prefix) for name in self.bucket.names(prefix)]

    def delete(self, path: Path) -> None:
        """Remove the object at ``path`` and all below it."""
        if self.bucket.facts(self._name(path)):  # some stores have folders, which are no objects
            self.bucket.delete(self._name(path))
        self.bucket.delete_all(self._name(path))

    def discard(self, path: Path) -> None:
        """Forget a damaged artifact of the store, that it may be put there anew; its manifest goes first."""
        if self.storage:
            self.bucket.delete(self._name(path / artifact.MANIFEST))

    def interrupted(self, older_seconds: float = 86400.0) -> dict[str, int]:
        """Bytes of each object of an artifact that no manifest names, by name: what an upload that never ended has left.

        Younger ones may belong to one that goes on; both times are the store's. Raises ``StorageError``.
        """
        probe = f".probe-{uuid.uuid4().hex}"
        self.bucket.write(probe, b"")
        there = self.bucket.objects()
        self.bucket.delete(probe)
        oldest = there.pop(probe)[1] - older_seconds * 1e9
        found: dict[str, int] = {}
        named: dict[str, set[str]] = {}
        for name, (size, written) in there.items():
            folder, parts, digest = name.rpartition(f"/{PARTS}/")
            if not parts or ".work" in folder or written > oldest:
                continue
            if folder not in named:
                data = self.bucket.read(f"{folder}/{artifact.MANIFEST}") or b'{"files": {}}'
                named[folder] = set(json.loads(data)["files"].values())
            if digest not in named[folder]:
                found[name] = size
        return found

    def _name(self, path: Path) -> str:
        return path.relative_to(self.artifacts).as_posix()

    def _manifest(self, path: Path) -> bytes | None:
        return self.read(path / artifact.MANIFEST)

    def _fetch(self, path: Path) -> bool:
        data = self._manifest(path)
        if data is None:
            return False
        try:
            files: dict[str, str] = json.loads(data)["files"]
        except (ValueError, KeyError, TypeError) as error:
            raise ArtifactError(
                f"{self.place(path)}/{artifact.MANIFEST}: not a manifest ({error}); delete it"
            ) from error
        sizes = self.bucket.names(f"{self._name(path)}/{PARTS}")
        make_room(self.artifacts, sum(sizes.values()))
        temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.partial")
        temporary.mkdir(parents=True)
        try:
            self.receive(temporary, files, path / PARTS)
            (temporary / artifact.MANIFEST).write_bytes(data)
            shutil.rmtree(path, ignore_errors=True)  # what somebody deleted half of
            temporary.rename(path)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        return True


def _hold(path: Path) -> None:
    """Have nobody evict ``path`` until this process ends or releases it, and note that it was used."""
    marker = path.with_name(f".{path.name}{_USED}")
    if path not in _HELD or not marker.exists():  # somebody may have deleted the whole cache meanwhile
        if before := _HELD.pop(path, None):
            before.close()
        stream = marker.open("ab")
        fcntl.flock(stream, fcntl.LOCK_SH)
        _HELD[path] = stream
    with contextlib.suppress(OSError):
        os.utime(marker)


def release() -> None:
    """Let go of every artifact that this process has used: a cache may evict them again."""
    while _HELD:
        _HELD.popitem()[1].close()


def limit_bytes(artifacts: Path) -> int:
    """How large the cache may grow: ``CDDPM_CACHE_GB``, or nine tenths of what its disk could hold of it."""
    given = os.environ.get(CACHE_GB)
    if given:
        try:
            return int(float(given) * _GIGABYTE)
        except ValueError:
            raise StorageError(f"{CACHE_GB}={given}: allowed is a number of gigabytes") from None
    folder = next(one for one in (artifacts, *artifacts.parents) if one.exists())
    return int(0.9 * (shutil.disk_usage(folder).free + _total(artifacts)))


def make_room(artifacts: Path, needed: int) -> None:
    """Evict from a node's cache what was used least recently, until ``needed`` bytes more fit; never what a process uses."""
    over = _total(artifacts) + needed - limit_bytes(artifacts)
    for path in sorted(_evictable(artifacts), key=_used):
        if over <= 0:
            return
        with _unused(path) as free:
            if free:
                over -= _total(path)
                logger.info("%s: evicted from this node's cache", path)
                aside = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.partial")
                path.rename(aside)
                shutil.rmtree(aside, ignore_errors=True)


def _evictable(artifacts: Path) -> Iterator[Path]:
    for marker in artifacts.glob(f"*/.*{_USED}"):
        path = marker.with_name(marker.name[1 : -len(_USED)])
        if artifact.is_complete(path):
            yield path


def _used(path: Path) -> float:
    return path.with_name(f".{path.name}{_USED}").stat().st_mtime


@contextlib.contextmanager
def _unused(path: Path) -> Iterator[bool]:
    with path.with_name(f".{path.name}{_USED}").open("ab") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True


def _total(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        with contextlib.suppress(OSError):
            total += path.stat().st_size if path.is_file() else 0
    return total


@dataclass(frozen=True)
class Kept:
    """An artifact's folder as it travels to other processes; another node fetches it from its object store, if it has one."""

    path: Path
    shelf: Shelf

    @classmethod
    def of(cls, path: Path) -> "Kept":
        """Of a folder ``.../artifacts/KIND/NAME``."""
        root = path.parent.parent
        marker = root.parent / STORAGE
        return cls(path, Shelf(root, marker.read_text() if marker.is_file() else ""))

    def here(self) -> Path:
        """The folder on this node. Raises ``ArtifactError`` if it is gone."""
        if not self.shelf.storage:
            return self.path
        shelf = self.shelf.here()
        return shelf.need(shelf.path(self.path.parent.name, self.path.name))
