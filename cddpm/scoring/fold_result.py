"""What one method reached on one test data set in one fold: the unit that tables are made of."""

import math
from dataclasses import dataclass
from typing import Any


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
