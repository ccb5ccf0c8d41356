"""What happened, in order: nothing is lost by a kill, and what nobody ended has an end that stays."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cddpm import events
from cddpm.errors import SearchError


def at(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    monkeypatch.setattr(events.time, "time", lambda: seconds)


def test_a_trial_that_a_killed_driver_left_ended_with_that_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    at(monkeypatch, 1.0)
    events.start(tmp_path)
    at(monkeypatch, 2.0)
    events.append(tmp_path, "trial started", number=0, params={"a": 1})
    at(monkeypatch, 3.0)
    events.append(tmp_path, "trial started", number=1)
    alive, dead = events.life(tmp_path, running=True), events.life(tmp_path, running=False)
    assert alive is not None
    assert dead is not None
    assert (alive.status, alive.trials[0].ended, alive.whole.ended) == ("RUNNING", None, None)
    assert (dead.status, dead.trials[0].ended, dead.whole.ended) == ("KILLED", 3.0, 3.0)
    for later in (100.0, 200.0):  # the next start, and whatever follows in it, changes nothing of the trial that waits
        at(monkeypatch, later)
        events.start(tmp_path)
        events.append(tmp_path, "trial started", number=1)
        found = events.life(tmp_path, running=True)
        assert found is not None
        assert (found.trials[0].began, found.trials[0].ended) == (2.0, 3.0)
        assert found.trials[1].ended is None
        assert found.identity == alive.identity


def test_a_trial_that_is_tried_again_has_no_error_any_more(tmp_path: Path) -> None:
    events.start(tmp_path)
    events.append(tmp_path, "trial started", number=0)
    events.append(tmp_path, "trial ended", number=0, how="failed", error="no")
    events.append(tmp_path, "trial started", number=0)
    found = events.life(tmp_path, running=True)
    assert found is not None
    assert "error" not in found.trials[0].what


@given(st.integers(0, 400))
def test_a_line_that_a_crash_cut_never_happened(tmp_path_factory: pytest.TempPathFactory, cut: int) -> None:
    folder = tmp_path_factory.mktemp("cut")
    events.start(folder)
    for number in range(3):
        events.append(folder, "trial started", number=number, params={"x": "y" * 20})
    path = folder / events.FILE
    whole = path.read_bytes()
    path.write_bytes(whole[: min(cut, len(whole))])
    before = events.read(folder)
    assert len(before) == path.read_bytes().count(b"\n")
    events.append(folder, "end", status="FINISHED")
    assert [event.kind for event in events.read(folder)] == [*(event.kind for event in before), "end"]


def test_a_damaged_line_is_named(tmp_path: Path) -> None:
    events.start(tmp_path)
    path = tmp_path / events.FILE
    path.write_text(path.read_text() + "rubbish\n")
    with pytest.raises(SearchError, match=r"events\.jsonl: line 2 is damaged; remove that line"):
        events.read(tmp_path)


def test_there_is_no_life_without_a_start(tmp_path: Path) -> None:
    assert events.life(tmp_path, running=False) is None
