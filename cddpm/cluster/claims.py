"""Who of all processes of a cluster makes a thing: the others wait until it is there, or its maker gone.

One named actor knows. It needs no clock and no lock file: a claim is an unfinished call whose result belongs to the claiming
process, and Ray itself tells who waits for such a result that its owner has died.
"""

import asyncio
import contextlib
import uuid
from collections.abc import Iterator
from typing import Any

from cddpm.cluster.session import HEAD

NAME, NAMESPACE = "claims", "cddpm"
_MOST = 10_000
"""Claims at once."""


@contextlib.contextmanager
def claimed(key: str) -> Iterator[bool]:
    """Whether ``key`` is this process's until the block ends; false while another has it.

    A process without a cluster has nobody to share with: everything is its own.
    """
    import ray

    if not ray.is_initialized():
        yield True
        return
    who = uuid.uuid4().hex
    # outside of the placement group of a worker group, which has no room for it
    remote: Any = ray.remote(num_cpus=0, resources={HEAD: 0.001}, scheduling_strategy="DEFAULT")(_Claims)
    actor = remote.options(
        name=NAME, namespace=NAMESPACE, lifetime="detached", get_if_exists=True, max_concurrency=_MOST
    ).remote()
    held = actor.hold.remote(who)
    mine = bool(ray.get(actor.take.remote(key, who, [held])))
    try:
        yield mine
    finally:
        actor.release.remote(who)


class _Claims:
    """``hold`` ends when ``release`` says so; its result is lost when the process dies that called it."""

    def __init__(self) -> None:
        self.owners: dict[str, str] = {}
        self.ends: dict[str, asyncio.Event] = {}
        self.watchers: dict[str, asyncio.Future[None]] = {}

    def _end(self, who: str) -> asyncio.Event:
        return self.ends.setdefault(who, asyncio.Event())

    async def hold(self, who: str) -> None:
        await self._end(who).wait()
        self.ends.pop(who, None)

    async def take(self, key: str, who: str, held: list[Any]) -> bool:
        if self.owners.setdefault(key, who) != who:
            return False
        self.watchers[key] = asyncio.ensure_future(self._watch(key, who, held[0]))
        return True

    async def _watch(self, key: str, who: str, held: Any) -> None:
        with contextlib.suppress(Exception):  # released, or its owner died
            await held
        self._end(who).set()
        if self.owners.get(key) == who:
            del self.owners[key]
            del self.watchers[key]

    async def release(self, who: str) -> None:
        for key in [key for key, owner in self.owners.items() if owner == who]:
            del self.owners[key]
            self.watchers.pop(key)
        self._end(who).set()
