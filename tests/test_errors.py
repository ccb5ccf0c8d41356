"""The error tree: exit codes that shells may rely on, and errors that cross process borders whole."""

import inspect
import multiprocessing
import pickle
import re
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor

import pytest

from cddpm import errors

EXIT_CODES = {
    "CddpmError": 1,
    "ConfigError": 2,
    "DataError": 3,
    "VolumeError": 3,
    "ArtifactError": 4,
    "TrackingError": 5,
    "AwayError": 5,
    "RefusedError": 8,
    "UndeliveredError": 9,
    "SearchError": 6,
    "StorageError": 7,
    "StoppedError": 130,
}
TREE = {name: member for name, member in vars(errors).items() if inspect.isclass(member)}
MESSAGE = "scan [1].nii: größe 0; allowed is > 0\nsecond fault"


def test_the_public_names_and_exit_codes_are_pinned() -> None:
    assert {name: error.exit_code for name, error in TREE.items()} == EXIT_CODES


def test_the_tree_is_one() -> None:
    assert all(issubclass(error, errors.CddpmError) for error in TREE.values())
    assert issubclass(errors.VolumeError, errors.DataError)
    assert not issubclass(errors.ConfigError, ValueError), "pydantic would swallow it inside a validator"


def test_the_docstring_draws_the_whole_tree() -> None:
    drawn = re.findall(r"(\w+Error) +(\d+)(?:\s|$)", errors.__doc__ or "")
    assert {name: int(code) for name, code in drawn} == EXIT_CODES


@pytest.mark.parametrize("name", sorted(EXIT_CODES))
def test_pickling_changes_nothing(name: str) -> None:
    original = TREE[name](MESSAGE)
    copy = pickle.loads(pickle.dumps(original))
    assert type(copy) is TREE[name]
    assert (str(copy), copy.args) == (MESSAGE, (MESSAGE,))


def _fail(name: str) -> None:
    raise TREE[name](MESSAGE)


@pytest.mark.slow
def test_a_workers_error_reaches_its_driver_whole() -> None:
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("forkserver")) as pool:
        error = pool.submit(_fail, "VolumeError").exception(timeout=60)
    assert isinstance(error, errors.VolumeError)
    assert str(error) == MESSAGE


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ConfigError", "StorageError"])
def test_a_command_shows_one_message_and_leaves_with_the_code(name: str) -> None:
    program = (
        "from cddpm import errors\nfrom cddpm.cli import shell\n"
        f"def main() -> None:\n    raise errors.{name}('DIR[x]: {'long ' * 40}end')\n"
        "shell.guarded(main)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == EXIT_CODES[name]
    assert done.stderr == f"error DIR[x]: {'long ' * 40}end\n"
    assert done.stdout == ""


@pytest.mark.slow
def test_an_interrupted_command_leaves_with_130() -> None:
    program = "from cddpm.cli import shell\ndef main() -> None:\n    raise KeyboardInterrupt\nshell.guarded(main)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 130
    assert "Traceback" not in done.stderr
