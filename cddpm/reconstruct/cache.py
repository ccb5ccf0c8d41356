"""The reconstruction cache: predicted x0 of a cohort, from which every guidance scale is arithmetic.

Two artifacts. **Predictions** (``prediction/<fingerprint>``) are a growing folder of parts, one per volume, noise level and
noise seed (``reconstruct.part``), of one model on one slice store in one manner; all who ask for any of them share it. A
**reconstruction** (``reconstruction/<fingerprint>``) is a view of it: which volumes, levels and seeds somebody asked for, all of
them written. Its fingerprint is what results name.

Branch ``c`` is the conditional prediction; branch ``d`` = c - u, its difference to the unconditional one, exists if the model
was trained with condition dropout or is guided by a DDPM. With a guidance scale s, x0(s) = u + s (c - u) = c + (s - 1) d
(classifier-free guidance, Ho & Salimans 2022, eq. 6, written for x0).
"""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from cddpm import artifact
from cddpm.config import NoiseConfig, PatchConfig, ReconstructionConfig, to_dict
from cddpm.errors import ArtifactError
from cddpm.models.precision import certain
from cddpm.reconstruct.part import Key, Step, drop_damaged, parts_of, read_part, rounded, write_part

__all__ = ["KIND", "PREDICTION", "Key", "ReconstructionCache", "Step", "View", "rounded", "write_part"]

KIND, PREDICTION = "reconstruction", "prediction"
VIEW, MADE_FROM = "view.json", "made_from.json"
VERSION = 2
"""Part of every fingerprint; raised when the same settings would give other numbers or files."""


def cache_path(artifacts_dir: Path, name: str) -> Path:
    """Folder of the reconstruction with the fingerprint ``name``."""
    return artifacts_dir / KIND / name


def prediction_path(artifacts_dir: Path, name: str) -> Path:
    """Folder of the predictions with the fingerprint ``name``."""
    return artifacts_dir / PREDICTION / name


def prediction_identity(
    checkpoint: str,
    store: str,
    config: ReconstructionConfig,
    noise: NoiseConfig,
    seed: int,
    patch: PatchConfig | None = None,
    guide: str | None = None,
) -> tuple[str, dict[str, Any]]:
    """Fingerprint of predictions and what they are made from: fingerprints and the settings that matter.

    Not the levels and seeds, which are counted part by part, but the batch size: by it about one float16 in 3000 becomes its
    neighbour. ``guide`` is the fingerprint of the DDPM that predicts branch u, if one does. Raises ``ValueError`` for a
    precision that is not settled yet.
    """
    asked = ("noise_levels", "noise_seeds")
    certain(config.precision)
    made_from: dict[str, Any] = {
        "version": VERSION,
        "checkpoint": checkpoint,
        "store": store,
        "reconstruction": {name: value for name, value in to_dict(config).items() if name not in asked},
        "noise": to_dict(noise),
        "seed": seed,
        **({"patch": to_dict(patch)} if patch is not None and patch.enabled else {}),
        **({"guide": guide} if guide is not None else {}),
    }
    return artifact.fingerprint(PREDICTION, made_from), made_from


def found_prediction(directory: Path, made_from: dict[str, Any]) -> None:
    """Make sure that the predictions' folder says what they are made from."""
    if not (directory / MADE_FROM).is_file():
        artifact.write_json(directory / MADE_FROM, made_from)


@dataclass(frozen=True)
class View:
    """Which parts a reconstruction is made of."""

    volumes: tuple[str, ...]
    levels: tuple[int, ...]
    seeds: tuple[int, ...]

    @classmethod
    def of(cls, volumes: Sequence[str], config: ReconstructionConfig) -> Self:
        """What ``config`` asks of ``volumes``; their order and repetitions do not matter."""
        levels, seeds = (tuple(sorted(set(n))) for n in (config.noise_levels, config.noise_seeds))
        return cls(tuple(sorted(set(volumes))), levels, seeds)

    @property
    def steps(self) -> tuple[Step, ...]:
        """Noise levels and seeds of each volume."""
        return tuple(product(self.levels, self.seeds))

    def identity(self, prediction: str, made_from: dict[str, Any]) -> tuple[str, dict[str, Any]]:
        """Fingerprint of this view of a prediction, and what it is made from."""
        own = {"volumes": list(self.volumes), "noise_levels": list(self.levels), "noise_seeds": list(self.seeds)}
        return artifact.fingerprint(KIND, prediction, own), {**made_from, **own, "prediction": prediction}

    def missing(self, parts: Path, volume: str) -> tuple[Step, ...]:
        """Steps at which ``volume`` is not written in ``parts``."""
        there = parts_of(parts, volume)
        return tuple(step for step in self.steps if step not in there)

    def without_damaged(self, parts: Path) -> None:
        """Delete those parts of the view that are damaged, so that they are missing. All are read once."""
        for volume in self.volumes:
            for step, file in parts_of(parts, volume).items():
                if step in self.steps:
                    drop_damaged(file)


def parts_directory(path: Path) -> Path:
    """Where a reconstruction that shares its parts with no other keeps them."""
    return path.with_name(f".{path.name}.parts")


def finish(
    path: Path,
    volume_ids: Sequence[str],
    name: str,
    made_from: dict[str, Any],
    parts: Path | None = None,
    view: View | None = None,
) -> Path:
    """Make the reconstruction ``path`` of parts that are all written (without ``view``: all there are of the volumes).

    Raises ``ArtifactError`` naming the volumes whose predictions are missing.
    """
    parts = parts or parts_directory(path)
    if view is None:
        steps = parts_of(parts, volume_ids[0])
        levels, seeds = (tuple(sorted(set(n))) for n in zip(*steps, strict=True)) if steps else ((), ())
        view = View(tuple(volume_ids), levels, seeds)
    missing = [volume for volume in view.volumes if view.missing(parts, volume) or not view.steps]
    if missing:
        raise ArtifactError(f"{parts}: predictions are missing for {len(missing)} volumes: {', '.join(missing[:5])}")
    # relative, so that the artifacts' folder can be moved
    content = {**view.__dict__, "parts": os.path.relpath(parts, path)}
    return artifact.create(path, KIND, name, made_from, lambda folder: artifact.write_json(folder / VIEW, content))


def read_view(path: Path) -> tuple[View, Path]:
    """What the reconstruction ``path`` is a view of, and the folder of its parts. Raises ``ArtifactError`` if damaged."""
    try:
        raw = json.loads((path / VIEW).read_text())
        parts = Path(os.path.normpath(path / raw["parts"]))
        return View(*(tuple(raw[name]) for name in ("volumes", "levels", "seeds"))), parts
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ArtifactError(f"{path / VIEW}: not a readable part of a {KIND} ({error})") from error


class ReconstructionCache:
    """Read access to a reconstruction. Parts are mapped and checked on first use; arrays are views unless said otherwise."""

    def __init__(self, path: Path, manifest: artifact.Manifest) -> None:
        self.path = path
        self.fingerprint = manifest.fingerprint
        self.made_from = manifest.made_from
        view, self._parts = read_view(path)
        self.volumes, self.levels, self.seeds = view.volumes, view.levels, view.seeds
        self._steps = frozenset(view.steps)
        self._files: dict[str, dict[Step, Path]] = {}
        self._arrays: dict[tuple[str, Step], dict[str, NDArray[np.float16]]] = {}
        self.guided: bool = "d" in self._part(self.volumes[0], view.steps[0])

    @classmethod
    def open(cls, path: Path) -> Self:
        """Open the reconstruction at ``path``. Raises ``ArtifactError`` if it is missing, unfinished or another artifact."""
        return cls(path, artifact.read_manifest(path, KIND))

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return ReconstructionCache.open, (self.path,)

    def c(self, volume: str, level: int, seed: int) -> NDArray[np.float16]:
        """Conditional prediction (S, H, W), a read-only view. Raises ``ArtifactError`` for what was not predicted."""
        return self._array(volume, ("c", level, seed))

    def d(self, volume: str, level: int, seed: int) -> NDArray[np.float16]:
        """Conditional minus unconditional prediction (S, H, W), a read-only view. Raises ``ArtifactError`` without one."""
        return self._array(volume, ("d", level, seed))

    def x0(self, volume: str, level: int, seed: int, guidance_scale: float = 1.0) -> NDArray[np.float32]:
        """The prediction of x0 at guidance scale s, c + (s - 1) d: (S, H, W), computed anew.

        For s <= 4 within 1e-3 of what the unrounded predictions give, if those are in [0, 1]: c and d are then off by 2^-12
        at most, each.

        Raises ``ArtifactError`` for a level, seed or volume that was not predicted, or s != 1 without a difference.
        """
        x0 = self.c(volume, level, seed).astype(np.float32)
        if guidance_scale != 1.0:
            x0 += np.float32(guidance_scale - 1.0) * self.d(volume, level, seed)
        return x0

    def _array(self, volume: str, key: Key) -> NDArray[np.float16]:
        if key[1:] not in self._steps:
            raise ArtifactError(
                f"{self.path}: noise level {key[1]} with seed {key[2]} was not predicted; there are levels "
                f"{list(self.levels)} and seeds {list(self.seeds)}"
            )
        branches = self._part(volume, key[1:])
        if key[0] not in branches:
            raise ArtifactError(
                f"{self.path}: holds no unconditional predictions, so only guidance scale 1 is possible; "
                "train with diffusion.condition_dropout > 0, or set reconstruction.guide: ddpm"
            )
        return branches[key[0]]

    def _part(self, volume: str, step: Step) -> dict[str, NDArray[np.float16]]:
        if (volume, step) not in self._arrays:
            if volume not in self.volumes:
                raise ArtifactError(f"{self.path}: volume '{volume}' is not among its {len(self.volumes)} volumes")
            if volume not in self._files:
                self._files[volume] = parts_of(self._parts, volume)
            if step not in self._files[volume]:
                raise ArtifactError(
                    f"{self.path}: the predictions of volume '{volume}' at level {step[0]}, seed {step[1]} are gone from "
                    f"{self._parts}; whoever asks for this reconstruction again makes them"
                )
            self._arrays[volume, step] = read_part(self._files[volume][step])
        return self._arrays[volume, step]
