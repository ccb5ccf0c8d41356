"""Two real processes of one training on this machine: gloo on the CPU, met through a file."""

import multiprocessing
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from cddpm.training.ranks import Ranks


def launch(target: Any, *arguments: Any, seconds: float = 100) -> list[int | None]:
    """Exit codes of two ranks that run ``target(rank, *arguments)``; None for one that had to be killed."""
    context = multiprocessing.get_context("forkserver")
    processes = [context.Process(target=target, args=(rank, *arguments), daemon=True) for rank in range(2)]
    for process in processes:
        process.start()
    end, codes = time.monotonic() + seconds, []
    for process in processes:
        process.join(max(0.1, end - time.monotonic()))
        codes.append(process.exitcode)
        process.kill()
    return codes


def join(rank: int, folder: Path) -> Ranks:
    """Called in each process first: both meet in ``folder``."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    return Ranks(rank, 2)
