"""A line of the table "Speed and memory", and the cores that are measured on; needs nothing but Python."""

import os
from dataclasses import asdict, dataclass
from typing import Any, Literal

CORES = 2


@dataclass(frozen=True)
class Row:
    """One line of the table. ``bar`` none: told for information."""

    work: str
    unit: str
    measured: float
    bar: float | None = None
    sense: Literal["at least", "at most"] = "at least"
    detail: str = ""
    spread: float | None = None
    """Half of the distance between the quickest and the slowest repetition, over the median."""

    @property
    def held(self) -> bool | None:
        """Whether the bar is reached; none without one."""
        if self.bar is None:
            return None
        return self.measured >= self.bar if self.sense == "at least" else self.measured <= self.bar

    def plain(self) -> dict[str, Any]:
        """Plain data for a file."""
        return {**asdict(self), "held": self.held}


MUCH = 4 / 3


def worse(row: Row, before: float | None) -> bool:
    """Whether a ratio within one run is much worse than it was; rates and seconds depend on the machine, and its mood."""
    if before is None or not row.unit.startswith(("times", "%")):
        return False
    return row.measured * MUCH < before if row.sense == "at least" else row.measured > before * MUCH


def pin() -> int:
    """Keep this process on ``CORES`` of its cores, if it may use more; returns how many it has."""
    allowed = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, allowed[:CORES])
    return min(CORES, len(allowed))
