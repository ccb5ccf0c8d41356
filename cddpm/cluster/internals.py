"""Names that Ray keeps to itself, each used for what no public one gives; where a version of Ray lacks them, we do without."""

import contextlib
import copy
import functools
import logging
import threading
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

logger = logging.getLogger(__name__)


def address_here() -> str:
    """Address of the cluster that runs on this machine, as Ray finds it; ``local`` if that cannot be told here.

    Public is only ``ray.init("auto")``, which tries for minutes. Raises ``ConnectionError`` when none runs.
    """
    try:
        from ray._private.services import canonicalize_bootstrap_address
    except ImportError:
        return "local"
    return str(canonicalize_bootstrap_address("auto"))


def joined(address: str) -> set[str]:
    """Names of the living nodes of the cluster at HOST:PORT; none while it does not answer.

    Public is only ``ray.init``, with a driver and its processes; asked every second, of a cluster that may just be dying.
    """
    from ray import _raylet
    from ray.core.generated import gcs_pb2
    from ray.exceptions import RayError

    client: Any = _raylet
    data: Any = gcs_pb2  # made when it is imported
    try:
        nodes = client.GcsClient(address=address).get_all_node_info(timeout=5).values()
    except (RayError, RuntimeError, ConnectionError):
        return set()
    return {n.node_name for n in nodes if n.state == data.GcsNodeInfo.ALIVE}


def quieten() -> None:
    """What Ray prints of nodes, past every logger and whatever ``log_to_driver`` says, goes to our log (level info)."""
    from ray._private import worker

    if hasattr(worker, "print_to_stdstream"):
        worker.print_to_stdstream = lambda data, **_: logger.info("Ray: %s", " ".join(map(str, data.get("lines", ()))))


def abandoned_placement_groups() -> Iterable[str]:
    """Placement groups whose creator is dead and which still hold, or wait for, resources (hex ids).

    Ray Train's own cleaner misses groups that were still pending when their trial was stopped. The creator's state is
    only in the control store's table, which is private: where Ray changes it, nothing is found and that is logged.
    """
    import ray

    try:
        from ray.core.generated import gcs_pb2

        table = ray._private.state.state._connect_and_get_accessor().get_placement_group_table()
        data: Any = gcs_pb2.PlacementGroupTableData  # type: ignore[attr-defined]  # made when it is imported
        groups = [data.FromString(row) for row in table]
        removed = data.PlacementGroupState.REMOVED
        return [
            g.placement_group_id.hex()
            for g in groups
            if g.state != removed
            and g.creator_actor_dead
            and not g.is_detached
            # a group made by a driver has no creating actor, and its "actor" counts as dead
            and not ray.ActorID(g.creator_actor_id).is_nil()
        ]
    except (AttributeError, ImportError, TypeError) as error:
        _warn_once(f"this version of Ray hides its placement groups ({error}); abandoned ones are not looked for")
        return []


@functools.cache
def _warn_once(message: str) -> None:
    logger.warning(message)


def free_abandoned() -> int:
    """Remove placement groups that a stopped trial left behind; returns how many."""
    import ray
    from ray.util.placement_group import PlacementGroup, remove_placement_group

    count = 0
    for name in abandoned_placement_groups():
        remove_placement_group(PlacementGroup(ray.PlacementGroupID(bytes.fromhex(name))))
        count += 1
    return count


@contextlib.contextmanager
def janitor(every_seconds: float = 5.0) -> Iterator[None]:
    """Free what stopped trainings left behind, every few seconds until the block ends."""
    import ray

    over = threading.Event()

    def clean() -> None:
        while not over.wait(every_seconds) and ray.is_initialized():
            try:
                freed = free_abandoned()
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


def launcher_faults(config: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Path and message of what Ray's own validation of a file for ``ray up`` refuses; nothing is asked of a cloud.

    Public is only ``ray up`` itself, which starts machines. Where Ray moves these names, that is logged and nothing found.
    """
    try:
        from ray.autoscaler._private.util import prepare_config, validate_config
    except ImportError as error:
        _warn_once(f"this version of Ray hides its validation ({error}); the file was checked by our own rules alone")
        return
    logging.getLogger(prepare_config.__module__).setLevel(logging.WARNING)  # it tells what it fills in
    try:
        validate_config(prepare_config(copy.deepcopy(dict(config))))
    except Exception as error:  # noqa: BLE001 - whatever it stumbles over, `ray up` would, too
        where = str(getattr(error, "json_path", "")).removeprefix("$").removeprefix(".")
        yield where or "cluster file", f"Ray refuses it: {' '.join(str(getattr(error, 'message', error)).split())}"
