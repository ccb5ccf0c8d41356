"""A named piece of work: held by one process, never mixed with another configuration, stopped in order."""

import json
import multiprocessing
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from cddpm import events
from cddpm.campaign import FINISHED, Campaign, is_running
from cddpm.errors import SearchError, StoppedError

PROCESSES = multiprocessing.get_context("forkserver")


def campaign(folder: Path, **identity: object) -> Campaign:
    return Campaign("sweep", "one", folder / "one", identity or {"seed": 0})


def nothing() -> None:
    """No one needs to know."""


def test_a_second_process_is_told_who_holds_it(tmp_path: Path) -> None:
    with (
        campaign(tmp_path).held(False, nothing),
        pytest.raises(SearchError, match=f"running already \\(process {os.getpid()} on"),
        campaign(tmp_path).held(True, nothing),
    ):
        pass


def test_damaged_files_are_told_and_do_not_hide_that_it_runs(tmp_path: Path) -> None:
    with campaign(tmp_path).held(False, nothing):
        campaign(tmp_path).begin()
        (tmp_path / "one" / "holder.json").write_text("{")
        with (
            pytest.raises(SearchError, match=r"running already \(process unknown on unknown\)"),
            campaign(tmp_path).held(True, nothing),
        ):
            pass
    (tmp_path / "one" / "identity.json").write_text("[]")
    with (
        pytest.raises(SearchError, match=r"identity\.json: not what this program writes .* another name \(--name\)"),
        campaign(tmp_path).held(True, nothing),
    ):
        pass


def test_what_has_begun_goes_on_only_when_asked_and_only_as_it_was(tmp_path: Path) -> None:
    with campaign(tmp_path).held(False, nothing):
        campaign(tmp_path).begin()
    with pytest.raises(SearchError, match="exists; continue it with --resume"), campaign(tmp_path).held(False, nothing):
        pass
    with campaign(tmp_path).held(True, nothing):
        pass
    with (
        pytest.raises(SearchError, match="seed: was 0, is 1"),
        campaign(tmp_path, seed=1).held(True, nothing),
    ):
        pass


def test_another_identity_can_be_forced_and_is_told(tmp_path: Path) -> None:
    def changed(work: Campaign, force: bool = False) -> list[str]:
        with work.held(True, nothing, force) as found:
            work.begin()
            return list(found)

    one, other = (
        Campaign("sweep", "one", tmp_path, {"seed": seed, "version": "1.0"}, forceable=True) for seed in (0, 1)
    )
    with one.held(False, nothing) as found:
        assert found == []
        one.begin()
    assert changed(one, force=True) == []
    with pytest.raises(SearchError, match=r"or go on in spite of it with --force:\nseed: was 0, is 1$"):
        changed(other)
    assert changed(other, force=True) == ["seed: was 0, is 1"]
    assert changed(other) == []
    with pytest.raises(SearchError, match="another configuration"):
        changed(one)


def test_nothing_to_resume_is_an_error_unless_it_was_started_once(tmp_path: Path) -> None:
    with pytest.raises(SearchError, match="there is no sweep 'one' to resume"), campaign(tmp_path).held(True, nothing):
        pass
    with campaign(tmp_path, seed=3).held(True, nothing):  # started, but nothing was begun: any configuration may go on
        pass


def begin_and_fail(work: Campaign) -> None:
    work.begin()
    raise SearchError("went wrong")


def test_it_is_finished_when_it_ended_in_order_and_not_while_it_goes_on(tmp_path: Path) -> None:
    mark = tmp_path / "one" / FINISHED
    with pytest.raises(SearchError, match="went wrong"), campaign(tmp_path).held(False, nothing):
        begin_and_fail(campaign(tmp_path))
    assert not mark.exists()
    with campaign(tmp_path).held(True, nothing):
        assert not mark.exists()
    assert mark.exists()
    with pytest.raises(SearchError, match="exists; continue it"), campaign(tmp_path).held(False, nothing):
        pass
    assert mark.exists()
    with campaign(tmp_path).held(True, nothing):
        assert not mark.exists()


def terminate_myself() -> None:
    os.kill(os.getpid(), signal.SIGTERM)
    signal.pause()


def test_a_request_to_stop_before_ray_ends_at_once_and_is_told(tmp_path: Path) -> None:
    told: list[bool] = []
    before = signal.getsignal(signal.SIGTERM)
    try:
        with (
            pytest.raises(StoppedError, match="--resume continues it"),
            campaign(tmp_path).held(False, lambda: told.append(True)),
        ):
            terminate_myself()
    finally:
        signal.signal(signal.SIGTERM, before)
        signal.signal(signal.SIGINT, signal.default_int_handler)
    assert told == [True]
    assert campaign(tmp_path).stopped


def look(folder: Path, ready: Any, stop: Any) -> None:
    """What ``cddpm cache`` and a report ask, over and over."""
    ready.set()
    while not stop.is_set():
        is_running(folder)


@pytest.mark.slow
def test_looks_keep_no_campaign_from_starting(tmp_path: Path) -> None:
    stop, gates = PROCESSES.Event(), [PROCESSES.Event() for _ in range(2)]
    lookers = [PROCESSES.Process(target=look, args=(tmp_path / "one", gate, stop)) for gate in gates]
    for looker in lookers:
        looker.start()
    try:
        assert all(gate.wait(90) for gate in gates)
        for resume in (False, *(True,) * 49):
            with campaign(tmp_path).held(resume, nothing):  # raises "is running already" for any lock
                assert is_running(tmp_path / "one")
            assert not is_running(tmp_path / "one")
    finally:
        stop.set()
        for looker in lookers:
            looker.join(60)
    assert [looker.exitcode for looker in lookers] == [0, 0]


def hold(folder: Path, ready: Any) -> None:
    with campaign(folder).held(False, nothing):
        ready.set()
        time.sleep(60)


@pytest.mark.slow
def test_a_killed_campaign_runs_no_more(tmp_path: Path) -> None:
    assert not is_running(tmp_path / "one")
    ready = PROCESSES.Event()
    holder = PROCESSES.Process(target=hold, args=(tmp_path, ready))
    holder.start()
    assert ready.wait(90)
    assert is_running(tmp_path / "one")
    holder.kill()
    holder.join(60)
    assert not is_running(tmp_path / "one")
    with campaign(tmp_path).held(True, nothing):
        assert is_running(tmp_path / "one")


def test_the_holder_is_written_for_others_to_read(tmp_path: Path) -> None:
    with campaign(tmp_path).held(False, nothing):
        holder = json.loads((tmp_path / "one" / "holder.json").read_text())
    assert holder["pid"] == os.getpid()


def test_one_that_an_earlier_version_began_is_refused_with_a_way_on(tmp_path: Path) -> None:
    with campaign(tmp_path).held(False, nothing):
        campaign(tmp_path).begin()
    (tmp_path / "one" / events.FILE).unlink()
    with (
        pytest.raises(SearchError, match=r"begun by an earlier version .*another name"),
        campaign(tmp_path).held(True, nothing),
    ):
        pass
