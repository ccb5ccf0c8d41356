"""The time left of sweeps whose every second is known: near the truth from the first training on, never told by starting."""

from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cddpm.search.time_left import TimeLeft


@dataclass(frozen=True)
class Lengths:
    """Seconds of a trial's stages."""

    start: float
    pretrain: float
    train: float
    reconstruction: float
    search: float

    def stages(self, first: bool) -> list[tuple[str, float]]:
        later = [("train", self.train), ("reconstruction", self.reconstruction), ("search", self.search)]
        return [("", self.start), *([("pretrain", self.pretrain)] if first else []), *later]


BUDGET = 10**6


def course(lengths: Lengths, trials: int, every: float = 1.0) -> Iterator[tuple[str, float | None, float]]:
    """A sweep, one trial after the other: at each look the stage, what is told, and what is true."""
    now = 0.0
    left = TimeLeft(trials, lambda: now)
    plans = [lengths.stages(number == 0) for number in range(trials)]
    end = sum(seconds for plan in plans for _, seconds in plan)
    for number, plan in enumerate(plans):
        for stage, seconds in plan:
            begun = now
            while now < begun + seconds:
                if stage:
                    left.saw(number, stage, int(BUDGET * (now - begun) / seconds), BUDGET)
                yield stage, left.seconds(), end - now
                now += every
            now = begun + seconds
        left.ended(number)


spans = st.floats(20.0, 600.0)


@pytest.mark.slow
@settings(max_examples=40, deadline=None)
@given(
    st.builds(Lengths, st.just(0.0), spans, spans, st.floats(0.0, 20.0), st.floats(0.0, 40.0)),
    st.integers(1, 5),
)
def test_it_is_near_the_truth_once_a_training_has_been_seen(lengths: Lengths, trials: int) -> None:
    """Stages that were not yet reached are guesses: they may be as long as their share of the training, or not at all."""
    unknown = trials * (lengths.reconstruction + lengths.search + 0.15 * lengths.train)
    for stage, told, true in course(lengths, trials):
        if told is not None:
            assert told == pytest.approx(true, rel=0.15, abs=unknown + 10), stage


def test_starting_is_no_measure() -> None:
    """A minute of starting, then ten seconds of training: no trial is taken to last hours."""
    told = [left for _, left, _ in course(Lengths(60, 5, 30, 2, 4), 3) if left is not None]
    assert max(told) < 3 * (30 + 2 + 4) + 15


def test_nothing_is_told_before_anything_was_seen() -> None:
    left = TimeLeft(4)
    assert left.seconds() is None
    left.saw(0, "", 0, 1)
    left.saw(0, "train", 0, 100)
    assert left.seconds() is None


def test_trials_whose_stages_nobody_saw_are_told_by_their_mean() -> None:
    now = 100.0
    left = TimeLeft(5, lambda: now)
    now = 200.0
    left.ended(0)
    left.ended(1)
    assert left.seconds() == pytest.approx(150.0)


def two_half_trained(total: int) -> TimeLeft:
    """Two trials abreast, after 50 of 100 s of their trainings."""
    times = iter([0.0, 0.0, 0.0])
    left = TimeLeft(total, lambda: next(times, 50.0))
    for seen in (0, 500):
        for number in (0, 1):
            left.saw(number, "train", seen, 1000)
    return left


def test_what_runs_abreast_shares_the_time() -> None:
    left = two_half_trained(4)
    # 100 s a training, 15 s for what follows; two half done and two to come, two at once
    assert left.seconds() == pytest.approx((2 * 65 + 2 * 115) / 2, rel=0.01)


def test_a_training_that_is_continued_is_told_by_what_was_seen_of_it() -> None:
    now = 0.0
    left = TimeLeft(1, lambda: now)
    left.saw(0, "train", 900, 1000)
    now = 10.0
    left.saw(0, "train", 950, 1000)
    assert left.seconds() == pytest.approx(10 + 30, rel=0.01)


def test_who_has_ended_is_not_brought_back_and_the_last_is_not_shared_out() -> None:
    left = two_half_trained(2)
    left.ended(0)
    assert left.seconds() == pytest.approx(50 + 15, rel=0.01)  # one alone, whatever ran beside it
    left.saw(0, "train", 600, 1000)
    assert left.seconds() == pytest.approx(50 + 15, rel=0.01)
    left.ended(1)
    left.saw(1, "search", 1, 2)
    assert left.seconds() == 0
