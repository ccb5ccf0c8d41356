"""The command as a whole: what it offers, how fast it answers, and how it leaves."""

import resource
import subprocess
import sys
from importlib.metadata import version

import pytest
from typer.testing import CliRunner

from cddpm.cli import app

HEAVY = ("torch", "mlflow", "ray", "numpy", "pydantic", "nibabel", "matplotlib", "scipy")


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["data"],
        ["registry"],
        ["registry", "calibrate"],
        ["predict"],
        ["report"],
        ["import"],
        ["cache"],
        ["data", "check"],
        ["data", "build"],
        ["cache", "prune"],
    ],
)
def test_help_of_every_command(arguments: list[str]) -> None:
    done = CliRunner().invoke(app, [*arguments, "--help"], catch_exceptions=False)
    assert done.exit_code == 0
    assert "Usage: " in done.stdout


def test_version() -> None:
    assert CliRunner().invoke(app, ["--version"]).stdout.strip() == version("cddpm")


def test_unknown_commands_are_refused() -> None:
    assert CliRunner().invoke(app, ["dat"]).exit_code == 2


def test_help_imports_nothing_heavy() -> None:
    code = f"import sys, cddpm.cli; print([m for m in {HEAVY} if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


@pytest.mark.slow
def test_help_is_quick() -> None:
    """At most three times what its libraries take to be imported, on a computer of any speed.

    Seconds of computing, not of the clock: other work on this machine is not its fault.
    """
    libraries = min(_seconds("-c", "import typer.rich_utils") for _ in range(3))
    assert min(_seconds("-m", "cddpm", "--help") for _ in range(3)) < 3 * libraries


def _seconds(*arguments: str) -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, *arguments], capture_output=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


@pytest.mark.slow
def test_a_users_fault_is_one_message_and_an_exit_code() -> None:
    command = [sys.executable, "-m", "cddpm", "data", "check", "/no/such/folder"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 3
    assert done.stderr.startswith("error /no/such/folder: no such folder")
    assert "Traceback" not in done.stderr
