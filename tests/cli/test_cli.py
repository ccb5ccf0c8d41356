"""The command as a whole: what it offers, how fast it answers, and how it leaves."""

import json
import resource
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from cddpm.cli import app

ROOT = Path(__file__).resolve().parents[2]
HEAVY = ("torch", "mlflow", "ray", "numpy", "pandas", "nibabel", "matplotlib", "scipy", "optuna", "pyarrow")
"""What takes seconds to import, and pydantic, which typer itself imports where it is installed."""
LAUNCHED = ("sweep", "evaluate", "benchmark", "bench")
PROBE = """
import json, os, runpy, sys
import typer
from typer.testing import CliRunner

heavy, calls = json.loads(sys.argv[1])
found = []
for program, arguments in calls:
    if program == "cddpm":
        from cddpm.cli import app
    else:
        names = runpy.run_path(program, run_name="probe")
        app = names.get("app") or typer.Typer()
        if "app" not in names:
            app.command()(names["main"])
    done = CliRunner().invoke(app, arguments)
    found.append([done.exit_code, type(done.exception).__name__, [name for name in heavy if name in sys.modules]])
print(json.dumps(found))
"""


def probed(*calls: tuple[str, list[str]]) -> list[tuple[int, str, list[str]]]:
    """Of each call, one after the other in one new process: exit code, what was raised, which of HEAVY are imported then."""
    command = [sys.executable, "-c", PROBE, json.dumps([HEAVY, calls])]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    return [(code, raised, heavy) for code, raised, heavy in json.loads(done.stdout)]


def commands(command: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The command itself and every command below it."""
    yield path
    for name, below in getattr(command, "commands", {}).items():
        yield from commands(below, (*path, name))


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


@pytest.mark.slow
def test_no_help_imports_anything_heavy() -> None:
    """Of any command, and of any program of launch/."""
    every = [("cddpm", [*path, "--help"]) for path in commands(typer.main.get_command(app))]
    every += [(f"launch/{name}.py", ["--help"]) for name in LAUNCHED]
    assert len(every) > 25
    found = dict(zip([str(call) for call in every], probed(*every), strict=True))
    assert {call: said for call, said in found.items() if said[0] != 0 or said[2]} == {}


WRONG = [
    ["--set", "training.image=5"],
    ["--set", "training.images=-5"],
    ["--set", "diffusion.condition_dropout=0.1", "--set", "model.conditioned=false"],
    ["--set", "training.images"],
]


@pytest.mark.slow
def test_no_configuration_error_imports_anything_heavy(tmp_path: Path) -> None:
    """An unknown setting, a wrong value, two that do not go together, a text without a value; in a file, and no file."""
    wrong, absent, weights = tmp_path / "wrong.yaml", str(tmp_path / "absent.yaml"), str(tmp_path / "a.ckpt")
    wrong.write_text("name: wrong\ntraining: {image: 5}\n")
    sweep, benchmark = "tune_configs/joint.yaml", "tune_configs/benchmark.yaml"
    every: list[tuple[str, list[str]]] = []
    for name, file in (("sweep", sweep), ("evaluate", sweep), ("benchmark", benchmark)):
        every += [(f"launch/{name}.py", ["--config", file, *options]) for options in WRONG]
        every += [(f"launch/{name}.py", ["--config", place]) for place in (str(wrong), absent)]
    every += [("cddpm", ["import", weights, *options]) for options in WRONG]
    every += [("cddpm", ["import", weights, "--config", place]) for place in (str(wrong), absent)]
    every += [
        ("cddpm", ["data", word, "--config", place]) for word in ("check", "build") for place in (str(wrong), absent)
    ]
    found = dict(zip([str(call) for call in every], probed(*every), strict=True))
    assert {call: said for call, said in found.items() if said != (1, "ConfigError", [])} == {}


@pytest.mark.slow
def test_the_probe_sees_what_is_heavy() -> None:
    ((_, raised, heavy),) = probed(("cddpm", ["data", "check", "/no/such/folder"]))
    assert (raised, "nibabel" in heavy) == ("DataError", True)


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
