"""Plain functions spread over the tasks and processes of a cluster; errors come back as they were raised."""

import os
import pickle
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Generic, Self, TypeVar

from cddpm.cluster.session import HEAD, capacity
from cddpm.config import ExperimentConfig
from cddpm.errors import SearchError
from cddpm.storage import is_uri

T = TypeVar("T")
R = TypeVar("R")


def parallel_map(function: Callable[[T], R], items: Sequence[T], beside_driver: bool = False) -> Iterator[R]:
    """``function`` of each item as Ray tasks of one CPU, results in order. Errors of a task are raised as they were.

    ``beside_driver``: on the head alone, for what only its disk has, as many at a time as it has CPUs.
    """
    import ray

    booked: dict[str, Any] = {"num_cpus": 0, "resources": {HEAD: 1}} if beside_driver else {"num_cpus": 1}
    task: Any = ray.remote(max_retries=2, **booked)(_apply)
    window = os.cpu_count() or 1 if beside_driver else max(2, 2 * int(capacity().get("CPU", 1)))
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


def over_scans(config: ExperimentConfig) -> Callable[[Callable[[T], R], list[T]], Iterator[R]]:
    """``parallel_map`` on every node that has the scans of ``config``: of a folder beside an object store only this one."""
    return partial(parallel_map, beside_driver=is_uri(config.kept_in) and not is_uri(str(config.data.data_dir)))


def bounded_map(
    function: Callable[[T], R],
    items: Sequence[T],
    lost: Callable[[T, str], R],
    at_once: int | None = None,
    memory_bytes: int = 0,
) -> Iterator[R]:
    """``parallel_map`` of work that takes much memory: each task books ``memory_bytes`` of its node, ``at_once`` run at most.

    A process that dies again and again takes no other's work with it: the result is then ``lost(item, why)``.
    """
    import ray

    least = min((node["Resources"].get("memory", 0.0) for node in ray.nodes() if node["Alive"]), default=0.0)
    task: Any = ray.remote(max_retries=1, num_cpus=1, memory=int(min(memory_bytes, least)))(_apply)
    waiting, running = list(items), list[tuple[Any, T]]()
    window = at_once or max(2, 2 * int(capacity().get("CPU", 1)))
    while waiting or running:
        while waiting and len(running) < window:
            item = waiting.pop(0)
            running.append((task.remote(function, item), item))
        first, item = running.pop(0)
        try:
            yield ray.get(first)
        except ray.exceptions.RayTaskError as error:
            raise error.cause from None
        except ray.exceptions.RayError as error:
            yield lost(item, next(iter(str(error).splitlines()), type(error).__name__))


def check_seen(path: Path, what: str) -> None:
    """Every node must see a folder or file (``what`` it is to a user). Raises ``SearchError`` naming the nodes that do not."""
    import ray

    if sum(node["Alive"] for node in ray.nodes()) < 2:
        return
    blind = [address for address, seen in on_each_node(_sees, str(path)).items() if not seen]
    if blind:
        elsewhere = "" if path.is_file() else ", or be s3://..."
        raise SearchError(
            f"{what} {path}: not there on node(s) {', '.join(blind)}; it must be shared (NFS, say){elsewhere}"
        )


def _apply(function: Callable[[T], R], item: T) -> R:
    return function(item)


def drive(
    function: Callable[[T], R], items: Sequence[T], at_once: int, started: Callable[[T], None]
) -> Iterator[tuple[T, R | BaseException]]:
    """Run drivers of worker groups: ``function`` of each item in a process on the head that takes no CPU itself.

    ``at_once`` run abreast; each pair (item, result, or the error that it raised) comes as soon as it is there.
    """
    import ray

    task: Any = ray.remote(num_cpus=0, resources={HEAD: 1}, max_retries=1)(_apply)
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
    task: Any = ray.remote(num_cpus=0, max_retries=2)(_apply_all)
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


def ask(
    function: Callable[..., R], arguments: Mapping[str, tuple[Any, ...]], seconds: float
) -> dict[str, R | BaseException]:
    """``function(*arguments[address])`` on the node of each address, all at once; it books nothing there.

    What it raised stands in place of its answer, ``SearchError`` where none came within ``seconds``, or the node is gone.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy as Affinity

    nodes = {node["NodeManagerAddress"]: node["NodeID"] for node in ray.nodes() if node["Alive"]}
    task: Any = ray.remote(num_cpus=0, max_retries=0)(_apply_all)
    asked = {
        address: task.options(scheduling_strategy=Affinity(nodes[address], soft=False)).remote(function, given)
        for address, given in arguments.items()
        if address in nodes
    }
    done, late = ray.wait(list(asked.values()), num_returns=len(asked), timeout=seconds) if asked else ([], [])
    for one in late:
        ray.cancel(one, force=True)
    return {
        address: _answer(asked[address], seconds, asked[address] in done)
        if address in asked
        else SearchError("is gone")
        for address in arguments
    }


def _answer(asked: Any, seconds: float, done: bool) -> Any:
    import ray

    if not done:
        return SearchError(f"no answer within {seconds:.0f} s")
    try:
        return ray.get(asked)
    except ray.exceptions.RayTaskError as error:
        return error.cause
    except ray.exceptions.RayError as error:
        return SearchError(f"does not answer ({(str(error).splitlines() or [type(error).__name__])[0]})")


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
            f"output_dir: {folder} is not the same folder on node(s) {', '.join(blind)}; it must be shared (NFS, say), or "
            "name a store that all of them reach (--storage s3://BUCKET/PREFIX)"
        )


def _sees(path: str) -> bool:
    return Path(path).exists()


class ActorPool(Generic[T, R]):
    """``count`` processes of one CPU and ``gpus`` GPUs; ``factory()`` makes in each, once, the function that is applied.

    A context manager that ends them. A process that dies is started again, with the item it was at, once. They lie outside
    of the placement group of a Tune trial that opens the pool: that group holds no CPU.
    """

    def __init__(self, factory: Callable[[], Callable[[T], R]], count: int, gpus: float = 0) -> None:
        import ray

        options = ray.remote(
            max_restarts=-1, max_task_retries=1, num_cpus=1, num_gpus=gpus, scheduling_strategy="DEFAULT"
        )
        actor: Any = options(_PoolActor)
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
