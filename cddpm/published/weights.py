"""Import of published weights: a Lightning checkpoint of the reference becomes a checkpoint or an encoder of this project.

What the tensors show (widths, depths, schedule) decides the configuration; what they cannot show (objective, noise, data)
is taken from a configuration file, and both must agree. A tensor that is missing, unknown or of another shape is refused.
"""

import json
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cddpm import artifact
from cddpm.config import ExperimentConfig, recorded, to_dict, with_values
from cddpm.errors import ArtifactError, ConfigError
from cddpm.models.cddpm import ConditionedDiffusion
from cddpm.models.diffusion import schedule_buffers
from cddpm.models.spark import UNREAD, SparK
from cddpm.published import networks
from cddpm.published.lightning_file import LightningFile
from cddpm.published.networks import Kind, Part, Parts
from cddpm.training import checkpoint, stages

IMPORTER_VERSION = 1
"""Part of every fingerprint; raised when the same file would give other weights or settings."""
UNTOLD = (
    "diffusion.objective",
    "diffusion.loss",
    "diffusion.noise.kind",
    "diffusion.patch.enabled",
    "data.modality",
    "data.percentiles",
    "model.attention_head_width",
)
"""Settings that no tensor shows and that change what a diffusion model says or how it is used."""
UNTOLD_OF_ENCODER = ("encoder.max_pool", "encoder.drop_path")

_TRUNK = "sparse_encoder.sp_cnn."


@dataclass(frozen=True)
class Candidate:
    """Weights that fit, under this project's names, and the configuration they fit."""

    kind: str
    """``stages.CHECKPOINT`` or ``stages.ENCODER``."""
    weights: dict[str, Tensor]
    config: ExperimentConfig
    parts: Parts
    decided: dict[str, Any]
    """Settings that the tensors decided."""
    dropped: tuple[str, ...]
    """Names in the file that belong to the network but are not needed: SparK's decoder, an encoder's last layer."""


def examine(
    file: LightningFile, config: ExperimentConfig, average: bool = False, ignore: Sequence[str] = ()
) -> Candidate:
    """Fit the tensors of ``file`` and ``config`` together; nothing is written.

    ``average``: take the moving average of the weights; ``ignore``: prefixes of names to leave out. Raises
    ``ArtifactError`` listing every missing, unknown, misshapen or unusable tensor, ``ConfigError`` listing every setting
    of ``config`` that the tensors contradict.
    """
    source = str(file.path)
    try:
        parts = networks.find_parts(_without(file.tensors, ignore), average)
        _check_set(parts)
        decided = _settings(parts)
    except ArtifactError as error:
        raise ArtifactError(f"{source}: {error}") from None
    settled = _settle(config, decided, parts, source)
    fit = _fit_diffusion if _kind(parts) == stages.CHECKPOINT else _fit_pretraining
    weights, dropped = fit(settled, parts, source)
    return Candidate(_kind(parts), weights, settled, parts, decided, dropped)


def write(candidate: Candidate, file: LightningFile, artifacts: Path) -> tuple[Path, bool]:
    """``(folder, made)``: the artifact below ``artifacts``, made now or found; its name is the fingerprint of its content.

    Raises ``StorageError`` if the disk refuses.
    """
    settings = _relevant(candidate)
    prefixes = {kind: part.prefix for kind, part in candidate.parts.found.items()}
    name = artifact.fingerprint(candidate.kind, IMPORTER_VERSION, file.digest, prefixes, settings)
    made_from = {
        "imported": {"file": file.path.name, "sha256": file.digest, "prefixes": prefixes, **file.about},
        "importer": IMPORTER_VERSION,
        "method": stages.METHOD_VERSION,
        "settings": settings,
    }

    def fill(folder: Path) -> None:
        checkpoint.save_weights(folder / checkpoint.WEIGHTS, candidate.weights)
        artifact.write_json(folder / checkpoint.CONFIG, recorded(candidate.config))
        artifact.write_text(folder / checkpoint.HISTORY, "")  # the curves of that training are not in the file

    return artifact.ensure(artifacts / candidate.kind / name, candidate.kind, name, made_from, fill)


def _relevant(candidate: Candidate) -> dict[str, Any]:
    """Settings that belong to the content: not where it lies and what it is called."""
    if candidate.kind == stages.ENCODER:
        return {"encoder": to_dict(candidate.config.encoder)}
    config = to_dict(candidate.config)
    sections = ("data", "encoder", "model", "diffusion", "reconstruction", "scoring", "seed")
    places = {"data_dir": None, "table": None}
    return {name: config[name] | places if name == "data" else config[name] for name in sections}


def _without(tensors: Mapping[str, Tensor], ignore: Sequence[str]) -> dict[str, Tensor]:
    idle = [prefix for prefix in ignore if not any(name.startswith(prefix) for name in tensors)]
    if idle:
        raise ArtifactError(f"--ignore {', '.join(idle)}: no name in the file begins with it")
    return {name: tensor for name, tensor in tensors.items() if not name.startswith(tuple(ignore))}


def _kind(parts: Parts) -> str:
    return stages.CHECKPOINT if "unet" in parts.found else stages.ENCODER


def _check_set(parts: Parts) -> None:
    """Whether the networks that were found make one model."""
    found = parts.found.keys()
    if not found & {"unet", "encoder", "spark"}:
        shown = "".join(f"\n  unknown: {name}" for name in parts.unknown)
        raise ArtifactError(f"no network of the published code is in its state_dict{shown}")
    if "spark" in found and found & {"unet", "encoder"}:
        raise ArtifactError(
            f"a pretraining (below '{parts.found['spark'].prefix}') and another network are in one file; leave one out "
            "(--ignore PREFIX)"
        )
    if "unet" not in found:
        return
    conditioned = any(name.startswith("label_emb.") for name in parts.found["unet"].tensors)
    if conditioned and "encoder" not in found:
        raise ArtifactError(
            "the U-Net takes a condition (label_emb), but no encoder is there: layer1 to layer4 are missing"
        )
    if "encoder" in found and not conditioned:
        raise ArtifactError(
            "the U-Net takes no condition (no label_emb), but an encoder is there, below "
            f"'{parts.found['encoder'].prefix}'; leave it out (--ignore PREFIX) if it has no use"
        )


def _settings(parts: Parts) -> dict[str, Any]:
    """Settings that the tensors show; every network that cannot be told is listed."""
    readers: dict[Kind, Callable[[Mapping[str, Tensor]], dict[str, Any]]] = {
        "unet": networks.unet_settings,
        "encoder": networks.encoder_settings,
        "spark": networks.spark_settings,
        "schedule": networks.schedule_settings,
    }
    decided: dict[str, Any] = {}
    faults = []
    for kind, part in parts.found.items():
        try:
            decided |= readers[kind](part.tensors)
        except ArtifactError as error:
            faults.append(f"  {kind}: {error}")
    if faults:
        raise ArtifactError("\n".join(["not a network that this program knows:", *faults, *_unknown(parts)]))
    if "unet" in parts.found:
        decided |= {"model.conditioning": "vector", "diffusion.condition_dropout": 0.0}
    if decided.get("model.condition_width") == 4 * decided.get("model.base_width", 0):
        decided["model.condition_width"] = None  # the reference's rule, and our default
    return decided


def _settle(config: ExperimentConfig, decided: Mapping[str, Any], parts: Parts, source: str) -> ExperimentConfig:
    """``config`` with what the tensors show. Settings that were left at their default give way; others must agree."""
    faults = [*_contradictions(config, decided), *_weight_faults(config, decided, parts)]
    if faults:
        raise ConfigError(
            "\n".join(
                [f"{source}: the configuration says otherwise than the tensors (mend it, or say --set):", *faults]
            )
        )
    return with_values(config, decided, source)


def _contradictions(config: ExperimentConfig, decided: Mapping[str, Any]) -> Iterator[str]:
    for path, value in decided.items():
        given, explicit = _value(config, path)
        given = list(given) if isinstance(given, tuple) else given
        if path == "model.condition_width" and given == 4 * decided["model.base_width"]:
            given = None
        if explicit and given != value:
            yield f"  {path}: {given!r}, but the tensors show {value!r} (--set {path}={_bare(value)})"


def _bare(value: Any) -> str:
    """``value`` as ``--set`` takes it, without blanks that a shell would split."""
    return json.dumps(value, separators=(",", ":"))


def _value(config: ExperimentConfig, path: str) -> tuple[Any, bool]:
    """A setting, and whether the file or the command line named it."""
    section, explicit = config, True
    *sections, name = path.split(".")
    for part in sections:
        explicit = explicit and part in section.model_fields_set
        section = getattr(section, part)
    return getattr(section, name), explicit and name in section.model_fields_set


def _weight_faults(config: ExperimentConfig, decided: Mapping[str, Any], parts: Parts) -> Iterator[str]:
    """The loss weights by noise level: gamma and k cannot be told from them, only compared."""
    schedule = parts.found.get("schedule")
    if schedule is None or "p2_loss_weight" not in schedule.tensors or "diffusion.p2_gamma" in decided:
        return
    own = schedule_buffers(
        decided["diffusion.schedule"],
        decided["diffusion.timesteps"],
        config.diffusion.p2_gamma,
        config.diffusion.p2_k,
    )
    if [*networks.differing_buffers(schedule.tensors, own, ("p2_loss_weight",))]:
        yield (
            f"  diffusion.p2_gamma: {config.diffusion.p2_gamma} with p2_k {config.diffusion.p2_k}, but the tensors show "
            "other weights (p2_loss_weight)"
        )


def _fit_diffusion(config: ExperimentConfig, parts: Parts, source: str) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    with torch.device("meta"):  # shapes alone: what a file claims is checked before memory is taken for it
        wanted = ConditionedDiffusion(config.model, config.encoder, config.diffusion).state_dict()
    networks: tuple[Kind, ...] = ("unet", "encoder")
    tensors = {f"{k}.{name}": t for k in networks if k in parts.found for name, t in parts.found[k].tensors.items()}

    def in_file(name: str) -> str:
        kind, _, rest = name.partition(".")
        return next((parts.found[k].prefix + rest for k in networks if k == kind and k in parts.found), name)

    return _fitted(tensors, wanted, parts, in_file, source), ()


def _fit_pretraining(config: ExperimentConfig, parts: Parts, source: str) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    part = parts.found.get("spark") or parts.found["encoder"]
    with torch.device("meta"):
        spark = SparK(config.encoder, config.pretraining.decoder_width, config.pretraining.mask_ratio)
    wanted, tensors, prefix = spark.state_dict(), part.tensors, ""
    if "spark" in parts.found:
        tensors = {name: tensor for name, tensor in tensors.items() if name not in UNREAD}
        prefix = _TRUNK
    else:
        wanted = spark.trunk.state_dict()
        # As in the reference, the last layer is learned with the diffusion model, not before.
        tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith("fc.")}
    weights = _fitted(tensors, wanted, parts, lambda name: part.prefix + name, source)
    trunk = {name.removeprefix(prefix): tensor for name, tensor in weights.items() if name.startswith(prefix)}
    dropped = tuple(sorted(part.prefix + name for name in part.tensors if name.removeprefix(prefix) not in trunk))
    return trunk, dropped


def _fitted(
    tensors: Mapping[str, Tensor],
    wanted: Mapping[str, Tensor],
    parts: Parts,
    in_file: Callable[[str], str],
    source: str,
) -> dict[str, Tensor]:
    """``tensors`` in the types of ``wanted`` (half precision becomes float32 exactly).

    Raises ``ArtifactError`` listing all faults.
    """
    faults = [
        *(f"  missing: {in_file(name)} {tuple(wanted[name].shape)}" for name in wanted if name not in tensors),
        *(f"  unknown: {in_file(name)} {tuple(tensors[name].shape)}" for name in tensors if name not in wanted),
        *_unknown(parts),
        *_misfits(tensors, wanted, in_file),
    ]
    if faults:
        raise ArtifactError(
            "\n".join([f"{source}: its tensors are not those of the network that they describe:", *faults])
            + "\nNothing was imported. Names that have no use can be left out by --ignore PREFIX"
        )
    return {name: tensors[name].to(wanted[name].dtype).contiguous() for name in wanted}


def _unknown(parts: Parts) -> list[str]:
    return [f"  unknown: {name}" for name in parts.unknown]


def _misfits(
    tensors: Mapping[str, Tensor], wanted: Mapping[str, Tensor], in_file: Callable[[str], str]
) -> Iterator[str]:
    for name in (name for name in wanted if name in tensors):
        tensor, own = tensors[name], wanted[name]
        if tensor.shape != own.shape:
            yield f"  shape: {in_file(name)} is {tuple(tensor.shape)}, needed is {tuple(own.shape)}"
        elif tensor.is_floating_point() != own.is_floating_point() or tensor.dtype == torch.bool:
            yield f"  type: {in_file(name)} is {tensor.dtype}, needed is {own.dtype}"
        elif own.is_floating_point() and not bool(torch.isfinite(tensor.to(own.dtype)).all()):
            yield f"  value: {in_file(name)} holds NaN or infinity"


def untold(candidate: Candidate) -> dict[str, Any]:
    """Settings that no tensor shows, as the configuration has them: the person who imports must know them."""
    paths: Collection[str] = UNTOLD if candidate.kind == stages.CHECKPOINT else ()
    if candidate.config.model.conditioned or candidate.kind == stages.ENCODER:
        paths = [*paths, *UNTOLD_OF_ENCODER]
    if "schedule" not in candidate.parts.found and candidate.kind == stages.CHECKPOINT:
        paths = ["diffusion.schedule", "diffusion.timesteps", *paths]
    return {path: _value(candidate.config, path)[0] for path in paths if path not in candidate.decided}


def parameters(part: Part) -> int:
    """Numbers in a part's tensors, buffers included."""
    return sum(tensor.numel() for tensor in part.tensors.values())
