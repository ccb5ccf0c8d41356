"""Join a Ray cluster or start one on this machine, and leave it; what its processes are told through their environment."""

import contextlib
import logging
import os
import signal
import threading
from collections.abc import Iterator
from typing import Any

from cddpm.cluster import door, internals

HEAD = "head"
"""Custom resource of the head node: drivers of trials live there and take no CPU."""
HEAD_SLOTS = 1000
OBJECT_STORE_BYTES = 200 * 2**20
"""Data goes through memory-mapped files; Ray's object store carries only small results."""

WORKER_ENVIRONMENT = {
    # large tensors reuse heap pages instead of mapping fresh ones: 1.2 to 1.4 times faster on a CPU
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": "100000000000",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "120",
    "TORCH_PROCESS_GROUP_SHUTDOWN_TIMEOUT_S": "5",  # who survives a lost host need not say farewell to it
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AIR_NEW_OUTPUT": "0",  # Tune's own tables; ours is the only display
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "TUNE_WARN_INSUFFICENT_RESOURCE_THRESHOLD_S": "1000000",
}

LOCAL_ENVIRONMENT = {"RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0"}
"""Nobody announces the end of this machine to its Ray: a process less in every training."""


def connect(address: str | None = None) -> None:
    """Join the cluster at ``address`` (also from ``RAY_ADDRESS``), or start one on this machine.

    The latter has no dashboard, whose ten processes take what a laptop needs: start Ray yourself to have one.

    Raises ``SearchError`` when the cluster does not answer, ``StorageError`` where Ray's own files find no place.
    """
    address, instead = door.wanted(address)
    for name, value in {**WORKER_ENVIRONMENT, **(LOCAL_ENVIRONMENT if address == "local" else {})}.items():
        os.environ.setdefault(name, value)  # before Ray's processes start: they inherit it
    import ray

    if ray.is_initialized():
        return
    # of several Rays on a host a training's controller would else ask any
    here = {door.VARIABLE: address} if ":" in address and "://" not in address else {}
    own: dict[str, Any] = {"runtime_env": {"env_vars": {**WORKER_ENVIRONMENT, **here}}}
    if address == "local":
        own = {"include_dashboard": False, "resources": {HEAD: HEAD_SLOTS}, "object_store_memory": OBJECT_STORE_BYTES}
        door.settle_token()
        if folder := door.settle_folder():
            os.environ["RAY_TMPDIR"] = folder
    else:
        door.check_answers(address)
    internals.quieten()
    with door.told(address, instead), _own_handlers():
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, **own)


@contextlib.contextmanager
def _own_handlers() -> Iterator[None]:
    """Give this program's signal handlers back after Ray, as it starts, has put its own (SIGTERM: abort) in their place."""
    mine = {one: signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():  # Python lets no other set them
            for one, handler in mine.items():
                if callable(handler) and handler is not signal.default_int_handler:
                    signal.signal(one, handler)


def connected() -> bool:
    """Whether this process has joined a cluster."""
    import ray

    return bool(ray.is_initialized())


def kill() -> None:
    """Leave the cluster; one that this process started ends with all its processes."""
    import ray

    ray.shutdown()


def capacity() -> dict[str, float]:
    """Resources of all living nodes (CPU, GPU, ...)."""
    import ray

    return {name: float(value) for name, value in ray.cluster_resources().items()}
