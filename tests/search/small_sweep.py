"""A sweep of two short trainings, run as its users run it: a process of its own."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import yaml

ROOT = Path(__file__).resolve().parents[2]

CONFIG: dict[str, Any] = {
    "name": "small",
    "data": {
        "unhealthy": ["Brats21"],
        "voxel_size_mm": 2.0,
        "volume_shape": [96, 96, 48],
        "rescale_factor": 3,
        "smoothing_iterations": 1,
        "phantom": {
            "healthy_train": 4,
            "healthy_val": 1,
            "healthy_test": 1,
            "unhealthy_val": 2,
            "unhealthy_test": 2,
        },
    },
    "encoder": {"architecture": "resnet18", "width": 8, "max_pool": False},
    "model": {"base_width": 32, "width_multipliers": [1, 1], "residual_blocks": 1, "attention_head_width": 32},
    "diffusion": {"condition_dropout": 0.2},
    "pretraining": {"images": 64, "batch_size": 16, "decoder_width": 16, "evaluations": 1},
    "training": {
        "images": 512,
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
        "asha": {"enabled": False},
    },
}


class Sweep:
    """One start of ``launch/sweep.py``; its output goes to a file that tests wait on."""

    def __init__(self, folder: Path, *arguments: str, config: dict[str, Any] = CONFIG) -> None:
        self.folder = folder
        path = folder / "small.yaml"
        path.write_text(yaml.safe_dump(config))
        self.log = folder / f"log-{len(list(folder.glob('log-*')))}.txt"
        command = [sys.executable, "launch/sweep.py", "--config", str(path), "--output-dir", str(folder / "out")]
        environment = {
            k: v for k, v in os.environ.items() if k not in ("DATA_DIR", "MLFLOW_TRACKING_URI", "RAY_ADDRESS")
        }
        self.process = subprocess.Popen(
            [*command, *arguments],
            cwd=ROOT,
            env={**environment, "COLUMNS": "200", "PYTHONUNBUFFERED": "1"},
            stdout=self.log.open("w"),
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    @property
    def output(self) -> str:
        """What it has printed so far."""
        return self.log.read_text()

    def wait_for(self, text: str, seconds: float = 150) -> None:
        """Wait until ``text`` was printed."""
        end = time.monotonic() + seconds
        while text not in self.output:
            assert self.process.poll() is None, f"ended before '{text}':\n{self.output}"
            assert time.monotonic() < end, f"'{text}' not printed in {seconds} s:\n{self.output}"
            time.sleep(0.1)

    def finish(self, seconds: float = 240) -> int:
        """Wait for its end; returns the exit code."""
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.kill_tree()
            raise AssertionError(f"not finished in {seconds} s:\n{self.output}") from None

    def kill_tree(self) -> None:
        """SIGKILL to the driver and every process it started, Ray's included."""
        tree = [psutil.Process(self.process.pid), *psutil.Process(self.process.pid).children(recursive=True)]
        for process in tree:
            try:
                process.kill()
            except psutil.NoSuchProcess:
                continue
        psutil.wait_procs(tree, timeout=10)
        self.process.wait(10)

    def interrupt(self) -> None:
        """What Ctrl-C in a terminal does: SIGINT to the driver's whole process group."""
        os.killpg(self.process.pid, signal.SIGINT)
