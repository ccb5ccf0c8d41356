"""The model package: all that a prediction needs, in one directory that runs no code when loaded.

===================  ===============================================================================================
model.safetensors    weights of the diffusion model and its encoder; of its guide (``training.guide``) if it has one
config.json          the resolved ``ExperimentConfig``
pipeline.json        ``Pipeline``: how a reconstruction becomes a segmentation, and how good that was
manifest.json        digests of the three (``cddpm.artifact``), written last
===================  ===============================================================================================

No MLflow here: a prediction reads packages without it.
"""

import hashlib
import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self, TypeVar

import safetensors.torch
import torch
from pydantic import Field, model_validator
from safetensors import SafetensorError
from torch import Tensor

from cddpm import artifact
from cddpm.config import ExperimentConfig, Frozen, ScoringConfig, parse, recorded, to_dict
from cddpm.errors import ArtifactError, ConfigError
from cddpm.tracking.package_files import CONFIG, KIND, PIPELINE, WEIGHTS, listed_files, verify_package

T = TypeVar("T")

_REMEDY = "written by another version of this program?"
_LARGEST_HEADER_BYTES = 16 * 2**20
_LARGEST_JSON_BYTES = 16 * 2**20
_DTYPES = (
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.float64,
    torch.int64,
    torch.int32,
    torch.uint8,
    torch.bool,
)


class Pipeline(Frozen):
    """How the model is to be used, and what was measured with exactly these settings."""

    format: Literal[1] = 1
    scoring: ScoringConfig
    thresholds: dict[str, float]
    """Data set -> threshold of the residual at the operating point; ``all`` for a scan of any other origin."""
    healthy_statistics: dict[str, dict[str, list[float]]] | None = None
    """Of healthy validation residuals (``cddpm.scoring.calibration``), if ``scoring.normalise`` asks for any."""
    validation: dict[str, float] = Field(default_factory=dict)
    """Metrics by name (``val/dice``, ``val/Brats21/dice``)."""
    fingerprints: dict[str, str] = Field(default_factory=dict)
    """What the model was made from: data, store, encoder, guide, checkpoint, reconstruction."""
    sweep: str | None = None
    trial: int | None = None

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if self.scoring.normalise != "none" and self.healthy_statistics is None:
            raise ValueError(f"healthy_statistics: missing; scoring.normalise '{self.scoring.normalise}' needs them")
        return self


@dataclass(frozen=True)
class Package:
    """A package that was read and whose digests hold. ``weights`` are on the CPU."""

    directory: Path
    fingerprint: str
    weights: dict[str, Tensor]
    config: ExperimentConfig
    pipeline: Pipeline


def write_package(
    directory: Path, weights: Mapping[str, Tensor], config: ExperimentConfig, pipeline: Pipeline
) -> artifact.Manifest:
    """Write the package ``directory``; it appears whole or not at all. Equal contents have equal fingerprints.

    Raises ``ValueError`` for weights that are no tensors, lack numbers or thresholds without ``all``, ``ArtifactError`` if
    another package lies there, ``StorageError`` if the disk refuses.
    """
    _check(weights, pipeline)
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}
    settings, use = recorded(config), to_dict(pipeline)
    name = artifact.fingerprint(KIND, _digests(plain), settings, use)

    def fill(folder: Path) -> None:
        # Tied tensors share memory, which safetensors refuses: each is written out.
        safetensors.torch.save_file({key: tensor.clone() for key, tensor in plain.items()}, folder / WEIGHTS)
        with (folder / WEIGHTS).open("rb") as stream:
            os.fsync(stream.fileno())
        artifact.write_json(folder / CONFIG, settings)
        artifact.write_json(folder / PIPELINE, use)

    artifact.create(directory, KIND, name, {**pipeline.fingerprints}, fill)
    manifest = artifact.read_manifest(directory, KIND)
    if manifest.fingerprint != name:
        raise ArtifactError(
            f"{directory}: holds another model (fingerprint {manifest.fingerprint}, this one is {name}); choose a free folder"
        )
    return manifest


def read_package(directory: Path, compared: bool = False) -> Package:
    """Read a package after comparing every digest (unless they were just ``compared``); never runs code from it.

    Raises ``ArtifactError`` naming the file and what is wrong with it. Whether the weights fit the network, its loader says.
    """
    manifest = listed_files(directory) if compared else verify_package(directory)
    file = directory / CONFIG
    try:
        config = parse(_json(file, dict[str, Any]), str(file))
    except ConfigError as error:
        raise ArtifactError(f"{error}\n({_REMEDY})") from None
    pipeline = _json(directory / PIPELINE, Pipeline)
    return Package(directory, manifest.fingerprint, _weights(directory / WEIGHTS), config, pipeline)


def weights_fingerprint(weights: Mapping[str, Tensor]) -> str:
    """Of names, kinds, shapes and every bit of the tensors (on the CPU)."""
    return artifact.fingerprint(_digests(weights))


def _check(weights: Mapping[str, Tensor], pipeline: Pipeline) -> None:
    if not weights:
        raise ValueError("weights: empty; the state of a network is needed")
    for name, tensor in weights.items():
        if not isinstance(tensor, Tensor) or tensor.dtype not in _DTYPES:
            raise ValueError(
                f"weights: '{name}' is {getattr(tensor, 'dtype', type(tensor).__name__)}; plain tensors are kept"
            )
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise ValueError(f"weights: '{name}' holds NaN or infinity; such a model is not packaged")
    if "all" not in pipeline.thresholds:
        raise ValueError(
            f"thresholds: {sorted(pipeline.thresholds)}: 'all' is missing (used for scans of unknown origin)"
        )


def _digests(weights: Mapping[str, Tensor]) -> list[list[Any]]:
    return [[name, str(t.dtype), list(t.shape), _digest(t)] for name, t in sorted(weights.items())]


def _digest(tensor: Tensor) -> str:
    return hashlib.sha256(tensor.reshape(-1).view(torch.uint8).numpy().data).hexdigest()


def _json(file: Path, form: type[T]) -> T:
    if file.stat().st_size > _LARGEST_JSON_BYTES:
        raise ArtifactError(f"{file}: {file.stat().st_size} bytes; at most {_LARGEST_JSON_BYTES} are read")
    return artifact.read_json(file, form, "settings of a package", _REMEDY)


def _weights(file: Path) -> dict[str, Tensor]:
    _check_header(file)
    try:
        return safetensors.torch.load_file(file)
    except (SafetensorError, ValueError, KeyError) as error:
        raise ArtifactError(f"{file}: not a safetensors file of this program ({error})") from None


def _check_header(file: Path) -> None:
    """The format begins with the length of its JSON header, 8 bytes little-endian; a pickle or a trap has an absurd one."""
    size = file.stat().st_size
    with file.open("rb") as stream:
        start = stream.read(9)
    length = struct.unpack("<Q", start[:8])[0] if len(start) == 9 else 0
    if start[8:] != b"{" or not 2 <= length <= min(_LARGEST_HEADER_BYTES, size - 8):
        raise ArtifactError(
            f"{file}: not a safetensors file (its header says {length} bytes of {size}; allowed are up to "
            f"{_LARGEST_HEADER_BYTES}). Pickled weights are never loaded"
        )
