"""Where a result came from: code and machine, as tags of its run."""

import hashlib
import os
import platform
import subprocess
from importlib.metadata import distributions, version
from pathlib import Path
from typing import Any

import psutil
import torch

from cddpm.config import ExperimentConfig, changed
from cddpm.tracking import names
from cddpm.training.watch import processor

LOCK_FILE = "requirements.lock"


_PLACES = ("name", "output_dir", "tracking.")


def surroundings() -> dict[str, str]:
    """Versions, machine, the packages' lock and the commit of the code, where they can be known."""
    found = {
        **code(),
        names.LOCK: lock_hash(),
        names.HOST: platform.node(),
        names.PROCESSOR: processor(),
        names.CPUS: str(os.cpu_count()),
        names.MEMORY: f"{psutil.virtual_memory().total / 2**30:.0f}",
        names.GPUS: ", ".join(_gpus()) or "none",
        names.TORCH: version("torch"),
        names.RAY: version("ray"),
    }
    commit = found.get(names.COMMIT)
    return {**found, names.SOURCE_COMMIT: commit.rstrip("+")} if commit else found


def code() -> dict[str, str]:
    """Version of this program, and the commit where it can be known."""
    commit = git_commit()
    return {names.VERSION: version("cddpm"), **({names.COMMIT: commit} if commit else {})}


def noted(config: ExperimentConfig) -> dict[str, Any]:
    """Settings that a person looks at in a list of runs: those that differ from the defaults, by dotted path.

    Where things lie is left out; the whole configuration is a file of the run.
    """
    default = ExperimentConfig(name=config.name)
    return {path: value for path, value in changed(config, default).items() if not path.startswith(_PLACES)}


def lock_hash() -> str:
    """SHA-256 of ``requirements.lock``, or of the installed packages where the program was installed without that file."""
    file = Path(__file__).parents[2] / LOCK_FILE
    if file.is_file():
        return hashlib.sha256(file.read_bytes()).hexdigest()
    found = sorted(f"{package.name}=={package.version}" for package in distributions())
    return hashlib.sha256("\n".join(found).encode()).hexdigest()


def _gpus() -> list[str]:
    return [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]


def git_commit() -> str | None:
    """Commit of the code, with ``+`` behind it if tracked files were changed since; None outside of a repository."""
    commit = _git("rev-parse", "HEAD")
    if commit is None:
        return None
    return commit + ("+" if _git("status", "--porcelain", "--untracked-files=no") else "")


def _git(*arguments: str) -> str | None:
    command = ["git", "-C", str(Path(__file__).parent), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
