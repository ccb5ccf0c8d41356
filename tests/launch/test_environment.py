"""Set-up of .venv, with a stand-in for Python that notes what is asked of it instead of installing."""

import os
import shutil
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

LAUNCH = Path(__file__).resolve().parents[2] / "launch"
STAND_IN = """#!/bin/bash
case "$1 $2" in
    "-m venv") echo venv >>"$CALLS"; mkdir -p "$3/bin"; cp "$0" "$3/bin/python" ;;
    "-m pip") echo pip >>"$CALLS"; sleep "${PIP_SECONDS:-0}"; exit "${PIP_CODE:-0}" ;;
    *) exec REAL "$@" ;;
esac
"""
WHOLE = ["venv", "pip", "pip"]


class Project:
    """A folder with the set-up script, a lock and nothing else."""

    def __init__(self, root: Path) -> None:
        self.root, self.calls_file, self.stand_in = root, root / "calls", root / "stand-in"
        (root / "launch").mkdir(parents=True)
        shutil.copy(LAUNCH / "environment.sh", root / "launch")
        (root / "requirements.lock").write_text("a==1\n")
        (root / "pyproject.toml").write_text("")
        (root / "launch" / "job.sh").write_text('source "$(dirname "$0")/environment.sh"\necho "ready $python"\n')
        self.stand_in.write_text(STAND_IN.replace("REAL", sys.executable))
        self.stand_in.chmod(self.stand_in.stat().st_mode | stat.S_IXUSR)

    def start(self, **environment: str) -> subprocess.Popen[str]:
        names = {"CALLS": str(self.calls_file), "PYTHON": str(self.stand_in), **environment}
        return subprocess.Popen(
            ["/bin/bash", str(self.root / "launch" / "job.sh")],
            env={**os.environ, **names},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def run(self, **environment: str) -> tuple[int, str, str]:
        process = self.start(**environment)
        out, err = process.communicate(timeout=60)
        return process.returncode, out, err

    def calls(self) -> list[str]:
        """What was asked since the last look."""
        found = self.calls_file.read_text().split() if self.calls_file.exists() else []
        self.calls_file.unlink(missing_ok=True)
        return found


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path / "a project")


def test_the_second_run_installs_nothing(project: Project) -> None:
    code, out, _ = project.run()
    assert (code, project.calls()) == (0, WHOLE)
    assert out == f"ready {project.root}/.venv/bin/python\n"
    assert project.run()[0] == 0
    assert project.calls() == []


@pytest.mark.slow
def test_a_changed_lock_is_installed_into_the_same_environment(project: Project) -> None:
    project.run()
    project.calls()
    (project.root / "requirements.lock").write_text("a==2\n")
    assert project.run()[0] == 0
    assert project.calls() == ["pip", "pip"]
    project.run()
    assert project.calls() == []


@pytest.mark.slow
def test_a_moved_project_is_installed_again(project: Project) -> None:
    project.run()
    project.calls()
    project.root.rename(project.root.with_name("elsewhere"))
    moved = Project.__new__(Project)
    moved.root = project.root.with_name("elsewhere")
    moved.calls_file, moved.stand_in = moved.root / "calls", moved.root / "stand-in"
    assert moved.run()[0] == 0
    assert moved.calls() == ["pip", "pip"]


@pytest.mark.slow
def test_a_failed_set_up_says_so_and_starts_over(project: Project) -> None:
    code, out, err = project.run(PIP_CODE="3")
    assert (code, out) == (1, "")
    assert "could not be installed" in err
    assert project.calls() == ["venv", "pip"]
    assert project.run()[0] == 0
    assert project.calls() == WHOLE


@pytest.mark.slow
def test_a_killed_set_up_is_made_again_from_nothing(project: Project) -> None:
    process = project.start(PIP_SECONDS="60")
    deadline = time.monotonic() + 30
    while "pip" not in (project.calls_file.read_text() if project.calls_file.exists() else ""):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.killpg(process.pid, 9)
    process.wait(10)
    project.calls()
    assert project.run()[0] == 0
    assert project.calls() == WHOLE


@pytest.mark.slow
def test_of_two_at_once_one_installs_and_the_other_waits(project: Project) -> None:
    both = [project.start(PIP_SECONDS="0.3") for _ in range(2)]
    errors = [process.communicate(timeout=60)[1] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert project.calls() == WHOLE
    assert sum("waiting for it" in error for error in errors) == 1


def test_without_a_suitable_python_the_message_says_what_to_do(project: Project, tmp_path: Path) -> None:
    old = tmp_path / "bin"
    old.mkdir()
    for name in ("bash", "cat", "cmp", "dirname"):
        (old / name).symlink_to(shutil.which(name) or "")
    (old / "python3").write_text('#!/bin/bash\n[ "$1" = --version ] && echo "Python 3.9.18" && exit\nexit 1\n')
    (old / "python3").chmod(0o755)
    code, out, err = project.run(PATH=str(old), PYTHON="")
    assert (code, out) == (1, "")
    assert "3.11" in err
    assert "Python 3.9.18" in err
    assert "PYTHON=" in err


@pytest.mark.parametrize("script", ["environment.sh", "quickstart.sh", "test.sh", "../.ci/run"])
def test_the_scripts_are_valid_shell(script: str) -> None:
    done = subprocess.run(["bash", "-n", LAUNCH / script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_an_unknown_scope_is_refused() -> None:
    done = subprocess.run(
        ["bash", LAUNCH / "test.sh", "quick"], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 2
    assert "'quick': allowed is fast, default or nightly" in done.stderr
