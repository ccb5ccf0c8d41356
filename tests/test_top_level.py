"""The top level is fixed: what a newcomer sees first stays small and named as agreed."""

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ALLOWED = {
    "cddpm",
    "tune_configs",
    "launch",
    "tests",
    "ray_cluster.yaml",
    "pyproject.toml",
    "README.md",
    "CHANGELOG.md",
    "LICENSE",
    "requirements.lock",
}
LOCKED = re.compile(r"^[A-Za-z0-9._-]+==[0-9][A-Za-z0-9.]*$")


@pytest.fixture(scope="module")
def tracked() -> list[str]:
    listing = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listing.returncode:
        pytest.skip(f"not a git checkout: {listing.stderr.strip()}")
    return [name for name in listing.stdout.split("\0") if name]


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def locked() -> dict[str, str]:
    lines = (ROOT / "requirements.lock").read_text().splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    wrong = [line for line in pins if not LOCKED.match(line)]
    assert not wrong, "a lock line is name==version, without hashes, addresses, options or a local version"
    return {normal(line.split("==")[0]): line.split("==")[1] for line in pins}


def test_exactly_the_agreed_entries_are_tracked(tracked: list[str]) -> None:
    entries = {name.split("/")[0] for name in tracked}
    assert {entry for entry in entries if not entry.startswith(".")} == ALLOWED


def test_no_made_thing_is_tracked(tracked: list[str]) -> None:
    made = ("__pycache__", ".pyc", ".egg-info", "mlruns", "mlflow.db", ".safetensors", ".nii.gz", ".arrow")
    assert not [name for name in tracked if any(part in name for part in made)]


def test_tracked_files_are_small(tracked: list[str]) -> None:
    big = [name for name in tracked if (ROOT / name).is_file() and (ROOT / name).stat().st_size > 1_000_000]
    assert not big


def test_no_file_is_longer_than_it_may_be(tracked: list[str]) -> None:
    """About 400 lines."""
    lengths = {
        n: len((ROOT / n).read_text().splitlines()) for n in tracked if n.endswith(".py") and (ROOT / n).is_file()
    }
    assert not {name: lines for name, lines in lengths.items() if lines > 430}


def test_the_licence_is_there_in_full() -> None:
    text = (ROOT / "LICENSE").read_text()
    assert "Apache License" in text
    assert "END OF TERMS AND CONDITIONS" in text


def test_the_lock_holds_all_that_the_project_asks_for() -> None:
    assert asked("dev") <= set(locked())


def test_the_lock_leaves_a_gpus_packages_to_torch() -> None:
    assert not [name for name in locked() if name.startswith(("nvidia", "cuda", "triton")) and name != "nvidia-ml-py"]


def asked(*extras: str) -> set[str]:
    """Packages that pyproject.toml names, with those of ``extras``."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    requirements = [*project["dependencies"], *(r for extra in extras for r in project["optional-dependencies"][extra])]
    return {normal(re.split(r"[^A-Za-z0-9._-]", requirement)[0]) for requirement in requirements}


def imported(*folders: str) -> set[str]:
    """Packages of others that the files in ``folders`` import."""
    named = {"yaml": "pyyaml", "pydantic_core": "pydantic", "sklearn": "scikit-learn", "psycopg2": "psycopg2-binary"}
    named |= {"grpc": "grpcio", "PIL": "pillow"}
    files = [file for folder in folders for file in (ROOT / folder).rglob("*.py")]
    nodes = [node for file in files for node in ast.walk(ast.parse(file.read_text()))]
    names = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    names += [str(node.module) for node in nodes if isinstance(node, ast.ImportFrom)]
    packages = {file.parent.name for file in (ROOT / "tests").rglob("__init__.py")}
    own = {"cddpm", "launch", "speed", *packages, *(file.stem for file in (ROOT / "tests").rglob("*.py"))}
    foreign = (
        {name.split(".")[0] for name in names} - sys.stdlib_module_names - own - {"triton"}
    )  # torch for GPUs brings it
    return {normal(named.get(name, name)) for name in foreign}


@pytest.mark.slow
def test_the_project_asks_for_what_it_imports() -> None:
    """A package that only another package brings along may vanish with that one's next version."""
    assert imported("cddpm", "launch") <= asked()
    assert imported("tests") <= asked("dev")
