"""Memory as the kernel tells it, of this process and of a scoring worker."""

import mmap
from pathlib import Path

import numpy as np
import pytest
from speed import memory
from speed.cohort import Cohort

from cddpm.errors import CddpmError

MB = 2**20


def test_what_is_allocated_and_touched_is_seen() -> None:
    before = memory.of_this_process()
    held = mmap.mmap(-1, 64 * MB, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)  # no allocator has it already
    held.write(b"1" * (64 * MB))
    after = memory.of_this_process()
    assert 60 * MB < after.own - before.own < 80 * MB
    held.close()
    assert after.resident >= after.own


def test_mapped_pages_are_resident_but_not_own(tmp_path: Path) -> None:
    np.ones(32 * MB, np.uint8).tofile(tmp_path / "file")
    before = memory.of_this_process()
    mapped = np.memmap(tmp_path / "file", np.uint8, "r")
    assert int(mapped[:: 2**12].sum()) == 32 * MB // 2**12
    after = memory.of_this_process()
    assert after.resident - before.resident > 28 * MB
    assert after.own - before.own < 8 * MB


@pytest.mark.slow
def test_trials_leave_memory_as_it_was(cohort: Cohort) -> None:
    memory.score_many(cohort, 2, 10)
    early, late = memory.score_many(cohort, 2, 60)
    assert late.own - early.own < 16 * MB


def test_without_the_kernels_word_nothing_is_measured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(memory, "_ROLLUP", tmp_path / "none")
    with pytest.raises(CddpmError, match="Linux only"):
        memory.of_this_process()


@pytest.mark.slow
def test_a_worker_is_a_process_of_its_own(cohort: Cohort, tmp_path: Path) -> None:
    early, late = memory.of_scoring_worker(cohort, 2, 6)
    assert 50 * MB < early.own < 600 * MB
    assert early.own <= late.own + 8 * MB
    with pytest.raises(CddpmError, match="scoring worker that was to be measured failed"):
        memory.of_scoring_worker(Cohort(tmp_path, 3), 1, 2)
