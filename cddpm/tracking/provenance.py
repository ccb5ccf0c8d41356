"""Where numbers come from, code and machine: what a table says above itself, and a run by its tags."""

import hashlib
import os
import platform
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, distributions, version
from pathlib import Path

from cddpm.tracking import names

PACKAGES = ("cddpm", "torch", "ray", "monai", "numpy", "scipy", "scikit-learn")
_LOCK_FILE = "requirements.lock"
SYNTHETIC = (
    "these volumes are synthetic. The numbers show that the program works; they cannot be compared with the published "
    "ones, which are of real data."
)


@dataclass(frozen=True)
class Provenance:
    """Data, machine, code and packages of a table."""

    data: str
    """What was evaluated: ``phantom (small, seed 0)``, or which real data."""
    real: bool
    """False: synthetic volumes; the table says so in its header."""
    machine: str
    commit: str
    versions: Mapping[str, str] = field(default_factory=dict)
    window: str = ""
    """What of each brain was looked at; left out of the header where it is empty."""
    doubt: str | None = None
    """Why the numbers may be better than they are, as a sentence."""


def here(data: str, real: bool, window: str = "", doubt: str | None = None) -> Provenance:
    """Provenance of work done on this machine by this code."""
    return Provenance(data, real, machine(), commit(), versions(PACKAGES), window, doubt)


def header(provenance: Provenance, folds: tuple[int, ...]) -> list[tuple[str, str]]:
    """(name, text) of every line above a table."""
    return [
        ("Data", provenance.data),
        *([("Window", provenance.window)] if provenance.window else []),
        *([] if provenance.real else [("Beware", SYNTHETIC)]),
        *([("Beware", provenance.doubt)] if provenance.doubt else []),
        ("Folds", ", ".join(map(str, folds)) or "none"),
        ("Machine", provenance.machine),
        ("Commit", provenance.commit),
        ("Versions", ", ".join(f"{name} {number}" for name, number in provenance.versions.items()) or "not recorded"),
    ]


def machine() -> str:
    """Processor and GPUs of this machine: ``AMD EPYC 7713, 2 CPUs; no GPU``. CPUs are those that this process may use."""
    from cddpm.training.watch import processor  # it imports PyTorch

    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    found = _gpus()
    gpus = ", ".join(f"{found.count(name)} x {name}" for name in dict.fromkeys(found)) or "no GPU"
    return f"{processor()}, {cpus} CPUs; {gpus}"


def commit() -> str:
    """Commit of this code, marked if files differ from it; ``unknown`` outside of a repository."""
    found = git_commit()
    if found is None:
        return "unknown (not in a git repository)"
    short = found.rstrip("+")[:12]
    return f"{short} with uncommitted changes" if found.endswith("+") else short


def versions(packages: tuple[str, ...]) -> dict[str, str]:
    """Version by package; those that are not installed are left out."""
    found: dict[str, str] = {}
    for name in packages:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def surroundings() -> dict[str, str]:
    """Versions, machine, the packages' lock and the commit of the code, where they can be known: tags of a run."""
    import psutil

    from cddpm.training.watch import processor

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


def lock_hash() -> str:
    """SHA-256 of ``requirements.lock``, or of the installed packages where the program was installed without that file."""
    file = Path(__file__).parents[2] / _LOCK_FILE
    if file.is_file():
        return hashlib.sha256(file.read_bytes()).hexdigest()
    found = sorted(f"{package.name}=={package.version}" for package in distributions())
    return hashlib.sha256("\n".join(found).encode()).hexdigest()


def _gpus() -> list[str]:
    import torch  # slow to import

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
