"""Ray, as thin as it can be: connect, spread plain functions over tasks, and watch what trainings do."""

import contextlib
import logging
import os
import pickle
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Generic, Self, TypeVar

from cddpm import cluster_door, ray_internals
from cddpm.errors import SearchError

logger = logging.getLogger(__name__)

T = TypeVar("T")
R = TypeVar("R")

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
    """Join the cluster at ``address`` (also from ``RAY_ADDRESS``), or start one on this machine, with its dashboard on loopback.

    Raises ``SearchError`` when the cluster does not answer, ``StorageError`` where Ray's own files find no place.
    """
    address, instead = cluster_door.wanted(address)
    for name, value in {**WORKER_ENVIRONMENT, **(LOCAL_ENVIRONMENT if address == "local" else {})}.items():
        os.environ.setdefault(name, value)  # before Ray's processes start: they inherit it
    import ray

    if ray.is_initialized():
        return
    own: dict[str, Any] = {"runtime_env": {"env_vars": WORKER_ENVIRONMENT}}
    if address == "local":
        own = {"include_dashboard": True, "resources": {HEAD: HEAD_SLOTS}, "object_store_memory": OBJECT_STORE_BYTES}
        cluster_door.settle_token()
        if folder := cluster_door.settle_folder():
            os.environ["RAY_TMPDIR"] = folder
    else:
        cluster_door.check_answers(address)
    with cluster_door.told(address, instead):
        ray.init(address=address, log_to_driver=False, logging_level="ERROR", **own)


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


def parallel_map(function: Callable[[T], R], items: Sequence[T]) -> Iterator[R]:
    """``function`` of each item as Ray tasks of one CPU, results in order. Errors of a task are raised as they were."""
    import ray

    task = ray.remote(num_cpus=1, max_retries=2)(_apply)
    window = max(2, 2 * int(capacity().get("CPU", 1)))
    pending = [task.remote(function, item) for item in items[:window]]
    for started in range(window, len(items) + window):
        if not pending:
            return
        try:
            yield ray.get(pending.pop(0))
        except ray.exceptions.RayTaskError as error:
            raise error.cause from None
        if started < len(items):
            pending.append(task.remote(function, items[started]))


def _apply(function: Callable[[T], R], item: T) -> R:
    return function(item)


class ActorPool(Generic[T, R]):
    """``count`` processes of one CPU and ``gpus`` GPUs; ``factory()`` makes in each, once, the function that is applied.

    A context manager that ends them. A process that dies is started again, with the item it was at, once. They lie outside
    of the placement group of a Tune trial that opens the pool: that group holds no CPU.
    """

    def __init__(self, factory: Callable[[], Callable[[T], R]], count: int, gpus: float = 0) -> None:
        import ray

        resources = {"num_cpus": 1, "num_gpus": gpus, "scheduling_strategy": "DEFAULT"}
        actor = ray.remote(max_restarts=-1, max_task_retries=1, **resources)(_PoolActor)
        # held as long as the pool: a process that is started again reads it once more
        self._packed = ray.put(ray.cloudpickle.dumps(factory))
        self._actors = [actor.remote(self._packed) for _ in range(count)]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        import ray

        for actor in self._actors:
            ray.kill(actor)

    def map(self, items: Sequence[T]) -> list[R]:
        """The function of each item, in their order. Errors of the function, or of ``factory``, are raised as they were.

        Raises ``SearchError`` when a process dies a second time with the same item.
        """
        results: dict[int, R] = {}
        for number, result in self.each(items):
            if isinstance(result, SearchError):
                raise result
            results[number] = result
        return [results[number] for number in range(len(items))]

    def each(self, items: Sequence[T]) -> Iterator[tuple[int, R | SearchError]]:
        """(number of an item, the function of it), as soon as it is there; errors are raised as with ``map``.

        An item with which a process died twice comes as ``SearchError``, and the others go on.
        """
        import ray

        waiting, idle = list(enumerate(items))[::-1], list(self._actors)
        running: dict[Any, tuple[int, Any]] = {}
        while waiting or running:
            while waiting and idle:
                (number, item), actor = waiting.pop(), idle.pop()
                running[actor.apply.remote(item)] = (number, actor)
            (done, *_), _ = ray.wait(list(running), num_returns=1)
            number, actor = running.pop(done)
            idle.append(actor)
            yield number, _result_of(done)


def _result_of(done: Any) -> Any:
    import ray

    try:
        return ray.get(done)
    except ray.exceptions.RayTaskError as error:
        raise error.cause from None
    except ray.exceptions.RayActorError as error:
        return SearchError(f"a process of a pool died twice ({error}); give its node more memory")


class _PoolActor:
    """Makes its function at the first item, not at its start: an error of the factory then reaches the caller whole."""

    def __init__(self, packed: bytes) -> None:
        self.packed = packed
        self.function: Callable[[Any], Any] | None = None

    def apply(self, item: Any) -> Any:
        if self.function is None:
            self.function = pickle.loads(self.packed)()
        return self.function(item)


def drive(
    function: Callable[[T], R], items: Sequence[T], at_once: int, started: Callable[[T], None]
) -> Iterator[tuple[T, R | BaseException]]:
    """Run drivers of worker groups: ``function`` of each item in a process on the head that takes no CPU itself.

    ``at_once`` run abreast; each pair (item, result, or the error that it raised) comes as soon as it is there.
    """
    import ray

    task = ray.remote(num_cpus=0, resources={HEAD: 1}, max_retries=1)(_apply)
    waiting = list(items)
    running: dict[Any, T] = {}
    while waiting or running:
        while waiting and len(running) < at_once:
            item = waiting.pop(0)
            started(item)
            running[task.remote(function, item)] = item
        (done, *_), _ = ray.wait(list(running), num_returns=1)
        item = running.pop(done)
        try:
            yield item, ray.get(done)
        except ray.exceptions.RayTaskError as error:
            yield item, error.cause
        except ray.exceptions.RayError as error:
            yield item, error


@contextlib.contextmanager
def janitor(every_seconds: float = 5.0) -> Iterator[None]:
    """Free what stopped trainings left behind, every few seconds until the block ends."""
    import ray

    over = threading.Event()

    def clean() -> None:
        while not over.wait(every_seconds) and ray.is_initialized():
            try:
                freed = ray_internals.free_abandoned()
            except (ray.exceptions.RayError, RuntimeError, ConnectionError) as error:  # the cluster ends, or stammers
                logger.info("placement groups could not be looked at (%s)", error)
                continue
            if freed:
                logger.info("freed %d placement groups of stopped trainings", freed)

    thread = threading.Thread(target=clean, name="janitor", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(timeout=every_seconds)


class Board:
    """What the trainings are doing now, in one actor: workers post, the driver looks. Posting never waits or fails."""

    def __init__(self) -> None:
        import ray

        self._actor = ray.remote(num_cpus=0, resources={HEAD: 1})(_BoardActor).remote()
        self._last = 0.0
        self._read = 0

    def post(self, trial: int, stage: str, images: int, budget: int, loss: float, every_seconds: float = 0.5) -> None:
        """Tell where ``trial`` is; at most once in ``every_seconds``, and always at the end of a stage."""
        now = time.monotonic()
        if now - self._last < every_seconds and images < budget:
            return
        self._last = now
        self._actor.post.remote(trial, stage, images, budget, loss)

    def look(self, timeout_seconds: float = 2.0) -> dict[int, tuple[str, int, int, float]]:
        """(stage, images, budget, loss) by trial; empty if the actor does not answer in time."""
        import ray

        try:
            state: dict[int, tuple[str, int, int, float]] = ray.get(self._actor.look.remote(), timeout=timeout_seconds)
        except (ray.exceptions.RayError, TimeoutError):
            return {}
        return state

    def clear(self, trial: int) -> None:
        """Forget a trial that has ended."""
        self._actor.clear.remote(trial)

    def tell(self, line: str) -> None:
        """Leave a line for the person at the driver; the same line comes once."""
        self._actor.tell.remote(line)

    def told(self, timeout_seconds: float = 2.0) -> list[str]:
        """Lines that were left since the last answer; none if the actor does not answer in time: they come with the next."""
        import ray

        try:
            lines: list[str] = ray.get(self._actor.told.remote(self._read), timeout=timeout_seconds)
        except (ray.exceptions.RayError, TimeoutError):
            return []
        self._read += len(lines)
        return lines

    @contextlib.contextmanager
    def warnings(self, name: str) -> Iterator[None]:
        """Leave every warning of this program's own for the person, until the block ends; a worker's output is seen by nobody."""
        handler, source = _Warnings(self, name), logging.getLogger("cddpm")
        source.addHandler(handler)
        try:
            yield
        finally:
            source.removeHandler(handler)


class _Warnings(logging.Handler):
    def __init__(self, board: Board, name: str) -> None:
        super().__init__(logging.WARNING)
        self._board, self._name = board, name

    def emit(self, record: logging.LogRecord) -> None:
        """As ``logging`` asks."""
        self._board.tell(f"{self._name}: {record.getMessage()}")


class _BoardActor:
    def __init__(self) -> None:
        self.state: dict[int, tuple[str, int, int, float]] = {}
        self.lines: dict[str, None] = {}  # in the order in which they were left

    def post(self, trial: int, stage: str, images: int, budget: int, loss: float) -> None:
        self.state[trial] = (stage, images, budget, loss)

    def look(self) -> dict[int, tuple[str, int, int, float]]:
        return self.state

    def clear(self, trial: int) -> None:
        self.state.pop(trial, None)

    def tell(self, line: str) -> None:
        self.lines.setdefault(line)

    def told(self, after: int) -> list[str]:
        return list(self.lines)[after:]


def on_each_node(
    function: Callable[..., R], *arguments: Any, needed: Mapping[str, float] | None = None
) -> dict[str, R]:
    """``function(*arguments)`` by address of each living node that has the ``needed`` resources; it books none of them.

    Nodes that share an address share an answer. Errors of the function are raised as they were.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    nodes = [
        node
        for node in ray.nodes()
        if node["Alive"] and all(node["Resources"].get(name, 0.0) >= amount for name, amount in (needed or {}).items())
    ]
    task = ray.remote(num_cpus=0, max_retries=2)(_apply_all)
    answers = [
        task.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)).remote(
            function, arguments
        )
        for node in nodes
    ]
    try:
        return {n["NodeManagerAddress"]: answer for n, answer in zip(nodes, ray.get(answers), strict=True)}
    except ray.exceptions.RayTaskError as error:
        raise error.cause from None


def _apply_all(function: Callable[..., R], arguments: tuple[Any, ...]) -> R:
    return function(*arguments)


def check_shared(folder: Path) -> None:
    """Every node must see ``folder`` as the same place. Raises ``SearchError`` naming the nodes that do not."""
    import ray

    if sum(node["Alive"] for node in ray.nodes()) < 2:
        return
    token = folder / ".shared"
    token.write_text(str(os.getpid()))
    blind = [address for address, seen in on_each_node(_sees, str(token)).items() if not seen]
    if blind:
        raise SearchError(
            f"output_dir: {folder} is not the same folder on node(s) {', '.join(blind)}; it must be shared (NFS, say)"
        )


def _sees(token: str) -> bool:
    return Path(token).exists()
