"""Numbers as people read them: few digits, a unit, thousands apart, a dash for what is not there."""

import time
from collections.abc import Sequence
from typing import Any

NOTHING = "-"
"""What stands for a missing value; a sorted table has it last."""


def number(value: Any) -> str:
    """A value as a person reads it: three significant digits, thousands apart, lists by commas, a dash for nothing."""
    if value is None:
        return NOTHING
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    if isinstance(value, list | tuple):
        return ", ".join(number(part) for part in value) or "none"
    return str(value)


def setting(value: Any) -> str:
    """The value of a setting, so that it can be typed again: floats with three significant digits, else as it is."""
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def score(value: float | None, nothing: str = NOTHING) -> str:
    """A metric in [0, 1]: three decimals."""
    return nothing if value is None else f"{value:.3f}"


def fine_score(value: float | None) -> str:
    """A metric in [0, 1] where small differences count: four decimals."""
    return NOTHING if value is None else f"{value:.4f}"


def percent(share: float) -> str:
    """A share in [0, 1]: ``0.12 %``."""
    return f"{100 * share:.3g} %"


def counted(count: int, what: str) -> str:
    """``1 trial``, ``2,000 trials``."""
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def first_few(numbers: Sequence[int], most: int = 6) -> str:
    """The first ``most`` of ``numbers``, and how many there are if that is not all."""
    shown = ", ".join(map(str, numbers[:most]))
    return shown if len(numbers) <= most else f"{shown}, ... ({len(numbers)})"


def extent(shape: Sequence[int]) -> str:
    """``192x192x100``."""
    return "x".join(str(n) for n in shape)


def size(count: float) -> str:
    """Bytes: ``12 B``, ``3.4 GiB``."""
    value, unit = float(count), "B"
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if value < 1024 or unit == "TiB":
            break
        value /= 1024
    return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"


def duration(seconds: float | None) -> str:
    """``42 s``, ``3.5 min``, ``1.2 h``; a dash for nothing."""
    if seconds is None:
        return NOTHING
    for limit, unit, length in ((120.0, "s", 1.0), (7200.0, "min", 60.0)):
        if seconds < limit:
            return f"{seconds / length:.3g} {unit}"
    return f"{seconds / 3600:,.1f} h"


def about(seconds: float) -> str:
    """A guess: ``about 3 min 20 s``, ``about 5 h 12 min``."""
    hours, rest = divmod(round(seconds), 3600)
    return f"about {hours} h {rest // 60} min" if hours else f"about {rest // 60} min {rest % 60} s"


def clock(seconds: float) -> str:
    """Minutes and seconds: ``12:07``."""
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes}:{rest:02d}"


def age(modified: float) -> str:
    """How long ago ``modified`` (seconds since 1970) was: ``3 d``, ``5 h``, ``12 min``, ``40 s``."""
    seconds = max(0.0, time.time() - modified)
    for length, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"
