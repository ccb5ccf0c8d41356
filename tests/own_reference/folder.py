"""A folder of reference arrays of our own making, its results computed anew or taken from a file."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.torch import save_file

from own_reference import networks, volumes
from own_reference.sizes import Sizes

Table = dict[str, np.ndarray]
Results = dict[str, Table]
FROZEN_RESULTS = Path(__file__).with_name("results.npz")
DICTIONARIES = "postprocess_evaldict"
SCANS = {"preprocess": "vol_a", "preprocess_b": "vol_b"}


def inputs(sizes: Sizes) -> dict[str, Table]:
    """By file: the arrays that are given, not computed."""
    return {
        "unet_small_io": networks.unet_inputs(sizes, conditioned=True),
        "unet_uncond_small_io": networks.unet_inputs(sizes, conditioned=False),
        "attention_block_io": networks.attention_inputs(sizes),
        "encoder_small_io": networks.encoder_inputs(sizes),
        "spark_small_io": networks.spark_inputs(sizes),
        "diffusion_io": networks.diffusion_inputs(sizes),
        "simplex": volumes.simplex_inputs(sizes),
        "postprocess": volumes.evaluation_inputs(sizes),
        "augment_ops": volumes.augmentation_inputs(sizes),
        **{name: volumes.preprocessing_inputs(sizes, which) for which, name in enumerate(SCANS)},
    }


def weights(sizes: Sizes) -> dict[str, networks.State]:
    """By file: the networks' tensors as they are stored."""
    return {
        "unet_small": networks.unet_weights(sizes, conditioned=True),
        "unet_uncond_small": networks.unet_weights(sizes, conditioned=False),
        "encoder_small": networks.encoder_weights(sizes),
        "spark_small": networks.spark_weights(sizes),
    }


def lay_out(sizes: Sizes, folder: Path) -> None:
    """Write what is given: weights, scans and split tables."""
    for name, state in weights(sizes).items():
        save_file({key: tensor.contiguous() for key, tensor in state.items()}, folder / f"{name}.safetensors")
    for which, name in enumerate(SCANS.values()):
        volumes.write_scan(sizes, which, folder, name)
    volumes.write_tables(sizes, folder)


Computed = Callable[[Table, Path], Table]


def computations(timesteps: int, single_octaves: int, noise_batch: int) -> dict[str, Computed]:
    """By file: its results, of its inputs and of the weights and scans in its folder."""
    from reference_settings import spark_state
    from reference_settings import weights as read

    def scan(name: str) -> Computed:
        return lambda given, folder: volumes.preprocessing_results(given, folder, SCANS[name])

    return {
        "unet_small_io": lambda given, folder: networks.unet_results(given, read(folder, "unet_small")),
        "unet_uncond_small_io": lambda given, folder: networks.unet_results(given, read(folder, "unet_uncond_small")),
        "attention_block_io": lambda given, _: networks.attention_results(given),
        "encoder_small_io": lambda given, folder: networks.encoder_results(given, read(folder, "encoder_small")),
        "spark_small_io": lambda given, folder: networks.spark_results(given, spark_state(folder)),
        "diffusion_io": lambda given, folder: networks.diffusion_results(given, read(folder, "unet_small"), timesteps),
        "simplex": lambda given, _: volumes.simplex_results(given, single_octaves, noise_batch),
        "postprocess": lambda given, _: volumes.evaluation_results(given),
        "augment_ops": lambda given, _: volumes.augmentation_results(given),
        "preprocess": scan("preprocess"),
        "preprocess_b": scan("preprocess_b"),
    }


def computed(sizes: Sizes, folder: Path) -> Results:
    """Every result for ``sizes``, of the weights and scans that ``lay_out`` wrote to ``folder``."""
    given = inputs(sizes)
    makers = computations(sizes.timesteps, sizes.single_octaves, sizes.noise_batch)
    results = {name: make(given[name], folder) for name, make in makers.items()}
    return results | {DICTIONARIES: as_text(volumes.evaluation_dictionaries(given["postprocess"]))}


def as_text(tables: dict[str, Any]) -> Table:
    """JSON as an array of bytes."""
    return {"json": np.frombuffer(json.dumps(tables, indent=1, sort_keys=True).encode(), np.uint8)}


def write(sizes: Sizes, folder: Path, results: Results | None = None) -> Path:
    """Make the whole folder; ``results`` are computed where none are given. Returns ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    lay_out(sizes, folder)
    found = dict(results if results is not None else computed(sizes, folder))
    (folder / f"{DICTIONARIES}.json").write_bytes(found.pop(DICTIONARIES)["json"].tobytes())
    for name, given in inputs(sizes).items():
        np.savez(folder / f"{name}.npz", **given, **found[name])  # type: ignore[arg-type]
    return folder


def save_results(path: Path, results: Results) -> None:
    """Keep results in one file, floats that float16 holds exactly in half the room."""
    table = {f"{name}/{key}": _small(a) for name, arrays in results.items() for key, a in arrays.items()}
    np.savez_compressed(path, allow_pickle=False, **table)


def load_results(path: Path) -> Results:
    """The inverse of ``save_results``."""
    results: Results = {}
    with np.load(path) as file:
        for place in file:
            name, _, key = place.partition("/")
            results.setdefault(name, {})[key] = _whole(file[place], key)
    return results


def _small(array: np.ndarray) -> np.ndarray:
    half = array.astype(np.float16) if array.dtype == np.float32 else array
    return half if np.array_equal(half, array) else array


def _whole(array: np.ndarray, key: str) -> np.ndarray:
    return array.astype(np.float32) if array.dtype == np.float16 and not key.endswith("_f16") else array
