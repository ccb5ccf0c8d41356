"""How long a sweep will still run, from what its trials have shown of their stages; time in which they start is no measure.

A stage's length is told by its pace since it was first seen. Trials to come pass through training, reconstruction and search as
those so far; an encoder is pretrained once. Stages that nobody has reached are taken for a share of the training, whatever runs
abreast goes on so, and no trial is taken to be stopped early: so it is rather too long than too short.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field

ORDER = ("guide", "pretrain", "train", "reconstruction", "search")
TO_COME = ("train", "reconstruction", "search")
"""What every trial passes through."""
SHARES = {"reconstruction": 0.05, "search": 0.1}
"""Of the training, as long as nothing else is known."""
SEEN_SECONDS = 2.0
"""A pace is told by no less."""


@dataclass
class TimeLeft:
    """Watches the trials of one start of a sweep; one thread may tell it of ends while another looks."""

    total: int
    """Trials that are still to end."""
    clock: Callable[[], float] = time.monotonic
    _first: dict[tuple[int, str], tuple[float, int]] = field(default_factory=dict, init=False)
    _whole: dict[str, float] = field(default_factory=dict, init=False)
    """Seconds of a stage from its beginning to its end."""
    _now: dict[int, tuple[str, float]] = field(default_factory=dict, init=False)
    """Where each running trial is: its stage, and the fraction of it that is done."""
    _ended: set[int] = field(default_factory=set, init=False)
    _began: float = field(default=0.0, init=False)
    _abreast: int = field(default=1, init=False)

    def __post_init__(self) -> None:
        self._began = self.clock()

    def saw(self, number: int, stage: str, seen: int, budget: int) -> None:
        """Trial ``number`` has done ``seen`` of ``budget`` steps of a stage."""
        if stage not in ORDER or budget < 1 or number in self._ended:
            return
        now = self.clock()
        when, before = self._first.setdefault((number, stage), (now, seen))
        if seen > before and now - when >= SEEN_SECONDS:
            self._whole[stage] = (now - when) * budget / (seen - before)
        self._now[number] = stage, min(1.0, seen / budget)
        self._abreast = max(self._abreast, len(self._now))

    def ended(self, number: int) -> None:
        """Trial ``number`` is over."""
        self._ended.add(number)  # first: who looks at the same moment must not bring it back
        self._now.pop(number, None)

    def seconds(self) -> float | None:
        """Until the last trial ends; None while nothing tells it."""
        running = [place for number, place in list(self._now.items()) if number not in self._ended]
        to_come = max(0, self.total - len(self._ended) - len(running))
        if "train" not in self._whole:
            return self._mean() * (to_come + len(running)) if self._ended else None
        trial = sum(map(self._length, TO_COME))
        rests = [self._rest(*place) for place in running]
        lanes = max(1, min(self._abreast, to_come + len(running)))
        return max([(sum(rests) + to_come * trial) / lanes, *rests])

    def _mean(self) -> float:
        """Of the trials that have ended, whose stages nobody saw."""
        return (self.clock() - self._began) / len(self._ended)

    def _length(self, stage: str) -> float:
        return self._whole.get(stage, SHARES.get(stage, 0.0) * self._whole["train"])

    def _rest(self, stage: str, done: float) -> float:
        later = [one for one in TO_COME if ORDER.index(one) > ORDER.index(stage)]
        return (1 - done) * self._length(stage) + sum(map(self._length, later))
