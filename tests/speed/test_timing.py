"""Ratios are taken measurement by measurement, so that a slow moment hits both sides."""

import pytest
from speed import timing


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_the_first_time_does_not_count_and_one_slow_moment_changes_no_ratio(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, order = Clock(), []
    monkeypatch.setattr(timing.time, "perf_counter", clock)
    ours = iter([100.0, 1.0, 1.0, 50.0])  # compilation, two quiet moments, a busy one
    theirs = iter([7.0, 4.0, 6.0, 250.0])

    def work(name: str, times: object) -> None:
        order.append(name)
        clock.now += next(times)

    pair = timing.compare(lambda: work("ours", ours), lambda: work("theirs", theirs), 3)
    assert order == ["ours", "theirs"] * 4
    assert (pair.ours_seconds, pair.theirs_seconds, pair.ratio) == (1.0, 6.0, 5.0)


def test_the_spread_is_half_of_the_range_over_the_median() -> None:
    assert timing.spread_of([2.0, 1.0, 4.0]) == (2.0, 0.75)
    assert timing.spread_of([3.0]) == (3.0, 0.0)
