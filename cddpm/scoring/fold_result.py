"""What one method reached on one test data set in one fold: the unit that tables are made of."""

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cddpm import artifact
from cddpm.errors import ArtifactError


@dataclass(frozen=True)
class FoldResult:
    """Measurements of one fold; undefined numbers are ``None``, never NaN.

    Raises ``ValueError`` for an empty name, a negative fold, a row without ``volume``, or NaN or infinity anywhere.
    """

    method: str
    """What tables call the method."""
    dataset: str
    fold: int
    rows: list[dict[str, Any]]
    """One per volume: ``volume``, measures by name, and ``subject`` where a subject has several volumes."""
    measures: dict[str, float | None]
    """The data set's numbers: means over volumes, or measures pooled over them."""

    def __post_init__(self) -> None:
        if not self.method or not self.dataset or self.fold < 0:
            raise ValueError(
                f"method {self.method!r}, data set {self.dataset!r}, fold {self.fold}: names and a fold >= 0"
            )
        for row in self.rows:
            if not row.get("volume"):
                raise ValueError(f"{self.place}: a row without 'volume'; it has {', '.join(row) or 'nothing'}")
            self._refuse_infinite(row, f"volume '{row['volume']}'")
        self._refuse_infinite(self.measures, "measures")

    @property
    def place(self) -> str:
        """How messages name this result."""
        return f"{self.method} on {self.dataset}, fold {self.fold}"

    def _refuse_infinite(self, values: dict[str, Any], where: str) -> None:
        for name, value in values.items():
            if isinstance(value, float) and not math.isfinite(value):
                raise ValueError(f"{self.place}, {where}: {name} is {value}; an undefined number is None")

    def values(self, measure: str) -> list[tuple[str, str, float]]:
        """(subject, volume, value) of every volume for which ``measure`` is defined."""
        return [
            (str(row.get("subject") or row["volume"]), str(row["volume"]), float(row[measure]))
            for row in self.rows
            if row.get(measure) is not None
        ]

    def to_json(self) -> str:
        """As JSON text; ``from_json`` gives it back."""
        return json.dumps(asdict(self), indent=1, sort_keys=True, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str, source: str = "result") -> "FoldResult":
        """The result in ``text``. Raises ``ArtifactError`` naming ``source`` if it is not one."""
        try:
            raw = json.loads(text)
            return cls(raw["method"], raw["dataset"], raw["fold"], raw["rows"], raw["measures"])
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ArtifactError(
                f"{source}: not the result of a fold ({type(error).__name__}: {error}); delete it and evaluate this fold again"
            ) from error

    def write(self, path: Path) -> None:
        """Replace the file ``path`` atomically. Raises ``StorageError`` if the disk refuses."""
        artifact.write_text(path, self.to_json())

    @classmethod
    def read(cls, path: Path) -> "FoldResult":
        """The result in the file ``path``. Raises ``ArtifactError`` if it is missing or damaged."""
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ArtifactError(f"{path}: the result of a fold cannot be read ({error}); evaluate it again") from error
        return cls.from_json(text, str(path))
