"""What MLflow shall show of one run, as plain data: the folder of a sweep or an evaluation is the record, MLflow its mirror.

``search.mirror`` and ``evaluation.mirror`` read folders into this; ``tracking.publish`` makes MLflow match it. Nothing here is
sent anywhere, and nothing here imports MLflow.
"""

import hashlib
import json
import math
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

from cddpm import artifact
from cddpm.config import ExperimentConfig, changed
from cddpm.tracking import names

Status = Literal["RUNNING", "FINISHED", "FAILED", "KILLED"]
PLACES = ("name", "output_dir", "storage", "tracking.")
"""Settings that say where something lies: they tell two runs apart by nothing that matters."""
_KEY = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,119}(/[A-Za-z0-9_.-]{1,120})?")


class Point(NamedTuple):
    """One value of a curve. ``time_ms``: milliseconds since 1970; ``step``: slices seen."""

    metric: str
    value: float
    step: int
    time_ms: int


@dataclass(frozen=True)
class MirroredFile:
    """A file of a run: ``name`` is its place among the run's files, ``source`` a file on the disk or the text itself."""

    name: str
    source: Path | str
    table: bool = False
    """``{"columns": [...], "data": [[...], ...]}``: MLflow's pages show it as one."""

    @property
    def digest(self) -> str:
        """Of the contents. Raises ``StorageError`` if the file cannot be read."""
        if isinstance(self.source, str):
            return hashlib.sha256(self.source.encode()).hexdigest()
        with artifact.storage_errors(self.source):
            state = self.source.stat()
        return _digest(self.source, state.st_size, state.st_mtime_ns)


@lru_cache(maxsize=4096)
def _digest(path: Path, size: int, changed: int) -> str:
    with artifact.storage_errors(path), path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


@dataclass(frozen=True)
class Registration:
    """A model package that becomes a version, and an alias that shall mean it.

    ``identity`` names the promotion in the audit, so that it is carried out once however often it is tried.
    """

    package: Path
    fingerprint: str
    """Of the package."""
    model: str
    metrics: Mapping[str, float]
    tags: Mapping[str, str]
    label: str = ""
    alias: str = ""
    """Empty: none."""
    why: str = ""
    who: str = ""
    identity: str = ""
    time_ms: int = 0
    """When it was decided, in milliseconds since 1970."""


@dataclass(frozen=True)
class MirroredRun:
    """All of one run. ``key``: ``SWEEP``, or ``SWEEP/0003`` for what belongs to it: the same after every restart."""

    key: str
    kind: str
    name: str
    """What a person reads."""
    campaign: str
    """Identity of the folder: two sweeps of one name from two desks are two sweeps."""
    status: Status
    began: float
    """Seconds since 1970."""
    ended: float | None = None
    tags: Mapping[str, str] = field(default_factory=dict)
    params: Mapping[str, str] = field(default_factory=dict)
    points: Sequence[Point] = ()
    """Curves, by rising step."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    """Results: what the run shows as their latest value, at ``step``."""
    step: int = 0
    files: Sequence[MirroredFile] = ()
    data: Mapping[str, str] = field(default_factory=dict)
    """Name of a data set -> fingerprint of its slice store."""
    made_of: Mapping[str, str] = field(default_factory=dict)
    """Stage -> fingerprint of what it made: each is linked to the run that made it, maybe of an earlier sweep."""
    registration: Registration | None = None

    def __post_init__(self) -> None:
        if not _KEY.fullmatch(self.key):
            raise ValueError(
                f"key: '{self.key}': allowed are SWEEP and SWEEP/NAME, each up to 120 letters, digits, '_', '.', '-', SWEEP "
                "without a dot or dash first"
            )

    @property
    def parent(self) -> str | None:
        """Key of the run that this one belongs to."""
        sweep, _, child = self.key.partition("/")
        return sweep if child else None

    @cached_property
    def digest(self) -> str:
        """Of everything that MLflow shall show: two runs of one digest look alike there."""
        plain = {entry.name: getattr(self, entry.name) for entry in fields(self)}
        plain["files"] = [(file.name, file.digest, file.table) for file in self.files]
        if self.registration is not None:
            own = vars(self.registration).items()
            plain["registration"] = {name: value for name, value in own if name != "package"}  # where it lies now
        return hashlib.sha256(json.dumps(plain, sort_keys=True, default=str).encode()).hexdigest()[:32]


# What values become


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


def noted(config: ExperimentConfig) -> dict[str, Any]:
    """Settings that a person looks at in a list of runs: those that differ from the defaults, by dotted path.

    Where things lie is left out; the whole configuration is a file of the run.
    """
    default = ExperimentConfig(name=config.name)
    return {path: value for path, value in changed(config, default).items() if not path.startswith(PLACES)}


def milliseconds(seconds: float | None = None) -> int:
    """``seconds`` since 1970, or now: MLflow's unit of time."""
    return time.time_ns() // 1_000_000 if seconds is None else int(seconds * 1000)


def curve(rows: Iterable[Mapping[str, Any]], otherwise: float) -> tuple[list[Point], dict[str, str]]:
    """Points of rows ``{"images": slices seen, "time": seconds since 1970, metric: value, ...}``, each step once.

    ``otherwise``: the time of rows without one. A value that is no finite number is left out and said in a tag
    ``cddpm.nonfinite.<metric>``: both are returned.
    """
    points: list[Point] = []
    flags: dict[str, str] = {}
    last: dict[str, int] = {}
    for row in rows:
        step, when = int(row[names.IMAGES]), milliseconds(row.get(names.TIME, otherwise))
        for name, value in row.items():
            metric = names.safe(name)
            if name in (names.IMAGES, names.TIME) or step <= last.get(metric, -1):
                continue
            last[metric] = step
            number = finite(value)
            if number is None:
                flags[f"{names.NONFINITE}.{metric}"[:250]] = f"{value} at {step}"[:500]
            else:
                points.append(Point(metric, number, step, when))
    return points, flags


def samples(rows: Iterable[Mapping[str, float]]) -> list[Point]:
    """Points of rows ``{"time": seconds since 1970, metric: value, ...}``; the step is the number of the row."""
    return [
        Point(name, value, step, milliseconds(row[names.TIME]))
        for step, row in enumerate(rows)
        for name, value in row.items()
        if name != names.TIME and math.isfinite(value)
    ]


def table(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Rows as MLflow keeps a table: ``{"columns": [...], "data": [[...], ...]}``; NaN, infinity and what is absent are None."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    return {"columns": columns, "data": [[_cell(row.get(name)) for name in columns] for row in rows]}


def _cell(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def rows_file(name: str, rows: Sequence[Mapping[str, Any]]) -> MirroredFile:
    """A table of plain values, by the name ``name`` (``.json``)."""
    return MirroredFile(name, json.dumps(table(rows)), table=True)


def json_file(name: str, value: Mapping[str, Any]) -> MirroredFile:
    """Plain JSON data by the name ``name``."""
    return MirroredFile(name, json.dumps(value, indent=2, sort_keys=True))


def present(folder: Path, files: Iterable[str], tables: Sequence[str] = ()) -> list[MirroredFile]:
    """Those of ``files`` that lie in ``folder``."""
    return [MirroredFile(name, folder / name, name in tables) for name in files if (folder / name).is_file()]
