"""A checkpoint file of PyTorch Lightning, read without running anything that it holds.

Loading is PyTorch's ``weights_only``: tensors and plain containers, nothing else. Lightning also pickles the settings of
the training (OmegaConf, paths, NumPy scalars); nobody reads them here, so each is replaced by an inert stand-in of this
module, and the packages that they came from are neither needed nor imported. Any other object is refused.
"""

import contextlib
import re
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals

from cddpm import artifact
from cddpm.errors import ArtifactError

ABOUT = ("epoch", "global_step", "pytorch-lightning_version")

_UNREAD_PACKAGES = frozenset(
    (
        "argparse",
        "datetime",
        "enum",
        "hydra",
        "lightning",
        "lightning_fabric",
        "numpy",
        "omegaconf",
        "pathlib",
        "pytorch_lightning",
        "typing",
    )
)
_UNREAD_NAMES = frozenset(f"builtins.{name}" for name in ("bool", "dict", "float", "int", "list", "str", "tuple"))
_FOREIGN = re.compile(r"GLOBAL (\w+(?:\.\w+)*) (?:was|whose) ")
_KINDS = (
    (re.compile(rb"\s*<(!doctype|html|\?xml)", re.IGNORECASE), "a web page: download the file itself"),
    (re.compile(rb"version https://git-lfs"), "a pointer of Git LFS: 'git lfs pull' fetches the file itself"),
    (re.compile(rb"\x1f\x8b|BZh|\xfd7zXZ|7z\xbc\xaf|Rar!|.{257}ustar", re.DOTALL), "an archive: unpack it first"),
    (re.compile(rb".{8}\{\"", re.DOTALL), "safetensors, perhaps"),
    (re.compile(rb"[\t\n\r -~]+\Z"), "a text"),
)
"""What the first bytes of a file that is no checkpoint say of it."""
_HEAD_BYTES = 512
_MAPPINGS = ("AttributeDict", "defaultdict")


@dataclass(frozen=True)
class LightningFile:
    """What was read of ``path``: its SHA-256, the tensors of ``state_dict`` (on the CPU), and what it says of itself."""

    path: Path
    digest: str
    tensors: dict[str, Tensor]
    about: dict[str, int | str]
    """Of ``ABOUT`` what is there."""
    unread: tuple[str, ...]
    """Classes of pickled settings that were passed over."""


class _Unread:
    """Takes the place of a pickled object that nobody reads: it can be made and filled, and does nothing."""

    def __new__(cls, *_: Any) -> "_Unread":
        return super().__new__(cls)

    def __init__(self, *_: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


class _UnreadMapping:
    """The same for a kind of dictionary: PyTorch puts items into plain ones alone."""

    def __new__(cls, *_: Any) -> dict[Any, Any]:  # type: ignore[misc]
        return {}


def read(path: Path) -> LightningFile:
    """Read the file. Raises ``ArtifactError`` if it is missing, damaged, no Lightning checkpoint, or holds other objects."""
    if not path.is_file():
        raise ArtifactError(f"{path}: no such file; a checkpoint of PyTorch Lightning (.ckpt) is needed")
    foreign = _foreign_objects(path)
    refused = sorted(name for name in foreign if not _may_be_unread(name))
    if refused:
        raise ArtifactError(_refusal(path, refused))
    content = _load(path, foreign)
    if not isinstance(content, Mapping) or not isinstance(content.get("state_dict"), Mapping):
        found = f"the keys {', '.join(map(str, list(content)[:8]))}" if isinstance(content, Mapping) else type(content)
        raise ArtifactError(f"{path}: no checkpoint of PyTorch Lightning: there is no 'state_dict', but {found}")
    about = {key: content[key] for key in ABOUT if isinstance(content.get(key), int | str)}
    return LightningFile(
        path, artifact.file_digest(path), _tensors(path, content["state_dict"]), about, tuple(sorted(foreign))
    )


def _foreign_objects(path: Path) -> list[str]:
    """Dotted names in the pickle that are neither tensors nor plain containers; the pickle is looked at, not loaded."""
    if not zipfile.is_zipfile(path):
        return []  # PyTorch's old format, or no checkpoint: loading will tell
    with _explained(path):
        return get_unsafe_globals_in_checkpoint(str(path))


def _may_be_unread(name: str) -> bool:
    return name.split(".")[0] in _UNREAD_PACKAGES or name in _UNREAD_NAMES or name == "collections.defaultdict"


def _load(path: Path, foreign: list[str]) -> Any:
    stand_ins = [(_UnreadMapping if name.endswith(_MAPPINGS) else _Unread, name) for name in foreign]
    with _explained(path), safe_globals(stand_ins), warnings.catch_warnings():  # type: ignore[arg-type]
        warnings.simplefilter(
            "ignore"
        )  # PyTorch's doubts about a foreign pickle: what cannot be read is an error anyway
        # Mapped: optimizer states, twice as large as the weights, are never read from the disk.
        return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))


@contextlib.contextmanager
def _explained(path: Path) -> Iterator[None]:
    """PyTorch's own words are kept back: they advise to read the file in a way that runs what is in it."""
    try:
        yield
    except Exception as error:  # noqa: BLE001 - a damaged file or a trap makes the reader raise anything
        foreign = _FOREIGN.search(str(error))
        if foreign is not None and _begins(path, rb"\x80"):
            raise ArtifactError(_refusal(path, [foreign[1]])) from None
        raise ArtifactError(f"{path}: {_fault_of(path, error)}") from None


def _fault_of(path: Path, error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"cannot be read ({error.strerror})"
    if path.stat().st_size == 0:
        return "the file is empty; copy or download it again"
    if _begins(path, rb"PK\x03\x04|\x80[\x02-\x05]"):
        return (
            "cannot be read as a checkpoint of PyTorch Lightning: the file is damaged or cut off, or another kind of ZIP or "
            "pickle; copy or download it again"
        )
    head = _head(path)
    kind = next((told for pattern, told in _KINDS if pattern.match(head)), "")
    begin = f"begins with {str(head[:16])[1:]}{': ' if kind else ''}{kind}"
    return f"no checkpoint of PyTorch ({begin}); a .ckpt of PyTorch Lightning is needed"


def _begins(path: Path, pattern: bytes) -> bool:
    return re.match(pattern, _head(path)) is not None


def _head(path: Path) -> bytes:
    with path.open("rb") as stream:
        return stream.read(_HEAD_BYTES)


def _refusal(path: Path, names: list[str]) -> str:
    return (
        f"{path}: holds pickled objects that loading would have to run code for: {', '.join(names)}. They are never "
        "loaded; have the tensors alone saved where the file was made: torch.save({'state_dict': module.state_dict()}, FILE)"
    )


def _tensors(path: Path, state: Mapping[Any, Any]) -> dict[str, Tensor]:
    found = {name: _fault(value) for name, value in state.items()}
    faults = [f"  {name}: {fault}" for name, fault in found.items() if fault]
    if faults or not state:
        raise ArtifactError("\n".join([f"{path}: state_dict is {'not usable' if state else 'empty'}:", *faults]))
    return {str(name): value.detach() for name, value in state.items()}


def _fault(value: Any) -> str | None:
    if not isinstance(value, Tensor):
        return f"is {type(value).__name__}, a tensor is needed"
    if value.layout != torch.strided or value.is_quantized or value.is_meta or value.is_complex():
        return f"is {value.dtype} {value.layout}, a plain tensor is needed"
    # A shape may say far more than the file holds (strides of 0): writing it out would fill memory and disk.
    if value.numel() * value.element_size() > value.untyped_storage().nbytes():
        return (
            f"claims {tuple(value.shape)}, more than the {value.untyped_storage().nbytes()} bytes that the file holds"
        )
    return None
