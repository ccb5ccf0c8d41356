"""What training leaves on disk: states to resume from, and finished checkpoints. Loading either runs no code.

A *state* (artifact kind ``training-state``) holds weights, moving average, optimizer tensors and the position in the data.
A *checkpoint* (kinds ``encoder`` and ``checkpoint``) holds what later stages need: weights, resolved configuration, history.
"""

import json
import logging
import os
import re
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from cddpm import artifact
from cddpm.config import ExperimentConfig
from cddpm.errors import ArtifactError
from cddpm.models.cddpm import ConditionedDiffusion
from cddpm.models.device import memory_format

logger = logging.getLogger(__name__)

STATE_KIND = "training-state"
WEIGHTS, TENSORS, PROGRESS, CONFIG, HISTORY = (
    "model.safetensors",
    "optimizer.safetensors",
    "progress.json",
    "config.json",
    "history.jsonl",
)
KEPT_STATES = 2
GUIDE_PREFIX = "guide."
"""Before the names of a guide's weights, which lie beside those of its model in a package."""


@dataclass(frozen=True)
class State:
    """A point in a training: ``images`` seen, the weights, their moving average (or None), the optimizer's state.

    ``loss_sum`` over ``loss_steps`` steps: what the next point of the history has gathered so far.
    """

    images: int
    weights: dict[str, Tensor]
    average: dict[str, Tensor] | None
    optimizer: dict[str, Any]
    loss_sum: float = 0.0
    loss_steps: int = 0


def save_weights(path: Path, weights: Mapping[str, Tensor]) -> None:
    """Write tensors as safetensors (each made contiguous and moved to the CPU)."""
    with artifact.storage_errors(path):
        try:
            save_file({name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}, path)
        except SafetensorError as error:  # which hides what the system said in its words
            said = re.search(r"os error (\d+)", str(error))
            if said is None:
                raise
            raise OSError(int(said[1]), os.strerror(int(said[1]))) from error


def load_weights(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file; never runs code. Raises ``ArtifactError`` for anything else in that file."""
    try:
        return load_file(path)
    except FileNotFoundError:
        raise ArtifactError(f"{path}: missing") from None
    except (SafetensorError, OSError, ValueError) as error:
        raise ArtifactError(f"{path}: not a safetensors file of weights ({error})") from error


def fill_module(module: nn.Module, weights: Mapping[str, Tensor], source: str) -> None:
    """Load ``weights`` into ``module``. Raises ``ArtifactError`` listing missing, extra and misshapen tensors.

    Numbers of another type are refused too: PyTorch would convert them without a word.
    """
    wanted = module.state_dict()
    missing = [name for name in wanted if name not in weights]
    extra = [name for name in weights if name not in wanted]
    shapes = [
        f"{name} is {tuple(weights[name].shape)}, needed {tuple(wanted[name].shape)}"
        for name in wanted
        if name in weights and weights[name].shape != wanted[name].shape
    ]
    types = [
        f"{name} is {weights[name].dtype}, needed {wanted[name].dtype}"
        for name in wanted
        if name in weights and weights[name].dtype != wanted[name].dtype
    ]
    faults = [
        *([f"missing {_some(missing)}"] if missing else []),
        *([f"unknown {_some(extra)}"] if extra else []),
        *([_some(shapes)] if shapes else []),
        *([_some(types)] if types else []),
    ]
    if faults:
        raise ArtifactError(f"{source}: weights of another architecture: {'; '.join(faults)}")
    module.load_state_dict(dict(weights))


def trained(
    config: ExperimentConfig, weights: Mapping[str, Tensor], source: str, device: torch.device | str = "cpu"
) -> ConditionedDiffusion:
    """The network of ``config`` with ``weights``, on ``device`` in evaluation mode. Raises as ``fill_module``."""
    network = ConditionedDiffusion(config.model, config.encoder, config.diffusion)
    fill_module(network, weights, source)
    network.to(device).to(memory_format=memory_format(torch.device(device)))  # type: ignore[call-overload]
    return network.eval()


def _some(names: list[str], most: int = 5) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def packed(model: Mapping[str, Tensor], guide: Mapping[str, Tensor] | None) -> dict[str, Tensor]:
    """The weights of a model and its guide as one mapping."""
    return {**model, **{f"{GUIDE_PREFIX}{name}": tensor for name, tensor in (guide or {}).items()}}


def unpacked(weights: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The weights of the model and those of its guide (empty without one)."""
    model = {name: tensor for name, tensor in weights.items() if not name.startswith(GUIDE_PREFIX)}
    return model, {name.removeprefix(GUIDE_PREFIX): weights[name] for name in weights.keys() - model.keys()}


def save_state(directory: Path, state: State, fingerprint: str) -> Path:
    """Write ``state`` below ``directory``, whole or not at all, and drop all but the newest two."""

    def fill(temporary: Path) -> None:
        save_weights(temporary / WEIGHTS, state.weights)
        if state.average is not None:
            save_weights(temporary / "average.safetensors", state.average)
        tensors, plain = _flatten_optimizer(state.optimizer)
        save_weights(temporary / TENSORS, tensors)
        losses = {"loss_sum": state.loss_sum, "loss_steps": state.loss_steps}
        artifact.write_json(temporary / PROGRESS, {"images": state.images, "optimizer": plain, **losses})

    path = directory / f"images-{state.images:012d}"
    if path.exists():  # a damaged state that was walked past
        shutil.rmtree(path)
    artifact.create(path, STATE_KIND, fingerprint, {"images": state.images}, fill)
    for old in states(directory)[KEPT_STATES:]:
        shutil.rmtree(old, ignore_errors=True)
    return path


def newest_state(directory: Path, fingerprint: str) -> State | None:
    """The newest intact state below ``directory``; damaged ones are named in the log and passed over.

    None if training never saved one. Raises ``ArtifactError`` if there are states and none is intact.
    """
    there = states(directory)
    for path in there:
        try:
            return _read_state(path, fingerprint)
        except ArtifactError as error:
            logger.warning("passing over a damaged state: %s", error)
    if there:
        raise ArtifactError(
            f"{directory}: none of its {len(there)} saved states is intact; delete this folder to train from the start"
        )
    return None


def states(directory: Path) -> list[Path]:
    """Folders of saved states, the newest first."""
    return sorted((p for p in directory.glob("images-*") if p.is_dir() and p.suffix != ".partial"), reverse=True)


def _read_state(path: Path, fingerprint: str) -> State:
    manifest = artifact.verify(path, STATE_KIND)
    if manifest.fingerprint != fingerprint:
        raise ArtifactError(f"{path}: belongs to another training ({manifest.fingerprint}, not {fingerprint})")
    progress = artifact.read_json(path / PROGRESS, dict[str, Any], "the progress of a training", "delete this state")
    average = path / "average.safetensors"
    return State(
        images=progress["images"],
        weights=load_weights(path / WEIGHTS),
        average=load_weights(average) if average.exists() else None,
        optimizer=_unflatten_optimizer(load_weights(path / TENSORS), progress["optimizer"]),
        loss_sum=progress["loss_sum"],
        loss_steps=progress["loss_steps"],
    )


def _flatten_optimizer(state: Mapping[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    tensors = {f"{index}.{key}": value for index, slot in state["state"].items() for key, value in slot.items()}
    return tensors, {"param_groups": state["param_groups"]}


def _unflatten_optimizer(tensors: Mapping[str, Tensor], plain: Mapping[str, Any]) -> dict[str, Any]:
    slots: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        index, key = name.split(".", 1)
        slots.setdefault(int(index), {})[key] = tensor
    return {"state": slots, "param_groups": plain["param_groups"]}


def append_history(path: Path, row: Mapping[str, float]) -> None:
    """Add one line (images seen and metrics, and now) to a history; a repeated or earlier point after a resume is not added.

    The file is replaced as a whole, so that nobody reads half a line and a damaged one does not swallow the next.
    """
    rows = timed_history(path)
    if rows and rows[-1]["images"] >= row["images"]:
        return
    rows.append({**row, "time": round(time.time(), 3)})
    artifact.write_text(path, "".join(json.dumps(r) + "\n" for r in rows))


def read_history(path: Path) -> list[dict[str, float]]:
    """All complete lines of a history, without when they were written: what a resumed training has like an undisturbed one.

    A damaged line is left out and named in the log.
    """
    return [{name: value for name, value in row.items() if name != "time"} for row in timed_history(path)]


def timed_history(path: Path) -> list[dict[str, float]]:
    """``read_history`` with ``time`` in each line, in seconds since 1970."""
    rows = []
    lines = path.read_text(errors="replace").splitlines() if path.exists() else []
    for number, line in enumerate(lines, 1):
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            logger.warning("%s: line %d is damaged and left out", path, number)
    return rows


def read_config(path: Path) -> dict[str, Any]:
    """The resolved configuration inside a checkpoint, as plain data. Raises ``ArtifactError`` if it cannot be read."""
    return artifact.read_json(
        path / CONFIG, dict[str, Any], "the settings of a checkpoint", "delete it to train it again"
    )


def tensors_on(device: torch.device, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """``weights`` on ``device``."""
    return {name: tensor.to(device) for name, tensor in weights.items()}
