"""Scans in an object store, as a node sees them: a folder with the store's names, whose scans are fetched when they are read.

Tables are there at once. Of a scan there is first a file of its size without content, and on other nodes nothing at all;
``present`` fetches it to the node that reads it. So the scans of a cohort cross the network once, to where they are prepared.
A path tells its object on every node: ``CACHE/.cddpm-scans/s3/BUCKET/NAME``.
"""

import contextlib
import os
import re
import uuid
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote, unquote

from cddpm import artifact
from cddpm.errors import StorageError
from cddpm.shelf import cache_root
from cddpm.storage import Bucket, at_once, is_uri

FOLDER = ".cddpm-scans"
"""Below a node's cache; hidden, so that no folder of a user's own is taken for it."""
_SCANS = (".nii", ".nii.gz", ".mgz", ".mgh", ".img", ".hdr", ".nrrd", ".nhdr", ".mha", ".mhd")
"""Ends of names that are left without content until they are read."""
_HOLLOW_NS = 10**9
"""Time of change of a file without content: not 0, which is that of objects whose store tells none."""
_PLACE = re.compile(rf"[^\s'\"]*/{re.escape(FOLDER)}/([a-z0-9+]+)/(?:%3F[^/\s]*/)?")
_CURRENT: set[Path] = set()
"""Scans of which this process knows that they are as in the store."""


def outlined(place: str) -> Path:
    """A folder of scans as this node sees it: ``place`` itself, or for an object store the folder of its names.

    What has changed in the store since the last look is forgotten. Raises ``StorageError``, also if nothing is there.
    """
    if not is_uri(place):
        return Path(place)
    bucket, folder = Bucket(place), _folder(place)
    there = bucket.objects()
    if not there:
        raise StorageError(f"{bucket.place('')}: nothing lies below it; correct the bucket or the prefix")

    def outline(name: str) -> None:
        size, changed = there[name]
        target = folder / name
        with contextlib.suppress(FileNotFoundError):
            found = target.stat()
            if found.st_size == size and found.st_mtime_ns in (changed, _HOLLOW_NS):
                return
        if name.lower().endswith(_SCANS):
            _place(target, lambda temporary: _make_hollow(temporary, size), _HOLLOW_NS)
        else:
            _fetch(bucket, name, target, changed)

    with artifact.lock(folder.with_name(f".{folder.name}.fetch")), artifact.storage_errors(folder):
        for path in [path for path in folder.rglob("*") if path.is_file()]:
            # hidden ones are under way in another process
            if path.relative_to(folder).as_posix() not in there and not path.name.startswith("."):
                path.unlink()
        at_once(outline, list(there))
    _CURRENT.clear()
    return folder


def present(path: Path) -> Path:
    """The file that is to be read for ``path``: itself, or the scan of an object store on this node, fetched if need be.

    Raises ``StorageError`` if the store fails, ``FileNotFoundError`` if it has no such object.
    """
    if FOLDER not in path.parts:
        return path
    inside = path.parts[path.parts.index(FOLDER) + 1 :]
    here = cache_root().joinpath(FOLDER, *inside)
    if here in _CURRENT:
        return here
    scheme, *rest = inside
    query = unquote(rest.pop(0)) if rest[0].startswith("%3F") else ""
    bucket, name = Bucket(f"{scheme}://{rest[0]}{query}"), "/".join(rest[1:])
    found = bucket.facts(name)
    if found is None:
        raise FileNotFoundError(f"{bucket.place(name)}: no such object")
    with artifact.storage_errors(here):
        if not here.is_file() or (here.stat().st_size, here.stat().st_mtime_ns) != found:
            _fetch(bucket, name, here, found[1])
    _CURRENT.add(here)
    return here


def told(text: str) -> str:
    """``text`` with the URIs of scans in place of paths below a node's cache."""
    own = text.replace(str(cache_root() / FOLDER), f"/{FOLDER}")  # this node's cache may lie below a name with spaces
    return _PLACE.sub(r"\1://", own)


def _folder(place: str) -> Path:
    scheme, _, rest = place.partition("://")
    path, _, query = rest.partition("?")
    return cache_root().joinpath(FOLDER, scheme, *([quote(f"?{query}", safe="")] if query else []), *path.split("/"))


def _fetch(bucket: Bucket, name: str, target: Path, changed: int) -> None:
    _place(target, lambda temporary: bucket.download(name, temporary), changed)


def _make_hollow(file: Path, size: int) -> None:
    file.touch()
    os.truncate(file, size)


def _place(target: Path, make: Callable[[Path], object], changed: int) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}")
    try:
        make(temporary)
        os.utime(temporary, ns=(changed, changed))
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)
