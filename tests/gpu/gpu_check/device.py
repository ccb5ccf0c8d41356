"""The device under test: what it is, how long work takes on it, and how much memory.

Work on a GPU goes on after its call comes back: it is timed by events of the device, or between two waits for it.
"""

import os
import platform
import resource
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import torch

GIGABYTE = 1e9


def opened(kind: str, tiny: bool) -> torch.device | None:
    """The device, or None if it is not there. Tiny networks get one thread: more only wait for each other."""
    torch.set_num_threads(1 if tiny else len(os.sched_getaffinity(0)))
    if kind == "cpu":
        return torch.device("cpu")
    if not torch.cuda.is_available():
        return None
    torch.cuda.init()
    return torch.device("cuda")


def facts(device: torch.device) -> dict[str, Any]:
    """Names, versions and sizes, as plain data."""
    found: dict[str, Any] = {
        "device": "CPU",
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "measured": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
    }
    if device.type != "cuda":
        return found | {"cpu_capability": torch.backends.cpu.get_cpu_capability()}
    properties = torch.cuda.get_device_properties(device)
    return found | {
        "device": properties.name,
        "driver": _driver(),
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "memory_gib": round(properties.total_memory / 2**30, 1),
        "multiprocessors": properties.multi_processor_count,
        "capability": f"{properties.major}.{properties.minor}",
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def _driver() -> str:
    if shutil.which("nvidia-smi") is None:
        return "not told (no nvidia-smi)"
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    said = subprocess.run(query, capture_output=True, text=True, check=False, timeout=20).stdout.split()
    return said[0] if said else "not told"


def wait(device: torch.device) -> None:
    """Come back when all work of the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds(work: Callable[[], Any], device: torch.device, repeats: int, warm: int = 1) -> float:
    """Median time of one call, on the device, after ``warm`` calls that do not count."""
    for _ in range(warm):
        work()
    wait(device)
    if device.type == "cuda":
        return _by_events(work, repeats)
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return median(times)


def _by_events(work: Callable[[], Any], repeats: int) -> float:
    marks = [torch.cuda.Event(enable_timing=True) for _ in range(repeats + 1)]
    marks[0].record()
    for mark in marks[1:]:
        work()
        mark.record()
    torch.cuda.synchronize()
    return median(a.elapsed_time(b) for a, b in pairwise(marks)) / 1000


def wall_seconds(work: Callable[[], Any], device: torch.device, repeats: int, warm: int = 1) -> float:
    """Median time of one call until the device is done too: for work that is done on both sides."""
    times = []
    for number in range(warm + repeats):
        wait(device)
        start = time.perf_counter()
        work()
        wait(device)
        if number >= warm:
            times.append(time.perf_counter() - start)
    return median(times)


def forget_peak(device: torch.device) -> None:
    """From now on ``peak_gigabytes`` counts anew, on a GPU."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def peak_gigabytes(device: torch.device) -> float:
    """Most memory that tensors took on the GPU since ``forget_peak``; on a CPU that this process ever took."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / GIGABYTE
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / GIGABYTE


def total_bytes(device: torch.device) -> int:
    """Memory of the device, or of the machine."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


@contextmanager
def tf32(allowed: bool) -> Iterator[None]:
    """Whether float32 products and convolutions may be computed with ten bits of mantissa; as before afterwards."""
    products, convolutions = torch.backends.cuda.matmul, torch.backends.cudnn
    before = products.allow_tf32, convolutions.allow_tf32
    products.allow_tf32 = convolutions.allow_tf32 = allowed
    try:
        yield
    finally:
        products.allow_tf32, convolutions.allow_tf32 = before
