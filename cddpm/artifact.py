"""Artifacts: directories that appear whole or not at all, know what made them, and notice any later change.

An artifact directory holds its files and, written last, ``manifest.json`` with its kind, its fingerprint, what it was
made from and the SHA-256 of every file. A directory without a manifest is unfinished work; one whose digests differ is
refused by name.
"""

import contextlib
import errno
import fcntl
import functools
import hashlib
import json
import logging
import os
import shutil
import struct
import uuid
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, TypeVar, cast

from cddpm.errors import ArtifactError, CddpmError, StorageError

if TYPE_CHECKING:
    from pydantic import TypeAdapter

logger = logging.getLogger(__name__)

T = TypeVar("T")

MANIFEST = "manifest.json"
_FLOCK = "hhqqi4x"
"""``struct flock`` of Linux on 64 bits: l_type, l_whence, l_start, l_len, l_pid."""


def fingerprint(*parts: Any) -> str:
    """SHA-256 (first 16 hex digits) of the canonical JSON of ``parts``: equal inputs, equal name, on every machine."""
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes as hex."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


@dataclass(frozen=True)
class Manifest:
    """What an artifact says about itself. ``made_from`` maps a name to the fingerprint or setting that went in."""

    kind: str
    fingerprint: str
    made_from: dict[str, Any]
    files: dict[str, str]


@contextlib.contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Turn a full or read-only disk while writing below ``path`` into a ``StorageError`` that names it."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise StorageError(
                f"{path}: no space left while writing; free space and run the same command again"
            ) from error
        if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
            raise StorageError(f"{path}: cannot be written ({error.strerror}); choose another folder") from error
        raise


def write_text(path: Path, text: str) -> None:
    """Replace ``path`` atomically: a reader or a crash sees the old or the new text, never a part."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, data: bytes) -> None:
    """Replace ``path`` atomically with ``data``, flushed to the disk before it appears."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("wb") as stream:
                stream.write(data)
                stream.flush()
                os.fsync(stream.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Replace ``path`` atomically with indented JSON."""
    write_text(path, json.dumps(value, indent=2, sort_keys=True) + "\n")


def create(path: Path, kind: str, name: str, made_from: dict[str, Any], fill: Callable[[Path], None]) -> Path:
    """Make the artifact ``path`` by ``fill(temporary directory)``; it appears whole, with its manifest, or not at all.

    An artifact that another process finished meanwhile under the same path is kept and ours dropped.
    Raises ``StorageError`` when the disk is full or read-only.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.partial")
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            temporary.mkdir()
            fill(temporary)
            seal(temporary, kind, name, made_from)
            _move_into_place(temporary, path)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    return path


def seal(directory: Path, kind: str, name: str, made_from: dict[str, Any]) -> None:
    """Write the manifest over all files now in ``directory``."""
    files = {str(p.relative_to(directory)): file_digest(p) for p in sorted(directory.rglob("*")) if p.is_file()}
    manifest = {"kind": kind, "fingerprint": name, "made_from": made_from, "files": files}
    write_json(directory / MANIFEST, manifest)


def _move_into_place(temporary: Path, path: Path) -> None:
    if path.exists() and not (path / MANIFEST).exists():
        shutil.rmtree(path)  # unfinished work of a process that died
    try:
        temporary.rename(path)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise


def is_complete(path: Path) -> bool:
    """Whether ``path`` is a finished artifact (its manifest exists; digests are not read)."""
    return (path / MANIFEST).is_file()


def read_manifest(path: Path, kind: str) -> Manifest:
    """Read the manifest of the artifact ``path``. Raises ``ArtifactError`` if missing, unreadable or of another kind."""
    try:
        raw = json.loads((path / MANIFEST).read_text())
        manifest = Manifest(raw["kind"], raw["fingerprint"], raw["made_from"], raw["files"])
    except FileNotFoundError:
        state = "is unfinished (no manifest.json)" if path.is_dir() else "does not exist"
        raise ArtifactError(f"{path}: this {kind} {state}") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ArtifactError(f"{path / MANIFEST}: not a manifest of this program ({error})") from error
    if manifest.kind != kind:
        raise ArtifactError(f"{path}: holds a {manifest.kind}, but a {kind} is needed")
    return manifest


def verify(path: Path, kind: str) -> Manifest:
    """Compare every file of the artifact with its digest. Raises ``ArtifactError`` naming the first that differs."""
    manifest = read_manifest(path, kind)
    for name, digest in manifest.files.items():
        file = path / name
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise ArtifactError(f"{path}: the manifest names a file outside of the artifact: {name}")
        if not file.is_file():
            raise ArtifactError(f"{file}: missing from this {kind}")
        if file_digest(file) != digest:
            raise ArtifactError(
                f"{file}: altered or damaged since it was written (its SHA-256 differs from manifest.json)"
            )
    return manifest


def is_sound(path: Path, kind: str) -> bool:
    """Whether ``path`` is a finished artifact with the digests of its manifest. All files are read (about 1 s per GB)."""
    return is_complete(path) and _damage(path, kind) is None


def set_aside_damaged(path: Path, kind: str) -> bool:
    """Move a finished artifact that is damaged out of the way, saying so, that it be made again; whether it was.

    Call it under the lock that its makers hold. It stays beside the new one, as a leftover, for who has a sound copy of the
    file that is named. Raises ``StorageError`` if the disk refuses.
    """
    damage = _damage(path, kind) if is_complete(path) else None
    if damage is None:
        return False
    aside = path.with_name(f".{path.name}.damaged-{uuid.uuid4().hex[:8]}.partial")
    with storage_errors(path):
        path.rename(aside)
    logger.warning("%s; this %s is made again, the damaged one lies in %s", damage, kind, aside)
    return True


def _damage(path: Path, kind: str) -> ArtifactError | None:
    try:
        verify(path, kind)
    except ArtifactError as error:
        return error
    return None


def read_json(path: Path, form: type[T], what: str, remedy: str, error: type[CddpmError] = ArtifactError) -> T:
    """The content of the file ``path`` as a ``form``: a dataclass, or a type such as ``list[int]`` (pydantic decides).

    Raises ``error`` for a file that is missing, cannot be read, or is no such thing: "PATH: not WHAT (why); REMEDY".
    """
    try:
        raw = json.loads(path.read_text())
        unknown = set(raw) - {one.name for one in fields(form)} if is_dataclass(form) and isinstance(raw, dict) else ()
        if unknown:
            raise ValueError(f"unknown: {', '.join(sorted(unknown))}")
        found: T = _adapter(cast(Hashable, form)).validate_python(raw)
    except FileNotFoundError:
        raise error(f"{path}: missing; {remedy}") from None
    except OSError as fault:
        raise error(f"{path}: cannot be read ({fault.strerror or fault})") from fault
    except (
        ValueError,
        RecursionError,
    ) as fault:  # pydantic's ValidationError is the first, what nests too deep the second
        raise error(f"{path}: not {what} ({_reason(fault)}); {remedy}") from fault
    return found


def _reason(fault: Exception) -> str:
    from pydantic import ValidationError  # slow to import

    if not isinstance(fault, ValidationError):
        return str(fault)
    first = fault.errors(include_url=False)[0]
    place = ".".join(map(str, first["loc"]))
    return f"{place}: {first['msg']}" if place else first["msg"]


@functools.cache
def _adapter(form: Hashable) -> "TypeAdapter[Any]":
    from pydantic import TypeAdapter

    return TypeAdapter(cast(Any, form))


@contextlib.contextmanager
def lock(path: Path, wait: bool = True) -> Iterator[None]:
    """Hold an exclusive lock on the file ``path`` (created); freed by the kernel when this process dies.

    It is a record lock of the open file (Linux ``F_OFD_SETLK``): NFS passes it on to other machines, no other opening or
    closing of the file in this process frees it, and ``is_locked`` can ask for it. Raises ``BlockingIOError`` at once if it
    is held elsewhere and ``wait`` is false.
    """
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        stream = path.open("a+")
    with stream:
        if _record_lock(stream, "F_OFD_SETLKW" if wait else "F_OFD_SETLK") is None:
            fcntl.flock(stream, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        yield


def is_locked(path: Path) -> bool:
    """Whether ``lock(path)`` is held now, here or elsewhere. It only asks: nobody who wants the lock is ever in its way.

    Where the system has no such question (it is not Linux), it takes a shared lock for a moment.
    """
    try:
        stream = path.open("rb")
    except FileNotFoundError:
        return False
    with stream:
        kind = _record_lock(stream, "F_OFD_GETLK")
        if kind is not None:
            return kind != fcntl.F_UNLCK
        try:
            fcntl.flock(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def _record_lock(stream: IO[Any], command: str) -> int | None:
    """The kind of lock that ``command`` (on all bytes, exclusive) answers with; None where there are no such commands."""
    number = getattr(fcntl, command, None)
    if number is None:
        return None
    try:
        answer = fcntl.fcntl(stream, number, struct.pack(_FLOCK, fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0))
    except OSError as error:
        if error.errno == errno.EINVAL:
            return None
        raise
    return int(struct.unpack(_FLOCK, answer)[0])


def ensure(
    path: Path, kind: str, name: str, made_from: dict[str, Any], fill: Callable[[Path], None]
) -> tuple[Path, bool]:
    """Return ``(path, made)``: the artifact if it is there and sound, else made now. Of several callers one makes it."""
    if is_sound(path, kind):
        return path, False
    with lock(path.with_name(f".{path.name}.lock")):
        if is_complete(path) and not set_aside_damaged(path, kind):
            return path, False
        create(path, kind, name, made_from, fill)
        return path, True
