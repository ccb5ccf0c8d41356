"""A sweep of two short trainings, run as its users run it: a process of its own."""

from pathlib import Path
from typing import Any

import yaml
from launched import ROOT, Here, Launched
from ten_scans import COUNTS

CONFIG: dict[str, Any] = {
    "name": "small",
    "data": {
        "unhealthy": ["Brats21"],
        "voxel_size_mm": 2.0,
        "volume_shape": [96, 96, 48],
        "rescale_factor": 3,
        "smoothing_iterations": 1,
        "phantom": COUNTS,
    },
    "encoder": {"architecture": "resnet18", "width": 8, "max_pool": False},
    "model": {"base_width": 8, "width_multipliers": [1, 1], "residual_blocks": 1, "attention_head_width": 8},
    "diffusion": {"condition_dropout": 0.2},
    "pretraining": {"images": 64, "batch_size": 16, "decoder_width": 16, "evaluations": 1},
    "training": {
        "images": 256,
        "batch_size": 16,
        "learning_rate": 1.0e-3,
        "ema_decay": 0.9,
        "minimum_brain_fraction": 0.05,
        "evaluations": 4,
        "validation_slices": 8,
        "validation_volumes": 1,
    },
    "reconstruction": {"noise_levels": [300, 600]},
    "compute": {"workers": 2},
    "search": {
        "training": {"trials": 2, "space": {"training.learning_rate": {"float": [1.0e-4, 2.0e-3], "log": True}}},
        "scoring": {
            "trials": 6,
            "space": {
                "scoring.guidance_scale": {"float": [0.0, 2.0]},
                "scoring.noise_levels": {"choice": [[300], [600], [300, 600]]},
            },
        },
        "scheduler": "none",
    },
}


ONE_PROCESS: dict[str, Any] = {
    **CONFIG,
    "compute": {"workers": 1},
    "search": {**CONFIG["search"], "concurrent_trials": 1},
}
"""The same with one worker, one trial at a time."""


SMALL: dict[str, Any] = {
    "data.unhealthy": ["Brats21"],
    "data.voxel_size_mm": 2.0,
    "data.volume_shape": [96, 96, 48],
    "data.rescale_factor": 3,
    "data.smoothing_iterations": 1,
    **{f"data.phantom.{name}": count for name, count in COUNTS.items()},
    "encoder.architecture": "resnet18",
    "encoder.width": 8,
    "encoder.max_pool": False,
    "model.base_width": 8,
    "model.width_multipliers": [1, 1],
    "model.residual_blocks": 1,
    "model.attention_head_width": 8,
    "pretraining.images": 128,
    "pretraining.decoder_width": 16,
    "pretraining.evaluations": 1,
    "training.images": 256,
    "training.warmup_images": 0,
    "training.evaluations": 4,
    "training.validation_slices": 8,
    "training.validation_volumes": 1,
    "compute.workers": 1,
    "search.asha.grace_images": 64,
    "search.scoring.trials": 6,
    "search.preview_trials": 2,
}
"""What makes any file of ``tune_configs/`` small enough for a test on the phantom."""


def small(name: str) -> dict[str, Any]:
    """Overrides for ``tune_configs/<name>.yaml``: two trainings where it asks for more than one."""
    trials = yaml.safe_load((ROOT / "tune_configs" / f"{name}.yaml").read_text())["search"]["training"]["trials"]
    return {**SMALL, "search.training.trials": min(2, trials)}


def _asked(folder: Path, config: dict[str, Any]) -> tuple[str, ...]:
    (folder / "small.yaml").write_text(yaml.safe_dump(config))
    return "sweep.py", "--config", str(folder / "small.yaml"), "--output-dir", str(folder / "out")


class Sweep(Launched):
    """One start of ``launch/sweep.py``."""

    def __init__(self, folder: Path, *arguments: str, config: dict[str, Any] = CONFIG) -> None:
        super().__init__(folder, *_asked(folder, config), *arguments)


def sweep_here(folder: Path, *arguments: str, config: dict[str, Any] = CONFIG) -> Here:
    """The same inside of this process, to its end."""
    return Here(*_asked(folder, config), *arguments)
