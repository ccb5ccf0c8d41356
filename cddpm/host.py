"""The edges of the host: what a disk, a folder or the network refuses is told in one line, and caches find a place."""

import errno
import logging
import os
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

from cddpm.errors import StorageError

logger = logging.getLogger(__name__)

_REMEDIES = {
    (errno.ENOSPC, errno.EDQUOT, errno.EFBIG): "free space and run the same command again",
    (errno.EROFS,): "choose another folder, or mount the disk for writing",
    (errno.EACCES, errno.EPERM): "get the right to it (chmod, chown), or choose another place",
    (errno.ENOENT,): "look for a slip in the path, or make what is missing",
    (errno.ENOTDIR,): "a part of this path is a file; choose a folder for it",
    (errno.EISDIR,): "this is a folder; name a file in it",
    (errno.EEXIST, errno.ENOTEMPTY): "something else lies there; choose another place, or move it away",
    (errno.ENAMETOOLONG,): "choose a shorter name or folder",
    (errno.ELOOP,): "links lead in a circle; name the file itself",
    (errno.EMFILE, errno.ENFILE): "too many files are open; raise the limit (ulimit -n) or start fewer processes",
    (errno.ENOMEM, errno.EAGAIN): "free memory or processes, and run the same command again",
    (errno.EBUSY, errno.ETXTBSY): "another process uses it; wait for it, or end it",
    (errno.EIO, errno.ESTALE, errno.ENXIO, errno.ENODEV, errno.EREMOTEIO): "look after the disk or the network share",
    (errno.EADDRINUSE,): "choose another port, or end what listens there",
    (
        errno.ECONNREFUSED,
        errno.ECONNRESET,
        errno.ECONNABORTED,
        errno.ETIMEDOUT,
        errno.EHOSTUNREACH,
        errno.ENETUNREACH,
        errno.ENETDOWN,
        errno.EPIPE,
    ): "look whether the other machine or service runs and can be reached from here",
}
_ADVICE = {number: advice for numbers, advice in _REMEDIES.items() for number in numbers}
_OTHERWISE = "look whether it can be read and written here"


def fault(error: OSError, given: Iterable[str | Path] = ()) -> StorageError:
    """``error`` in one line: its path, or where it knows none those that the command was ``given``, and a remedy."""
    named = [os.fsdecode(one) for one in (error.filename, error.filename2) if isinstance(one, str | bytes | Path)]
    place = " -> ".join(named) or ", ".join(map(str, given)) or f"working directory {_working_directory()}"
    lines = str(error.strerror or "").splitlines() or str(error).splitlines() or [type(error).__name__]
    # from elsewhere a library may have put its own report in place of the system's words
    what = os.strerror(error.errno) if error.errno and len(lines) > 1 else lines[0]
    return StorageError(f"{_one_line(place)}: {what}; {_ADVICE.get(error.errno or 0, _OTHERWISE)}")


def _one_line(place: str) -> str:
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in place)


def _working_directory() -> str:
    try:
        return str(Path.cwd())
    except OSError:
        return "(it is gone)"


def writable(folder: Path) -> bool:
    """Whether files can be made in ``folder``, or it can be made itself; nothing is tried out."""
    for place in (folder, *folder.parents):
        if os.path.lexists(place):
            return place.is_dir() and os.access(place, os.W_OK | os.X_OK)
    return False


def settle_cache(variable: str) -> Path | None:
    """Have ``variable`` (``NUMBA_CACHE_DIR``, ``MPLCONFIGDIR``) name a folder that can be written, and return that.

    A folder that a person named stays if it can be written; without one it is what ``launch/`` has filled for this
    environment, or None: the library's own choice. Where none can be written a temporary folder is taken, with a warning.
    """
    name = _NAMES[variable]
    mine = os.environ.get(variable)
    shared = Path(sys.prefix) / "cache" / name
    if mine:
        usual = [Path(mine)]
    elif shared.is_dir() and writable(shared):
        usual = [shared]
    else:
        usual = [_own_choice(name)]
    if not any(map(writable, usual)):
        other = _temporary(name)
        if other is None:
            return None
        logger.warning(
            "%s: cannot be written; %s keeps its cache in %s (%s names another folder)",
            usual[0],
            name.capitalize(),
            other,
            variable,
        )
        usual = [other]
    elif not mine and usual != [shared]:
        return None
    os.environ[variable] = str(usual[0])
    return usual[0]


def settle_caches() -> None:
    """Do so for all of them."""
    for variable in _NAMES:
        settle_cache(variable)


_NAMES = {"NUMBA_CACHE_DIR": "numba", "MPLCONFIGDIR": "matplotlib"}


def _own_choice(name: str) -> Path:
    """Where the library would keep it: Numba beside the modules if it can."""
    package = Path(__file__).parent
    if name == "numba" and writable(package):
        return package
    home = Path(os.environ.get("HOME") or "/")
    return Path(os.environ.get("XDG_CACHE_HOME") or home / ".cache") / name


def _temporary(name: str) -> Path | None:
    """A temporary folder that is this user's own (what lies in a cache is run); None if there is no such place."""
    try:
        place = Path(tempfile.gettempdir()) / f"cddpm-cache-{os.getuid()}"
        place.mkdir(mode=0o700, exist_ok=True)
        if place.is_symlink() or place.stat().st_uid != os.getuid():
            place = Path(tempfile.mkdtemp(prefix="cddpm-cache-"))
        folder = place / name
        folder.mkdir(exist_ok=True)
    except OSError:
        return None
    return folder
