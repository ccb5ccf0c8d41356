"""What a part's process is told: plain data that travels as JSON."""

import json
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Self

PARTS = ("ceilings", "correct", "train", "reconstruct", "learn", "profile")
"""In the order of their worth."""
SHARES = {"ceilings": 1.5, "correct": 1.5, "train": 2.5, "reconstruct": 1.25, "learn": 1.5, "profile": 0.75}
"""Of the time that is left when a part begins, against those of the parts after it."""
PLANTS = ("broken-gradient", "slow-loader", "hang")
"""Faults that are planted to see whether this check names them."""


def allowance(part: str, later: tuple[str, ...], left_seconds: float) -> float:
    """Seconds that ``part`` may take: its share of what is left. What a part does not use is there for the later ones."""
    return left_seconds * SHARES[part] / (SHARES[part] + sum(SHARES[name] for name in later))


@dataclass(frozen=True)
class Assignment:
    """One part: on which device, how long, where its record goes, and which fault is planted."""

    part: str
    device: str
    tiny: bool
    seconds: float
    out: str
    scratch: str
    """Folder for what the parts share and nobody keeps: stores, states."""
    plant: str | None = None
    began: float = field(default_factory=time.monotonic)

    def to_json(self) -> str:
        """All but the clock: another process has its own."""
        return json.dumps({name: value for name, value in asdict(self).items() if name != "began"})

    @classmethod
    def from_json(cls, text: str) -> Self:
        """The inverse; its time begins now."""
        return cls(**json.loads(text))

    def left(self) -> float:
        """Seconds until the process is ended."""
        return self.seconds - (time.monotonic() - self.began)

    @property
    def out_folder(self) -> Path:
        """Where records lie."""
        return Path(self.out)

    @property
    def scratch_folder(self) -> Path:
        """See ``scratch``."""
        return Path(self.scratch)
