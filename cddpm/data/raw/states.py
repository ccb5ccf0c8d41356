"""Heads between two steps, kept so that what was stopped goes on behind the last expensive step."""

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cddpm import artifact
from cddpm.data.raw.head import Grid, Head

KIND = "prepare-state"
EXPENSIVE_SECONDS = 3.0
"""A state takes about half a second to write and read."""
Entries = list[dict[str, Any]]
"""What the manifest says of each step that was done."""


def keep(folder: Path, key: str, head: Head, entries: Entries) -> None:
    """Write the state ``key`` below ``folder``; those before it go. Raises ``StorageError``."""
    arrays: dict[str, Any] = {}
    for name, grid in _grids(head).items():
        arrays[f"{name}/data"], arrays[f"{name}/affine"] = grid.data, grid.affine

    def fill(directory: Path) -> None:
        with (directory / "head.npz").open("wb") as stream:
            np.savez(stream, **arrays)
        artifact.write_json(directory / "entries.json", {"entries": entries, "images": list(head.images)})

    artifact.create(folder / key, KIND, key, {}, fill)
    for other in folder.iterdir():
        if other.is_dir() and other.name != key:
            shutil.rmtree(other, ignore_errors=True)


def last(folder: Path, keys: Sequence[str]) -> tuple[int, Head, Entries] | None:
    """The latest state among ``keys`` (one for each step, in order) that is there and sound: how many steps it is behind."""
    for done in range(len(keys), 0, -1):
        path = folder / keys[done - 1]
        if artifact.is_sound(path, KIND):
            said = json.loads((path / "entries.json").read_text())
            with np.load(path / "head.npz", allow_pickle=False) as arrays:
                return done, _head(arrays, said["images"]), said["entries"]
    return None


def _grids(head: Head) -> dict[str, Grid]:
    named = {f"image/{modality}": grid for modality, grid in head.images.items()}
    others = {"mask": head.mask, "segmentation": head.segmentation}
    return named | {name: grid for name, grid in others.items() if grid is not None}


def _head(arrays: Mapping[str, Any], modalities: Sequence[str]) -> Head:
    def grid(name: str) -> Grid | None:
        return Grid(arrays[f"{name}/data"], arrays[f"{name}/affine"]) if f"{name}/data" in arrays else None

    images = {modality: grid(f"image/{modality}") for modality in modalities}
    return Head({name: one for name, one in images.items() if one is not None}, grid("mask"), grid("segmentation"))
