"""What may stand in a journal: finite numbers, texts, times in milliseconds, tables; all else is turned into one of them."""

import json
import math
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cddpm.tracking import names


@dataclass(frozen=True)
class Promised:
    """A promotion that follows a registration: ``alias`` shall mean the new version, and ``why``."""

    alias: str
    why: str


def now_ms(seconds: float | None = None) -> int:
    """``seconds`` since 1970, or now, in milliseconds: MLflow's unit of time."""
    return time.time_ns() // 1_000_000 if seconds is None else int(seconds * 1000)


def finite(value: Any) -> float | None:
    """``value`` (number, numpy scalar, one-element tensor) as a finite float, else None."""
    try:
        number = float(value)
    except (TypeError, ValueError, RuntimeError):
        return None
    return number if math.isfinite(number) else None


def texts(values: Mapping[str, Any]) -> dict[str, str]:
    """Params or tags as MLflow takes them: safe names, values as text or JSON."""
    return {
        names.safe(name): value if isinstance(value, str) else json.dumps(value, default=str)
        for name, value in values.items()
    }


def table(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Rows as MLflow keeps a table: ``{"columns": [...], "data": [[...], ...]}``; NaN, infinity and what is absent are None."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    return {"columns": columns, "data": [[_cell(row.get(name)) for name in columns] for row in rows]}


def _cell(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def samples(rows: Iterable[Mapping[str, float]]) -> list[tuple[str, float, int, int]]:
    """Points (name, value, number of the row, milliseconds) of rows ``{"time": seconds since 1970, name: value, ...}``."""
    return [
        (name, value, step, now_ms(row["time"]))
        for step, row in enumerate(rows)
        for name, value in row.items()
        if name != "time" and math.isfinite(value)
    ]


def size_bytes(path: Path) -> int:
    """Of a file, or of all files below a folder."""
    return path.stat().st_size if path.is_file() else sum(p.stat().st_size for p in path.rglob("*") if p.is_file())
