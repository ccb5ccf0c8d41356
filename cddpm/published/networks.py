"""Published weights: which tensors of a file belong to which network, and what their shapes say about it.

In a file the names of a network stand below the names of the attributes that held it ("diffusion.model.input_blocks...").
These prefixes are not known beforehand: they are found by the names that only such a network has.

Letters: B slices, C length of the condition vector, T noise levels.
"""

import re
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from cddpm.errors import ArtifactError
from cddpm.models.diffusion import schedule_buffers
from cddpm.models.encoder import BLOCKS

Kind = Literal["unet", "encoder", "spark", "schedule"]
KINDS: tuple[Kind, ...] = ("unet", "encoder", "spark", "schedule")

SCHEDULE_TOLERANCE = 1e-4
"""Relative; the same schedule computed in float32 differs by less, another one by far more."""

_HEADS: dict[Kind, frozenset[str]] = {
    "unet": frozenset(("time_embed", "label_emb", "input_blocks", "middle_block", "output_blocks")),
    "encoder": frozenset(f"layer{stage}" for stage in range(1, 5)),
    "spark": frozenset(("sparse_encoder", "dense_decoder", "en_de_norms", "en_de_lins", "mask_tokens")),
    "schedule": frozenset(schedule_buffers("cosine", 2)),
}
_ALSO: dict[Kind, frozenset[str]] = {
    "unet": frozenset(("out",)),
    "encoder": frozenset(("conv1", "bn1", "fc")),
    "spark": frozenset(("imn_m", "imn_s", "norm_black")),
    "schedule": frozenset(),
}
_WRAPPERS = ("module", "_orig_mod")
"""What DistributedDataParallel and torch.compile put between a name and its owner."""
_AVERAGE = re.compile(r"^(ema|.*_ema|ema_.*)$")


@dataclass(frozen=True)
class Part:
    """Tensors of one network under its own names; in the file they stood below ``prefix``."""

    prefix: str
    tensors: dict[str, Tensor]


@dataclass(frozen=True)
class Parts:
    """What a file holds. ``unknown``: names that belong to nothing here; ``copies``: prefixes of copies not taken."""

    found: dict[Kind, Part]
    unknown: tuple[str, ...]
    copies: tuple[str, ...]


def find_parts(tensors: Mapping[str, Tensor], average: bool = False) -> Parts:
    """Find each network's prefix. Of a network and its moving average ("ema") the former is taken, with ``average`` the latter.

    Raises ``ArtifactError`` if a network stands there more than once, or ``average`` is asked for and there is none.
    """
    names = _unwrapped(tensors)
    prefixes = _prefixes(names)
    chosen = _choose(prefixes, average)
    owners = [(kind, prefix) for kind in KINDS for prefix in prefixes[kind]]
    members = {owner: {name for name in names if _belongs(name, *owner)} for owner in owners}
    found = {
        kind: Part(prefix, {name.removeprefix(prefix): tensors[names[name]] for name in sorted(members[kind, prefix])})
        for kind, prefix in chosen.items()
    }
    averaged = any(_is_average(prefix) for _, prefix in owners)
    rest = set(names).difference(*members.values())
    # A moving average keeps a book of its own beside the weights: steps, decay.
    unknown = [names[name] for name in sorted(rest) if not (averaged and _is_average(name))]
    copies = sorted({prefix for kind, prefix in owners if prefix != chosen.get(kind)})
    return Parts(found, tuple(unknown), tuple(copies))


def _unwrapped(tensors: Collection[str]) -> dict[str, str]:
    """Names without what wrappers put in -> names in the file."""
    plain: dict[str, str] = {}
    for name in tensors:
        short = ".".join(part for part in name.split(".") if part not in _WRAPPERS)
        if short in plain:
            raise ArtifactError(f"state_dict holds '{name}' and '{plain[short]}', one network twice; keep one of them")
        plain[short] = name
    return plain


def _prefixes(names: Collection[str]) -> dict[Kind, dict[str, int]]:
    """Kind -> prefix -> number of names that show it. The outermost telling name decides."""
    prefixes: dict[Kind, dict[str, int]] = {kind: defaultdict(int) for kind in KINDS}
    for name in names:
        parts = name.split(".")
        for depth, part in enumerate(parts):
            kind = next((k for k in KINDS if part in _HEADS[k]), None)
            if kind:
                prefixes[kind]["".join(f"{p}." for p in parts[:depth])] += 1
                break
    return prefixes


def _choose(prefixes: Mapping[Kind, Mapping[str, int]], average: bool) -> dict[Kind, str]:
    chosen: dict[Kind, str] = {}
    faults = []
    for kind, counts in prefixes.items():
        averages = {prefix for prefix in counts if _is_average(prefix)}
        wanted = averages if (average and averages) or averages == counts.keys() else counts.keys() - averages
        if len(wanted) == 1:
            chosen[kind] = next(iter(wanted))
        elif wanted:
            shown = ", ".join(f"'{prefix}' ({counts[prefix]} tensors)" for prefix in sorted(wanted))
            faults.append(f"  {kind}: below {shown}")
    if faults:
        raise ArtifactError(
            "\n".join(["state_dict holds a network more than once; leave all but one out (--ignore PREFIX):", *faults])
        )
    if average and not any(_is_average(prefix) for prefix in chosen.values()):
        raise ArtifactError("state_dict holds no moving average of the weights (no name has a part 'ema'); drop --ema")
    return chosen


def _is_average(prefix: str) -> bool:
    return any(_AVERAGE.match(part) for part in prefix.split("."))


def _belongs(name: str, kind: Kind, prefix: str) -> bool:
    return name.startswith(prefix) and name.removeprefix(prefix).split(".")[0] in _HEADS[kind] | _ALSO[kind]


def unet_settings(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """What the shapes say: settings of ``ModelConfig`` by dotted path. Raises ``ArtifactError`` if they say nothing."""
    base = _width(tensors, "input_blocks.0.0.weight", "input_blocks.0.0.bias")
    stages = _count(tensors, "output_blocks")
    ups = sum(any(name.startswith(f"output_blocks.{stage}.1.") for name in tensors) for stage in range(stages))
    levels = ups + 1
    per_level, rest = divmod(stages, levels)
    if rest or per_level < 2 or _count(tensors, "input_blocks") != levels * per_level:
        raise ArtifactError(
            f"the U-Net has {_count(tensors, 'input_blocks')} input and {stages} output stages, {ups} of them enlarging; "
            f"{levels} levels of equally many residual blocks cannot be made of these"
        )
    widths = [_stage_width(tensors, 1 + level * per_level) for level in range(levels)]
    if any(width % base for width in widths):
        raise ArtifactError(f"the U-Net's levels have {widths} channels; needed are multiples of the first {base}")
    settings: dict[str, Any] = {
        "model.base_width": base,
        "model.width_multipliers": [width // base for width in widths],
        "model.residual_blocks": per_level - 1,
        "model.conditioned": any(name.startswith("label_emb.") for name in tensors),
    }
    condition = tensors.get("label_emb.0.weight")
    if condition is not None and condition.ndim == 2:
        settings["model.condition_width"] = condition.shape[1]
    return settings


def _stage_width(tensors: Mapping[str, Tensor], stage: int) -> int:
    block = f"input_blocks.{stage}.0.out_layers"
    return _width(tensors, f"{block}.0.weight", f"{block}.0.bias", f"{block}.3.bias")


def encoder_settings(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """What the shapes say: settings of ``EncoderConfig`` by dotted path. Raises ``ArtifactError`` if they say nothing."""
    counts = tuple(_count(tensors, f"layer{stage}") for stage in range(1, 5))
    bottleneck = any(name.startswith("layer1.0.conv3.") for name in tensors)
    known: dict[tuple[tuple[int, ...], bool], str] = {
        (blocks, name in ("resnet50", "resnet101")): name for name, blocks in BLOCKS.items()
    }  # counts alone do not tell 34 from 50
    if (counts, bottleneck) not in known:
        raise ArtifactError(
            f"the encoder has {counts} {'bottleneck' if bottleneck else 'basic'} blocks; known are "
            + ", ".join(f"{name} {blocks}" for name, blocks in BLOCKS.items())
        )
    return {
        "encoder.architecture": known[counts, bottleneck],
        "encoder.width": _width(tensors, "conv1.weight", "bn1.weight", "bn1.bias"),
    }


def spark_settings(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """The same for a SparK pretraining: also the decoder's width and, by its depth, the encoder's max pooling.

    Raises ``ArtifactError`` for a decoder of another depth than the published ones.
    """
    steps = _count(tensors, "dense_decoder.dec")
    if steps not in (4, 5):
        raise ArtifactError(f"SparK's decoder has {steps} steps; known are 5, and 4 for an encoder without max pooling")
    trunk = {name.removeprefix("sparse_encoder.sp_cnn."): tensor for name, tensor in tensors.items()}
    return {
        **encoder_settings(trunk),
        "encoder.max_pool": steps == 5,
        "pretraining.decoder_width": _width(tensors, "en_de_lins.0.weight", "en_de_lins.0.bias"),
    }


def schedule_settings(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Schedule and number of noise levels T that give the buffers; also p2_gamma 0 where all weights are 1.

    Raises ``ArtifactError`` if no known schedule gives them.
    """
    lengths = {tensor.numel() if tensor.ndim == 1 else -1 for tensor in tensors.values()}
    timesteps = lengths.pop() if len(lengths) == 1 else -1
    if timesteps < 2:
        shapes = ", ".join(f"{name} {tuple(tensor.shape)}" for name, tensor in sorted(tensors.items()))
        raise ArtifactError(f"the schedule's buffers need one common length of at least 2: {shapes}")
    weights = tensors.get("p2_loss_weight")
    plain = weights is not None and bool((weights == 1).all())
    schedules: tuple[Literal["cosine", "linear"], ...] = ("cosine", "linear")
    for schedule in schedules:
        if not [*differing_buffers(tensors, schedule_buffers(schedule, timesteps))]:
            return {
                "diffusion.schedule": schedule,
                "diffusion.timesteps": timesteps,
                **({"diffusion.p2_gamma": 0.0} if plain else {}),
            }
    raise ArtifactError(
        f"the schedule's buffers (T = {timesteps}) are neither those of the cosine nor those of the linear schedule; in them "
        + "; ".join(
            f"{schedule}: {', '.join(differing_buffers(tensors, schedule_buffers(schedule, timesteps)))} differ"
            for schedule in schedules
        )
    )


def differing_buffers(
    tensors: Mapping[str, Tensor], own: Mapping[str, Tensor], also: Collection[str] = ()
) -> Iterator[str]:
    """Names of buffers (T,) that are not ours; the loss weights (a choice apart from the schedule) only if in ``also``."""
    for name, values in sorted(tensors.items()):
        if name == "p2_loss_weight" and name not in also:
            continue
        tolerance = max(SCHEDULE_TOLERANCE, torch.finfo(values.dtype).eps) if values.is_floating_point() else 0.0
        mine, theirs = own[name].double(), values.double()
        if mine.shape != theirs.shape or not torch.allclose(mine, theirs, tolerance, 1e-7):
            yield name


def _count(tensors: Collection[str], owner: str) -> int:
    """Length of the list of modules ``owner``: its highest index and one."""
    pattern = re.compile(rf"^{re.escape(owner)}\.(\d{{1,4}})\.")
    indices = [int(match[1]) for match in map(pattern.match, tensors) if match]
    return max(indices, default=-1) + 1


def _width(tensors: Mapping[str, Tensor], *names: str) -> int:
    """First dimension of the first of ``names`` that is there."""
    for name in names:
        if name in tensors and tensors[name].ndim and len(tensors[name]):
            return len(tensors[name])
    raise ArtifactError(f"missing are {', '.join(names)}: without one of them the network's width cannot be told")
