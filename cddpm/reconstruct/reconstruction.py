"""Reconstructions: predicted x0 of a cohort, from which every guidance scale is arithmetic.

Just made, they are held in memory. Kept, they are two artifacts. **Predictions** (``prediction/<fingerprint>``) are a
growing folder of parts, one per volume, noise level and noise seed (``reconstruct.part``), of one model on one slice store
in one manner; all who ask for any of them share it. A **reconstruction** (``reconstruction/<fingerprint>``) is a view of it:
which volumes, levels and seeds somebody asked for, all of them written. Its fingerprint is what results name.

Branch ``c`` is the conditional prediction; branch ``d`` = c - u, its difference to the unconditional one, exists if the model
was trained with condition dropout or is guided by a DDPM. With a guidance scale s, x0(s) = u + s (c - u) = c + (s - 1) d
(classifier-free guidance, Ho & Salimans 2022, eq. 6, written for x0).
"""

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from cddpm import artifact
from cddpm.config import NoiseConfig, PatchConfig, ReconstructionConfig, to_dict
from cddpm.errors import ArtifactError
from cddpm.models.precision import certain
from cddpm.reconstruct.part import Key, Step, drop_damaged, parts_of, read_part, step_of
from cddpm.shelf import Kept

KIND, PREDICTION = "reconstruction", "prediction"
VIEW, MADE_FROM = "view.json", "made_from.json"
OWN_OF_VIEW = ("volumes", "noise_levels", "noise_seeds", "prediction")
"""What a reconstruction was made from beside what its prediction was."""
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

    def asks(self, file: str) -> bool:
        """Whether a file below the folder of predictions, by its name there, is a part of this view."""
        found = step_of(file)
        return found is not None and found[0] in self.volumes and found[1] in self.steps

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


Branches = Mapping[str, NDArray[np.floating[Any]]]
"""(S, H, W) of branch ``c``, and of ``d`` if there is an unconditional prediction."""
Parts = Mapping[tuple[str, Step], Branches]
"""By volume id and step."""


class Reconstruction:
    """Read access to the predictions of a cohort, held in memory or kept on the disk.

    Parts on the disk are mapped and checked on first use; their arrays are read-only views.
    """

    def __init__(
        self, view: View, parts: Parts, manifest: artifact.Manifest | None = None, path: Path | None = None
    ) -> None:
        self.path, self._where = path or Path(), str(path or "these predictions")
        self.fingerprint = manifest.fingerprint if manifest else ""
        self.made_from: dict[str, Any] = manifest.made_from if manifest else {}
        self.volumes, self.levels, self.seeds = view.volumes, view.levels, view.seeds
        self._steps, self._parts = frozenset(view.steps), parts
        self.guided = bool(view.volumes) and "d" in self._part(view.volumes[0], view.steps[0])
        """Whether there is an unconditional prediction beside each conditional one."""

    @classmethod
    def open(cls, path: Path) -> Self:
        """Open the reconstruction at ``path``. Raises ``ArtifactError`` if it is missing, unfinished or another artifact."""
        manifest = artifact.read_manifest(path, KIND)
        view, folder = read_view(path)
        return cls(view, _Kept(path, view, folder), manifest, path)

    @classmethod
    def of(cls, volumes: Iterable[tuple[str, Mapping[Key, NDArray[np.floating[Any]]]]], wanted: View) -> Self:
        """In memory: arrays with branches ``c`` and ``d`` by volume id, of which ``wanted`` says levels and seeds."""
        parts: dict[tuple[str, Step], dict[str, NDArray[np.floating[Any]]]] = {}
        for volume, arrays in volumes:
            for (branch, *step), array in arrays.items():
                parts.setdefault((volume, (step[0], step[1])), {})[branch] = array
        return cls(replace(wanted, volumes=tuple(dict.fromkeys(volume for volume, _ in parts))), parts)

    @classmethod
    def joined(cls, shares: Sequence["Reconstruction"]) -> Self:
        """Reconstructions in memory, of the same levels and seeds, as one."""
        volumes = tuple(volume for share in shares for volume in share.volumes)
        parts = {key: branches for share in shares for key, branches in share._parts.items()}
        return cls(View(volumes, shares[0].levels, shares[0].seeds), parts)

    def __reduce__(self) -> tuple[Any, ...]:
        """What is kept on the disk pickles as its path."""
        if self.fingerprint:
            return _opened, (Kept.of(self.path),)
        return Reconstruction, (View(self.volumes, self.levels, self.seeds), self._parts)

    def c(self, volume: str, level: int, seed: int) -> NDArray[np.floating[Any]]:
        """Conditional prediction (S, H, W). Raises ``ArtifactError`` for what was not predicted."""
        return self._array(volume, "c", (level, seed))

    def d(self, volume: str, level: int, seed: int) -> NDArray[np.floating[Any]]:
        """Conditional minus unconditional prediction (S, H, W). Raises ``ArtifactError`` without one."""
        return self._array(volume, "d", (level, seed))

    def _array(self, volume: str, branch: str, step: Step) -> NDArray[np.floating[Any]]:
        if step not in self._steps:
            raise ArtifactError(
                f"{self._where}: noise level {step[0]} with seed {step[1]} was not predicted; there are levels "
                f"{list(self.levels)} and seeds {list(self.seeds)}"
            )
        branches = self._part(volume, step)
        if branch not in branches:
            raise ArtifactError(
                f"{self._where}: holds no unconditional predictions, so only guidance scale 1 is possible; "
                "train with diffusion.condition_dropout > 0, or set reconstruction.guide: ddpm"
            )
        return branches[branch]

    def _part(self, volume: str, step: Step) -> Branches:
        try:
            return self._parts[volume, step]
        except KeyError:
            raise ArtifactError(
                f"{self._where}: volume '{volume}' is not among its {len(self.volumes)} volumes"
            ) from None


class _Kept(dict[tuple[str, Step], Branches]):
    """Parts in a folder, read when they are asked for. Raises ``KeyError`` for a volume that the view has not."""

    def __init__(self, path: Path, view: View, folder: Path) -> None:
        self._path, self._volumes, self._folder = path, frozenset(view.volumes), folder
        self._files: dict[str, dict[Step, Path]] = {}

    def __missing__(self, key: tuple[str, Step]) -> Branches:
        volume, step = key
        if volume not in self._volumes:
            raise KeyError(volume)
        if volume not in self._files:
            self._files[volume] = parts_of(self._folder, volume)
        if step not in self._files[volume]:
            raise ArtifactError(
                f"{self._path}: the predictions of volume '{volume}' at level {step[0]}, seed {step[1]} are gone from "
                f"{self._folder}; whoever asks for this reconstruction again makes them"
            )
        self[key] = read_part(self._files[volume][step])
        return self[key]


def _opened(kept: Kept) -> Reconstruction:
    """On another node: fetched with its parts."""
    path = kept.here()
    view, parts = read_view(path)
    kept.shelf.gather(parts, view.asks)
    return Reconstruction.open(path)
