"""Rows of raw scans: bars are of all steps of a volume together, and memory is that of one step alone."""

import numpy as np
from speed import raw
from speed.raw import Taken, told

MB = 1e-3


def test_seconds_add_up_and_memory_is_the_greatest() -> None:
    taken = [Taken("extract", 40.0, 20.0, 1.5), Taken("bias", 15.0, 14.0, 2.5), Taken("crop", 4.0, 1.0, 0.5)]
    *steps, seconds, memory = told("head", taken)
    assert [(row.measured, row.held) for row in steps] == [(40.0, None), (15.0, None), (4.0, None)]
    assert steps[1].detail == "14.0 s of its core, 2.50 GB at most"
    assert (seconds.measured, seconds.held) == (59.0, True)
    assert "35.0 s" in seconds.detail
    assert (memory.measured, memory.held, memory.detail) == (2.5, False, "in bias")
    *_, late, _ = told("head", [*taken, Taken("strip", 2.0, 2.0, 0.1)])
    assert late.held is False


def test_memory_of_an_earlier_step_is_forgotten() -> None:
    raw._forget_peak()
    before = raw._peak_gigabytes()
    held = np.ones(50_000_000, np.float64)  # 400 MB
    assert raw._peak_gigabytes() - before > 300 * MB
    del held
    assert raw._peak_gigabytes() - before > 300 * MB
    raw._forget_peak()
    assert raw._peak_gigabytes() - before < 200 * MB
