"""Which hosts a cluster has while work goes on: a person is told when one is lost, and when its successor has joined."""

import time
from collections.abc import Iterable, Mapping
from typing import Any

from cddpm.text.numbers import clock, counted

_GIVEN_BACK = {1, 4, "EXPECTED_TERMINATION", "AUTOSCALER_DRAIN_IDLE"}
"""Ray's reasons for the end of a node that nobody misses: somebody ended it, or it had nothing to do."""


_SETTLING_SECONDS, _BETWEEN_SECONDS = 60.0, 4.0
"""So long after a host has joined, and so often, all hosts are made to say again what they have free."""


class Roster:
    """Compares what hosts there are with what there were. Not for several threads."""

    def __init__(self, every_seconds: float = 2.0) -> None:
        self._every, self._next = every_seconds, 0.0
        self._alive: frozenset[str] | None = None
        self._most = 0
        self._lost: dict[str, float] = {}
        self._joined, self._stirred = -_SETTLING_SECONDS, 0.0

    def told(self) -> list[str]:
        """News since the last call, a line each; Ray is asked every few seconds, and none come where it does not answer."""
        import ray

        now = time.monotonic()
        if now < self._next:
            return []
        self._next = now + self._every
        try:
            nodes = ray.nodes()
        except (ray.exceptions.RayError, RuntimeError, ConnectionError):
            return []
        news = self.update(nodes, now)
        if self.unsettled(now):
            _stir(node["NodeManagerAddress"] for node in nodes if node["Alive"])
        return news

    def update(self, nodes: list[Mapping[str, Any]], now: float) -> list[str]:
        """The news of ``nodes`` (as ``ray.nodes()`` lists them) at ``now``, in seconds of a clock that only goes on."""
        alive = frozenset(node["NodeManagerAddress"] for node in nodes if node["Alive"])
        missed = {
            node["NodeManagerAddress"]
            for node in nodes
            if not node["Alive"] and node.get("DeathReason") not in _GIVEN_BACK
        } - alive
        before = alive if self._alive is None else self._alive
        news = []
        for address in sorted(before - alive):
            self._most = max(self._most, len(before))
            if address in missed:
                self._lost[address] = now
                news.append(f"host {address} lost; {len(alive)} of {counted(self._most, 'host')} left")
        for address in sorted(alive - before):
            # a successor may have another address: it stands in for whoever has waited longest
            stood_in = address if address in self._lost else next(iter(self._lost), None)
            waited = "" if stood_in is None else f" after {clock(now - self._lost.pop(stood_in))}"
            self._joined = now
            news.append(f"host {address} joined{waited}; {counted(len(alive), 'host')} now")
        self._alive, self._most = alive, max(self._most, len(alive)) if self._lost else len(alive)
        return news

    def unsettled(self, now: float) -> bool:
        """Whether hosts are to say again what they have free: some times in the minute after one has joined."""
        if now - self._joined >= _SETTLING_SECONDS or now - self._stirred < _BETWEEN_SECONDS:
            return False
        self._stirred = now
        return True

    def waiting(self, now: float | None = None) -> str:
        """``1 of 2 hosts; waiting for a successor since 0:24``; empty if no host is missed."""
        if not self._lost or self._alive is None:
            return ""
        since = (time.monotonic() if now is None else now) - min(self._lost.values())
        return f"{len(self._alive)} of {counted(self._most, 'host')}; waiting for a successor since {clock(since)}"


def _stir(addresses: Iterable[str]) -> None:
    """Have each host run a task that does nothing, so that it tells the head anew what it has free.

    When a host was lost without a word and its successor has the same address, the head asks it for places first over the
    dead connection. That fails, and what the head had booked for it stays booked in its view, until the host says otherwise,
    which an idle host never does (Ray 2.60): the training that waits for both of its hosts would wait for ever.
    """
    import ray

    nothing: Any = ray.remote(num_cpus=0, max_retries=0)(_nothing)
    for address in addresses:
        nothing.options(resources={f"node:{address}": 0.001}).remote()


def _nothing() -> None:
    """Done."""
