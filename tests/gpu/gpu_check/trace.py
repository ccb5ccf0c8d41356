"""What a device did while work ran: its kernels, when it idled, what waited for it. Read from the profiler's Chrome trace.

Categories of its events: ``kernel``, ``gpu_memcpy`` and ``gpu_memset`` ran on a GPU, ``cuda_runtime`` and ``cuda_driver`` are
calls that the CPU made, ``cpu_op`` are operators. On a CPU the operators stand for the device's work. Times in microseconds.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

ON_GPU = frozenset(("kernel", "gpu_memcpy", "gpu_memset"))
CALLS = frozenset(("cuda_runtime", "cuda_driver"))
WAITS = ("Synchronize", "cudaMemcpy", "cuMemcpy")
"""Of calls: they come back when the device is done, but for those that say Async."""

_NAME = 120
"""Letters that are kept of a name: templates of kernels fill pages."""

Event = dict[str, Any]


@dataclass(frozen=True)
class Gap:
    """A time in which the device had nothing to do, and the work around it."""

    microseconds: float
    after: str
    before: str


@dataclass(frozen=True)
class Trace:
    """The events of a recording, those of the device in the order of their begin."""

    device_events: list[Event]
    calls: list[Event]

    @classmethod
    def of(cls, events: Sequence[Event], gpu: bool) -> "Trace":
        """Of the events of a Chrome trace; without ``gpu`` the CPU's operators are the device's work."""
        whole = [{**event, "name": str(event["name"])[:_NAME]} for event in events if event.get("ph") == "X"]
        kinds = ON_GPU if gpu else {"cpu_op"}
        ran = [event for event in whole if event.get("cat") in kinds]
        calls = [event for event in whole if event.get("cat") in CALLS]
        return cls(sorted(ran, key=lambda event: event["ts"]), calls)

    @property
    def span(self) -> float:
        """From the begin of the first to the end of the last of the device's work."""
        if not self.device_events:
            return 0.0
        return max(_end(event) for event in self.device_events) - self.device_events[0]["ts"]

    @property
    def busy(self) -> float:
        """How long the device had something to do; what ran side by side counts once."""
        return sum(end - start for start, end in (_bounds(group) for group in self._groups()))

    @property
    def idle_share(self) -> float:
        """Part of the span without work; NaN if there was no work at all."""
        return 1 - self.busy / self.span if self.span else float("nan")

    def gaps(self, most: int) -> list[Gap]:
        """The longest times without work, longest first."""
        found = []
        for group, after in pairwise(self._groups()):
            last = max(group, key=_end)
            found.append(Gap(after[0]["ts"] - _end(last), last["name"], after[0]["name"]))
        return sorted(found, key=lambda gap: -gap.microseconds)[:most]

    def kernels(self, most: int) -> list[tuple[str, int, float]]:
        """(name, calls, time) of the device's work that took longest together; a CPU's operators without those inside."""
        sums: dict[str, tuple[int, float]] = {}
        for event, own in self._own_times():
            calls, time = sums.get(event["name"], (0, 0.0))
            sums[event["name"]] = calls + 1, time + own
        rows = [(name, calls, time) for name, (calls, time) in sums.items()]
        return sorted(rows, key=lambda row: -row[2])[:most]

    def waits(self) -> list[tuple[str, int, float]]:
        """(call, how often, time) of what the CPU did until the device was done, and of its copies."""
        names = {event["name"] for event in self.calls if _waits(event["name"])}
        copies = {event["name"] for event in self.device_events if event["name"].startswith("Memcpy")}
        rows = []
        for name in sorted(names | copies):
            found = [event for event in (*self.calls, *self.device_events) if event["name"] == name]
            rows.append((name, len(found), sum(event["dur"] for event in found)))
        return rows

    def _groups(self) -> list[list[Event]]:
        """Work without a gap in between."""
        groups: list[list[Event]] = []
        end = float("-inf")
        for event in self.device_events:
            if event["ts"] > end:
                groups.append([])
            groups[-1].append(event)
            end = max(end, _end(event))
        return groups

    def _own_times(self) -> list[tuple[Event, float]]:
        """Each piece of work with its time less that of the pieces inside of it, on the same thread or stream."""
        own: list[list[Any]] = []
        open_by_lane: dict[Any, list[int]] = {}
        for event in self.device_events:
            lane = open_by_lane.setdefault((event.get("pid"), event.get("tid")), [])
            while lane and _end(own[lane[-1]][0]) <= event["ts"]:
                lane.pop()
            if lane:
                own[lane[-1]][1] -= event["dur"]
            lane.append(len(own))
            own.append([event, event["dur"]])
        return [(event, time) for event, time in own]


def _end(event: Event) -> float:
    return float(event["ts"]) + float(event["dur"])


def _bounds(group: Sequence[Event]) -> tuple[float, float]:
    return group[0]["ts"], max(_end(event) for event in group)


def _waits(name: str) -> bool:
    return any(part in name for part in WAITS) and not name.endswith("Async")


class Recorder:
    """Records from ``start`` to ``stop``, through a file below ``scratch``."""

    def __init__(self, device: torch.device, scratch: Path) -> None:
        self._gpu, self._path = device.type == "cuda", scratch / "trace.json"
        kinds = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if self._gpu else [])]
        if self._gpu:  # the first recording of a process loses kernels while the profiler settles
            with profile(activities=kinds):
                torch.zeros(1, device=device).add_(1)
                torch.cuda.synchronize(device)
        self._profile = profile(activities=kinds)

    def start(self) -> None:
        """Record from now on."""
        self._profile.start()

    def stop(self) -> Trace:
        """Record no more; what was recorded."""
        if self._gpu:
            torch.cuda.synchronize()
        self._profile.stop()
        self._profile.export_chrome_trace(str(self._path))
        events = json.loads(self._path.read_text())["traceEvents"]
        self._path.unlink()
        return Trace.of(events, self._gpu)
