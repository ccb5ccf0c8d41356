"""The step of a job: who waits for whom and how long, a request to stop passed on once, and the end of what was started alone."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from cddpm import artifact
from cddpm.cluster import step
from cddpm.errors import SearchError


def terms(folder: Path, join: float = 30, save: float = 300) -> step.Terms:
    return step.Terms(folder, join, save)


NOBODY = step.Request(Path("/dev/null/nobody asks"))
FILE = 0
"""Of those who ask a step to stop: the job's script, by a file; others by a signal."""


@pytest.fixture(autouse=True)
def in_a_job(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step, "POLL_SECONDS", 0.05)
    for name, value in (("SLURM_JOB_ID", "12"), ("SLURMD_NODENAME", "n2"), (step.NODES, "n1 n2 ")):
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("SLURM_RESTART_COUNT", raising=False)


def test_outside_of_a_job_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SLURM_JOB_ID")
    with pytest.raises(SearchError, match="not within a SLURM job"):
        step.run(["true"], terms(tmp_path), print)


def test_a_worker_waits_for_a_head_that_is_late_and_for_none_of_a_run_before(tmp_path: Path) -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        artifact.write_json(tmp_path / ".head-12-7.json", {"address": "127.0.0.1:1"})
        (tmp_path / ".head-12-0.json").write_text("{")  # as a shared folder may show it for a moment
        late = threading.Timer(0.3, artifact.write_json, [tmp_path / ".head-12-0.json", {"address": address}])
        late.start()
        assert step._await_head(terms(tmp_path), NOBODY) == address
        late.join()


def test_a_head_that_never_comes_is_named_after_the_stated_time(tmp_path: Path) -> None:
    begin = time.monotonic()
    with pytest.raises(SearchError) as caught:
        step._await_head(terms(tmp_path, join=0.3), NOBODY)
    assert 0.3 <= time.monotonic() - begin < 5
    text = str(caught.value)
    assert text.startswith("node n2: the head (n1) did not answer within 0.3 s")
    assert "slurm.join_seconds" in text


def test_a_worker_of_a_step_that_ends_waits_for_nobody(tmp_path: Path) -> None:
    request = step.Request(tmp_path / "stop")
    with request.heard():
        os.kill(os.getpid(), signal.SIGTERM)
        assert step._await_head(terms(tmp_path), request) is None


def test_nobody_waits_for_a_head_that_has_ended(tmp_path: Path) -> None:
    artifact.write_json(tmp_path / ".head-12-0.json", {"address": ""})
    assert step._await_head(terms(tmp_path), NOBODY) is None


COMMAND = """
import os, signal, sys, time
asked = []
signal.signal(signal.SIGTERM, lambda *_: asked.append(1))
print(os.environ["RAY_ADDRESS"], flush=True)
open(sys.argv[1], "w").close()
while not asked:
    time.sleep(0.05)
time.sleep(float(sys.argv[2]))
sys.exit(130 + len(asked) - 1)
"""


def stopped(tmp_path: Path, lasts: float, save: float, signals: list[int]) -> tuple[int, list[str]]:
    """Exit code of a command that is asked to stop by the script's file or by SLURM's ``signals``, and what the step says."""
    stop, here, said = tmp_path / "stop", tmp_path / "here", list[str]()
    request = step.Request(stop)

    def ask() -> None:
        while not here.exists():
            time.sleep(0.05)
        for one in signals:
            if one == FILE:
                stop.touch()
            else:
                for process in (psutil.Process(), *psutil.Process().children()):
                    process.send_signal(one)  # as SLURM does: to all of the step
            time.sleep(0.3)

    thread = threading.Thread(target=ask)
    thread.start()
    with request.heard():
        code = step._command(
            [sys.executable, "-c", COMMAND, str(here), str(lasts)],
            "h:1",
            terms(tmp_path, save=save),
            request,
            said.append,
        )
        thread.join()
    return code, said


@pytest.mark.slow
@pytest.mark.parametrize("signals", [[FILE], [signal.SIGTERM], [signal.SIGTERM, FILE]])
def test_however_often_it_is_asked_the_command_is_asked_once(tmp_path: Path, signals: list[int]) -> None:
    assert stopped(tmp_path, 0.5, 300, signals) == (130, [])


@pytest.mark.slow
def test_what_has_not_saved_a_minute_before_the_limit_is_ended(tmp_path: Path) -> None:
    begin = time.monotonic()
    code, said = stopped(tmp_path, 60, 2, [FILE])  # at least half of the time is left
    assert code == 130
    assert ["the time limit is near" in line for line in said] == [True]
    assert time.monotonic() - begin < 40


def test_the_time_to_save_ends_a_minute_before_the_limit_or_at_half(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for save, late in ((600.0, 540.0), (120.0, 60.0), (60.0, 30.0)):
        now = 1000.0
        monkeypatch.setattr(step.time, "monotonic", lambda: now)  # noqa: B023
        request = step.Request(tmp_path)
        assert not request.overdue(save)
        assert request.asked
        now += late
        assert not request.overdue(save)
        now += 0.1
        assert request.overdue(save)


@pytest.mark.slow
def test_a_cancelled_command_has_the_time_that_slurm_gives_it(tmp_path: Path) -> None:
    assert stopped(tmp_path, 2, 2, [signal.SIGTERM]) == (130, [])


@pytest.mark.parametrize(("code", "expected"), [("sys.exit(6)", 6), ("os.kill(os.getpid(), 9)", 137)])
def test_the_code_of_a_command_is_that_of_a_shell(tmp_path: Path, code: str, expected: int) -> None:
    command = [sys.executable, "-c", f"import os, sys; {code}"]
    assert step._command(command, "h:1", terms(tmp_path), NOBODY, print) == expected


FAMILY = "import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)']); {then}"


@pytest.mark.slow
@pytest.mark.parametrize(
    "then", ["time.sleep(60)", "import signal; signal.signal(15, signal.SIG_IGN); time.sleep(60)", ""]
)
def test_all_that_was_started_ends_and_the_neighbour_lives(then: str) -> None:
    """Also what is left of a group whose first process has gone."""
    neighbour, mine = (
        subprocess.Popen([sys.executable, "-c", FAMILY.format(then=text)], start_new_session=True)
        for text in ("time.sleep(60)", then)
    )
    try:
        end = time.monotonic() + 20
        while (
            len(group(mine.pid)) < (2 if then else 1)
            or len(group(neighbour.pid)) < 2
            or (not then and mine.poll() is None)
        ):
            assert time.monotonic() < end
            time.sleep(0.05)
        step._end(mine)
        end = time.monotonic() + 10
        while group(mine.pid):  # who was killed is gone once init has noticed
            assert time.monotonic() < end
            time.sleep(0.05)
        assert len(group(neighbour.pid)) == 2
    finally:
        step._end(neighbour)


def group(leader: int) -> list[int]:
    """Living processes of a process group."""
    found = []
    for process in psutil.process_iter(["pid", "status"]):
        try:
            if os.getpgid(process.pid) == leader and process.info["status"] != psutil.STATUS_ZOMBIE:
                found.append(process.pid)
        except ProcessLookupError:
            continue
    return found


def test_what_a_profile_set_for_the_whole_job_does_not_reach_ray(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = dict(os.environ)
    monkeypatch.setenv("OMP_NUM_THREADS", "128")
    monkeypatch.setattr(step.node, "folder", lambda: tmp_path / "ray")
    for name in ("SLURM_TMPDIR", "TMPDIR", step.CACHE):
        monkeypatch.delenv(name, raising=False)
    try:
        with step._surroundings() as folder:
            assert os.environ["OMP_NUM_THREADS"] == "1"
            assert os.environ["RAY_AUTH_MODE"] == "token"
            assert os.environ[step.CACHE] == str(folder / "cache")
    finally:
        os.environ.clear()
        os.environ.update(before)


def test_options_of_ray_are_those_of_the_allocation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("SLURM_CPUS_PER_TASK", "1"), ("CUDA_VISIBLE_DEVICES", "2,3"), ("SLURM_MEM_PER_NODE", "2048")):
        monkeypatch.setenv(name, value)
    ports = step.node.Ports(12_000)
    booked, head = step._options(ports, tmp_path, "10.0.0.1", None)
    _, worker = step._options(ports, tmp_path, "10.0.0.2", "10.0.0.1:12001")
    assert booked == {"CPU": 1, "GPU": 2}
    for options in (head, worker):
        assert {"--num-cpus=1", "--num-gpus=2", f"--memory={(2048 - 200) * 2**20}", "--node-name=n2", "--block"} <= set(
            options
        )
    assert {"--head", "--dashboard-host=127.0.0.1", "--port=12001"} <= set(head)
    (resources,) = [option.partition("=")[2] for option in head if option.startswith("--resources=")]
    assert json.loads(resources) == {"head": 1000}
    assert "--address=10.0.0.1:12001" in worker
    assert not [
        option for option in worker if option.startswith(("--head", "--resources", "--port=", "--dashboard-host"))
    ]
