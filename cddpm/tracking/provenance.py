"""Where numbers come from: what a table says above itself, so that nobody takes it for something else."""

import os
import platform
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from cddpm.tracking.surroundings import git_commit

PACKAGES = ("cddpm", "torch", "ray", "monai", "numpy", "scipy", "scikit-learn")
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


def here(data: str, real: bool, packages: tuple[str, ...] = PACKAGES) -> Provenance:
    """Provenance of work done on this machine by this code."""
    return Provenance(data, real, machine(), commit(), versions(packages))


def header(provenance: Provenance, folds: tuple[int, ...]) -> list[tuple[str, str]]:
    """(name, text) of every line above a table."""
    return [
        ("Data", provenance.data),
        *([] if provenance.real else [("Beware", SYNTHETIC)]),
        ("Folds", ", ".join(map(str, folds)) or "none"),
        ("Machine", provenance.machine),
        ("Commit", provenance.commit),
        ("Versions", ", ".join(f"{name} {number}" for name, number in provenance.versions.items()) or "not recorded"),
    ]


def machine() -> str:
    """Processor and GPUs of this machine: ``AMD EPYC 7713, 2 CPUs; no GPU``."""
    import torch  # slow to import

    found = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    gpus = ", ".join(f"{found.count(name)} x {name}" for name in dict.fromkeys(found)) or "no GPU"
    return f"{_processor()}, {_cpus()} CPUs; {gpus}"


def _cpus() -> int:
    """CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return next(iter(names), platform.processor() or platform.machine())


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
