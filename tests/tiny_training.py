"""A slice store of a few tiny volumes and a model that trains on it in a second; also a process that trains, to be killed.

``python tiny_training.py STORE ARTIFACTS SETTINGS`` trains the tiny model until it is done or killed, and says what it made.
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cddpm import artifact
from cddpm.config import ExperimentConfig, override, parse
from cddpm.data.geometry import Beyond, Geometry
from cddpm.data.slices import KIND, write_store
from cddpm.training import stages
from cddpm.training.loop import Hooks
from cddpm.training.ranks import Ranks

SIZE, SLICES = 32, 4
BEYOND: Beyond = ((6, 3), (0, 5), (1, 0))
"""Pixels around the window, along (X, Y, Z), of volumes that are wide."""
COHORTS = [
    ("IXI", "train", 5),
    ("IXI", "val", 2),
    ("IXI", "test", 1),
    ("A", "val", 3),
    ("A", "test", 1),
    ("B", "val", 2),
]

BASE: dict[str, Any] = {
    "name": "tiny",
    "seed": 3,
    "data": {"unhealthy": ["A", "B"], "volume_shape": [SIZE, SIZE, SLICES], "rescale_factor": 1},
    "encoder": {"architecture": "resnet18", "width": 8, "max_pool": False, "drop_path": 0.1},
    "model": {
        "base_width": 32,
        "width_multipliers": [1],
        "residual_blocks": 1,
        "attention_head_width": 32,
        "dropout": 0.2,
        "condition_width": 16,
    },
    "diffusion": {"timesteps": 50, "condition_dropout": 0.3, "noise": {"kind": "gaussian"}},
    "pretraining": {"images": 24, "batch_size": 4, "learning_rate": 1e-3, "decoder_width": 16, "evaluations": 3},
    "training": {
        "images": 48,
        "precision": "float32",
        "batch_size": 4,
        "learning_rate": 1e-3,
        "warmup_images": 8,
        "learning_rate_decay": "cosine",
        "gradient_clip": 1.0,
        "ema_decay": 0.9,
        "augmentation": {"enabled": True},
        "evaluations": 3,
        "validation_slices": 6,
        "validation_volumes": 3,
    },
    "reconstruction": {"noise_levels": [10, 25], "batch_size": 8, "precision": "float32"},
    "scoring": {"minimum_component_voxels": 0, "median_kernel": 3, "erosion_divisor": None},
    "search": {"datasets": ["A"]},
}


def tiny_config(**values: Any) -> ExperimentConfig:
    """The tiny experiment; ``values`` by dotted path with ``__`` for the dots."""
    changed = {path.replace("__", "."): value for path, value in values.items()}
    return parse(override(BASE, changed, "test"), "test")


def make_store(folder: Path, shuffled: int | None = None, wide: bool = False) -> Path:
    """Write the store below ``folder``: brains are discs of a smooth pattern, lesions bright squares.

    ``shuffled``: a seed for another order of the same volumes. ``wide``: those of A reach beyond the model's window.
    """
    places = [(dataset, split) for dataset, split, count in COHORTS for _ in range(count)]
    order = range(len(places)) if shuffled is None else np.random.default_rng(shuffled).permutation(len(places))
    volumes, cohorts = [], []
    for place, index in enumerate(order):
        dataset, split = places[index]
        cohorts.append({"dataset": dataset, "split": split, "fold": None, "volume": place})
        volumes.append(_volume(int(index), dataset, BEYOND if wide and dataset == "A" else None))

    def fill(directory: Path) -> None:
        write_store(directory, volumes, cohorts)

    return artifact.create(folder / "store" / "tiny", KIND, "tiny", {}, fill)


def _volume(index: int, dataset: str, beyond: Beyond | None = None) -> dict[str, Any]:
    random = np.random.default_rng(index)
    sizes = [n + sum(ends) for n, ends in zip((SIZE, SIZE, SLICES), beyond or ((0, 0),) * 3, strict=True)]
    z, x, y = np.meshgrid(np.arange(sizes[2]), *(np.linspace(-1, 1, n) for n in sizes[:2]), indexing="ij")
    mask = x**2 + y**2 < 0.7
    lesion = np.zeros(mask.shape, bool)
    if dataset != "IXI":
        row, column = random.integers(10, 18, 2)
        lesion[1:3, row : row + 4, column : column + 4] = True
    image = 0.4 + 0.1 * np.sin(4 * x + z + index) + 0.02 * random.normal(size=mask.shape) + 0.3 * lesion
    shape = (sizes[0], sizes[1], sizes[2])
    affine = tuple(tuple(float(v) for v in row) for row in np.eye(4))
    geometry = Geometry(shape, affine, "LPS", "LPS", (1.0,) * 3, (1.0,) * 3, shape, shape, 1.0, shape, beyond=beyond)
    return {
        "image": np.where(mask, image, 0).clip(0, 1).astype(np.float16),
        "mask": mask.astype(np.uint8),
        "segmentation": lesion.astype(np.uint8),
        "dataset": dataset,
        "subject": f"{index:03d}",
        "modality": "t2",
        "label": int(dataset != "IXI"),
        "age": None,
        "geometry": json.dumps(geometry.to_dict()),
        "digest": f"{index:064d}",
    }


def train(config: ExperimentConfig, store: Path, artifacts: Path, hooks: Hooks | None = None) -> stages.Made:
    """All stages in this process."""
    torch.set_num_threads(1)
    return stages.train(config, stages.Place(artifacts, store), Ranks(), hooks or Hooks())


if __name__ == "__main__":
    made = train(tiny_config(**json.loads(sys.argv[3])), Path(sys.argv[1]), Path(sys.argv[2]))
    print(json.dumps(made.made))
