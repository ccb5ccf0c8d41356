"""Budgets: spent over all starts of a sweep, by a clock of its own, and never lost."""

import json
import time
from pathlib import Path

import pytest

from cddpm.config import SearchConfig
from cddpm.errors import SearchError, StorageError
from cddpm.search import budget
from cddpm.search.budget import Meter, Spent
from cddpm.training.worker import stop_asked


class Clock:
    """Seconds that a test sets."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


def spend(folder: Path, held: dict[int, tuple[float, float]], end: float) -> Spent:
    """One start of a sweep: trials by (start, end) second."""
    clock = Clock()
    meter = Meter(folder, {"CPU": 4.0, "GPU": 2.0}, clock)
    events = sorted((time, number, kind) for number, times in held.items() for kind, time in enumerate(times))
    with meter.running(every_seconds=1000):
        for time, number, kind in events:
            clock.now = 1000.0 + time
            (meter.release if kind else meter.hold)(number)
        clock.now = 1000.0 + end
    return budget.read(folder)


def test_hours_are_what_trials_hold(tmp_path: Path) -> None:
    spent = spend(tmp_path, {0: (0, 3600), 1: (1800, 7200)}, 7200)
    assert spent.seconds == pytest.approx(7200)
    assert spent.cpu_hours == pytest.approx(4 * (1 + 1.5))
    assert spent.gpu_hours == pytest.approx(2 * (1 + 1.5))


def test_a_second_start_goes_on_counting(tmp_path: Path) -> None:
    first = spend(tmp_path, {0: (0, 100)}, 200)
    second = spend(tmp_path, {1: (0, 50)}, 60)
    assert second.seconds == pytest.approx(first.seconds + 60)
    assert second.gpu_hours == pytest.approx(2 * 150 / 3600)


def test_what_was_counted_is_kept_while_it_runs(tmp_path: Path) -> None:
    """A driver that is killed leaves no last word."""
    clock = Clock()
    meter = Meter(tmp_path, {"CPU": 1.0}, clock)
    with meter.running(every_seconds=0.01):
        meter.hold(0)
        clock.now += 360
        end = time.monotonic() + 60
        while budget.read(tmp_path).seconds < 360 and time.monotonic() < end:
            time.sleep(0.01)
    assert budget.read(tmp_path).cpu_hours == pytest.approx(0.1)


def test_a_clock_that_goes_back_takes_nothing_away(tmp_path: Path) -> None:
    clock = Clock()
    meter = Meter(tmp_path, {"CPU": 1.0}, clock)
    with meter.running(every_seconds=1000):
        clock.now += 100
        meter.tick()
        clock.now -= 1_000_000
        meter.tick()
        clock.now += 10
    assert budget.read(tmp_path).seconds == pytest.approx(110)


def test_a_spent_budget_asks_running_trials_to_end_and_a_higher_one_lets_them_go_on(tmp_path: Path) -> None:
    def asked(seconds: float, limit: float | None) -> bool:
        clock = Clock()
        meter = Meter(tmp_path, {"CPU": 1.0}, clock, SearchConfig(maximum_seconds=limit))
        with meter.running(every_seconds=1000):
            assert not stop_asked(tmp_path / "stop")
            clock.now += seconds
            meter.tick()
            return stop_asked(tmp_path / "stop")

    assert not asked(50, 60)
    assert asked(10, 60)
    assert asked(0, 60)  # at once
    assert not asked(10, 100)
    assert not asked(1000, None)


def test_the_clock_is_one_that_nobody_sets(tmp_path: Path) -> None:
    assert Meter(tmp_path, {}).clock is time.monotonic


@pytest.mark.parametrize(
    ("limits", "words"),
    [
        ({}, None),
        ({"maximum_seconds": 100.1}, None),
        ({"maximum_seconds": 100}, "search.maximum_seconds: 100 of 100 are spent"),
        ({"maximum_gpu_hours": 2.5}, "search.maximum_gpu_hours: 3 of 2.5 are spent"),
        ({"maximum_cpu_hours": 5, "maximum_seconds": 1000}, "search.maximum_cpu_hours: 6 of 5 are spent"),
    ],
)
def test_limits(limits: dict[str, float], words: str | None) -> None:
    assert Spent(100, 6, 3).exceeded(SearchConfig(**limits)) == words


def test_nothing_is_spent_before_the_start(tmp_path: Path) -> None:
    assert budget.read(tmp_path) == Spent()


@pytest.mark.parametrize("text", ["", "[]", "3", '{"seconds": "many"}', '{"minutes": 3}'])
def test_a_damaged_record_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / budget.FILE).write_text(text)
    with pytest.raises(SearchError, match=r"budget\.json: not a record"):
        budget.read(tmp_path)


def test_a_full_disk_does_not_end_the_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    clock = Clock()
    meter = Meter(tmp_path, {"CPU": 1.0}, clock)
    with meter.running(every_seconds=1000):
        with monkeypatch.context() as patch:

            def full(path: Path, value: object) -> None:
                raise StorageError(f"{path}: no space left")

            patch.setattr(budget.artifact, "write_json", full)
            clock.now += 50
            meter.tick()
        clock.now += 50
    assert "no space left" in caplog.text
    assert json.loads((tmp_path / budget.FILE).read_text())["seconds"] == pytest.approx(100)
