"""One part of the predictions: a volume at one noise level with one noise seed, in an Arrow IPC file of its own.

``<folder>/<volume>/<level>-<seed>.<digest>.arrow`` has a row for branch ``c``, the conditional prediction, and one for ``d`` =
c - u if there is an unconditional one; both float16. Keeping d instead of u keeps the rounding small where c and u agree.
A file appears whole, is never changed, and is named after the SHA-256 of its bytes, which are compared before Arrow reads
any (it trusts what it reads, and would crash on a damaged file).
"""

import contextlib
import errno
import hashlib
import logging
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from urllib.parse import quote, unquote

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from cddpm import artifact
from cddpm.errors import ArtifactError, CddpmError

logger = logging.getLogger(__name__)

Key = tuple[str, int, int]
"""(branch, noise level 1..T, noise seed)"""
Step = tuple[int, int]
"""(noise level 1..T, noise seed)"""

_NAME = re.compile(r"(?P<level>\d+)-(?P<seed>-?\d+)\.[0-9a-f]{16}\.arrow")
_LOCK = ".lock"
_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)
"""What file systems say that know no locks."""


def volume_directory(directory: Path, volume_id: str) -> Path:
    """Where the parts of a volume lie."""
    return directory / quote(volume_id, safe="")


def parts_of(directory: Path, volume_id: str) -> dict[Step, Path]:
    """The parts of a volume that are written, by noise level and seed.

    The folder is listed, not asked file by file: a network file system remembers for seconds that a file was absent.
    """
    folder = volume_directory(directory, volume_id)
    try:
        files = sorted(folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return {}
    return {step: file for file in files if (step := _step(file.name)) is not None}


def volumes_of(directory: Path) -> list[str]:
    """Ids of the volumes that have a folder below ``directory``."""
    return sorted(unquote(path.name) for path in directory.iterdir() if path.is_dir())


def step_of(file: str) -> tuple[str, Step] | None:
    """Volume and step of a part by its name below the folder of predictions; None for anything else."""
    folder, _, name = file.rpartition("/")
    step = _step(name)
    return None if step is None else (unquote(folder), step)


def _step(name: str) -> Step | None:
    found = _NAME.fullmatch(name)
    return (int(found["level"]), int(found["seed"])) if found else None


@contextlib.contextmanager
def claim(directory: Path, volume_id: str) -> Iterator[bool]:
    """Whether this volume is ours to predict until the block ends; false while another process has it.

    A claim ends with its process, however that ends. Where the file system knows no locks everybody may: two may then
    predict the same, which costs time and changes nothing.
    """
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(artifact.lock(volume_directory(directory, volume_id) / _LOCK, wait=False))
        except BlockingIOError:
            yield False
            return
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            logger.warning(
                "%s: its file system has no locks (%s); volumes may be predicted twice", directory, error.strerror
            )
        yield True


def write_part(directory: Path, volume_id: str, arrays: Mapping[Key, NDArray[np.floating]]) -> list[Path]:
    """Write predictions of one volume, (S, H, W) each, keyed by (branch ``c`` or ``u``, level, seed), as one part per step.

    Gives the files that were written.

    Parts that are there are left alone. With any ``u``, every ``c`` must have its ``u``. Raises ``CddpmError`` for values
    that float16 cannot hold (then nothing is written), ``StorageError`` for a full disk, ``ValueError`` for an incomplete
    mapping.
    """
    rows = rounded(volume_id, arrays)
    there, written = parts_of(directory, volume_id), list[Path]()
    for level, seed in dict.fromkeys(key[1:] for key in rows):
        if (level, seed) not in there:
            data = _to_arrow({key[0]: array for key, array in rows.items() if key[1:] == (level, seed)})
            written.append(volume_directory(directory, volume_id) / f"{level}-{seed}.{_digest(data)}.arrow")
            artifact.write_bytes(written[-1], data)
    return written


def rounded(volume_id: str, arrays: Mapping[Key, NDArray[np.floating]]) -> dict[Key, NDArray[np.float16]]:
    """The predictions of one volume as parts hold them: branches ``c`` and ``d`` = c - u as float16.

    Raises as ``write_part``.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        rows = {key: array.astype(np.float16) for key, array in differences(arrays).items()}
    for (branch, level, seed), values in rows.items():
        if not np.isfinite(values).all():
            raise CddpmError(
                f"volume '{volume_id}': the prediction ({branch}) at noise level {level}, seed {seed} has infinite or NaN "
                "values; the training has diverged: lower its learning rate or use an earlier checkpoint"
            )
    return rows


def differences(arrays: Mapping[Key, NDArray[np.floating]]) -> dict[Key, NDArray[np.float32]]:
    """Branches ``c`` and ``d`` = c - u of predictions with branches ``c`` and ``u``; without ``u`` there is no ``d``.

    Raises ``ValueError`` for an incomplete mapping.
    """
    conditional = {key[1:]: array for key, array in arrays.items() if key[0] == "c"}
    unconditional = {key[1:]: array for key, array in arrays.items() if key[0] == "u"}
    if not conditional or (unconditional and unconditional.keys() != conditional.keys()):
        raise ValueError(
            f"predictions {sorted(arrays)}: 'c' is needed, and 'u' for all or none of its levels and seeds"
        )
    rows: dict[Key, NDArray[np.float32]] = {}
    for (level, seed), c in sorted(conditional.items()):
        rows["c", level, seed] = c.astype(np.float32)
        if unconditional:
            with np.errstate(invalid="ignore"):  # `rounded` names what is not finite
                rows["d", level, seed] = rows["c", level, seed] - unconditional[level, seed].astype(np.float32)
    return rows


def _to_arrow(branches: Mapping[str, NDArray[np.float16]]) -> pa.Buffer:
    values = np.stack(list(branches.values()))
    shape = values.shape[1:]
    batch = pa.record_batch(
        [
            pa.array(list(branches), pa.string()),
            pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), int(np.prod(shape))),
        ],
        names=["branch", "x0"],
    ).replace_schema_metadata({"shape": ",".join(map(str, shape))})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, batch.schema) as writer:
        writer.write_batch(batch)
    return sink.getvalue()


def _digest(data: pa.Buffer) -> str:
    return hashlib.sha256(data).hexdigest()[:16]


def digest_of(file: Path) -> str:
    """The first 16 hex digits of the SHA-256 that a part was written with, from its name."""
    return file.suffixes[-2].removeprefix(".")


def check_part(file: Path) -> pa.Buffer:
    """The bytes of a part, mapped, after comparing them with its name. Raises ``ArtifactError`` for a damaged one."""
    try:
        with pa.memory_map(str(file)) as source:
            data = source.read_buffer()
    except (OSError, pa.ArrowInvalid) as error:
        raise ArtifactError(f"{file}: this part of a reconstruction cannot be read ({error})") from error
    if _digest(data) != digest_of(file):
        raise ArtifactError(f"{file}: truncated, altered or damaged since it was written (its SHA-256 is another)")
    return data


def read_part(file: Path) -> dict[str, NDArray[np.float16]]:
    """The branches of a part, (S, H, W) each, as read-only views of the mapped file. Raises as ``check_part``."""
    batch = pa.ipc.open_file(pa.BufferReader(check_part(file))).get_batch(0)
    shape = tuple(int(size) for size in batch.schema.metadata[b"shape"].split(b","))
    values = batch.column("x0").flatten().to_numpy(zero_copy_only=True).reshape(-1, *shape)
    return dict(zip(batch.column("branch").to_pylist(), values, strict=True))


def drop_damaged(file: Path) -> bool:
    """Delete a part that is truncated or altered, saying so, that it be predicted again; whether it was."""
    try:
        check_part(file)
    except ArtifactError as error:
        logger.warning("%s; it is predicted again", error)
        with artifact.storage_errors(file):
            file.unlink(missing_ok=True)
        return True
    return False
