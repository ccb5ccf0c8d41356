"""A volume's file: its bytes, unpacked no further than its header announces, and the error for whatever is wrong with it.

What its NaN and infinite voxels are taken for, too, and the error where they cannot be.
"""

import errno
import gzip
import io
import logging
import zlib
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from cddpm.data.afar import present
from cddpm.errors import VolumeError

HEADER_BYTES = 540
"""Of NIfTI-2; that of NIfTI-1 is smaller."""
HEAD_BYTES = 1 << 16
"""What of a packed file is enough to unpack a header."""
_TEXTS = ("data_type", "db_name", "descrip", "aux_file", "intent_name")
"""Free texts of a header; NIfTI-2 has the last three."""
TAIL_BYTES = 1 << 24
"""More than this behind the last voxel of a packed file is not unpacked."""
_COPY = "copy the file again from its source"


class VolumeFileError(VolumeError):
    """One named fault of one file: ``path``, ``code`` (one word), what was ``found``, what is ``allowed``."""

    def __init__(self, path: str, code: str, found: str, allowed: str) -> None:
        super().__init__(path, code, found, allowed)
        self.path, self.code, self.found, self.allowed = path, code, found, allowed

    def __str__(self) -> str:
        return f"{self.path}: {self.found}; {self.allowed}"


def fault(path: Path, code: str, found: str, allowed: str) -> NoReturn:
    """Raises ``VolumeFileError``."""
    raise VolumeFileError(str(path), code, found, allowed) from None


def line(error: Exception) -> str:
    """What an error of a library says, as a short line."""
    return " ".join(str(error).split())[:120]


def read_bytes(path: Path, limit: int = -1) -> bytes:
    """The file as it is, or its first ``limit`` bytes. Raises ``VolumeFileError`` if it is missing, empty or no plain file."""
    try:
        path = present(path)
        if path.exists() and not path.is_file() and not path.is_dir():  # a pipe would keep us waiting
            fault(path, "unreadable", "a pipe, socket or device", "a file on a disk is needed")
        with path.open("rb") as stream:
            raw = stream.read(limit)
    except FileNotFoundError:
        link = f" (it is a link to {path.readlink()})" if path.is_symlink() else ""
        fault(path, "missing", f"no such file{link}", "correct the path where it is named, or restore the file")
    except OSError as error:
        if error.errno == errno.ELOOP:
            fault(path, "symlink-loop", "a symbolic link that leads back to itself", "link to the real file")
        fault(path, "unreadable", f"cannot be opened ({error.strerror})", "a readable NIfTI file is needed")
    except ValueError as error:
        fault(path, "unreadable", f"cannot be opened ({line(error)})", "a readable NIfTI file is needed")
    if not raw:
        fault(path, "empty-file", "0 bytes", _COPY)
    return raw


def clear_texts(header: Any) -> None:
    """Empty what a header says in words: names, dates and numbers of patients are found there."""
    for name in _TEXTS:
        if name in header:
            header[name] = b""


class Corrections(logging.Handler):
    """What nibabel says while it corrects a header; its own lines do not name the file."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.logger = logging.Logger("header")
        self.logger.addHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        """As ``logging`` asks."""
        if record.levelno:
            self.found.append(record.getMessage())


def is_packed(raw: bytes) -> bool:
    """Whether these bytes begin as gzip's do."""
    return raw[:2] == b"\x1f\x8b"


def head(path: Path, raw: bytes) -> bytes:
    """The bytes of the header, unpacked, of ``raw``'s first. Raises ``VolumeFileError`` for a damaged gzip stream."""
    if not is_packed(raw):
        return raw[:HEADER_BYTES]
    stream = zlib.decompressobj(wbits=31)
    try:
        start = stream.decompress(raw[:HEAD_BYTES], HEADER_BYTES)
    except zlib.error as error:
        fault(path, "truncated", f"gzip stream cut or damaged ({line(error)})", _COPY)
    if len(start) < HEADER_BYTES and len(raw) < HEAD_BYTES and not stream.eof:
        fault(path, "truncated", f"gzip stream cut after {len(raw)} bytes", _COPY)
    return start


def unpacked(path: Path, raw: bytes, announced: int) -> bytes:
    """The whole content, of which the header announces so many bytes.

    Raises ``VolumeFileError`` for a gzip stream that is cut, damaged, or far longer than announced.
    """
    if not is_packed(raw):
        return raw
    most = announced + TAIL_BYTES
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(raw)) as stream:
            content = stream.read(most + 1)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        fault(path, "truncated", f"gzip stream cut or damaged ({line(error)})", _COPY)
    if len(content) > most:
        found = f"over {TAIL_BYTES >> 20} MiB follow the {announced} bytes that its header announces"
        fault(path, "trailing", found, "copy the file again from its source, or correct the header")
    return content


def background(data: npt.NDArray[np.float32], blank: npt.NDArray[np.bool_]) -> float:
    """The value of most voxels beside ``blank`` ones; without one 0, if all are brighter, else what is darker than all."""
    values, counts = np.unique(data[ndimage.binary_dilation(blank) & ~blank], return_counts=True)
    if 2 * counts.max() > counts.sum():
        return float(values[counts.argmax()])
    low, middle = float(data[~blank].min()), float(np.median(data[~blank]))
    return 0.0 if low > 0 else low - (middle - low) / 2


def refuse(path: Path, blank: npt.NDArray[np.bool_]) -> NoReturn:
    """Raises ``VolumeFileError`` with the first of them."""
    first = tuple(int(i) for i in np.argwhere(blank)[0])
    found = f"{np.count_nonzero(blank)} voxels are NaN or infinite, the first at {first}"
    fault(path, "non-finite", found, "finite numbers are needed; fill or export again")
