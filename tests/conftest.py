"""Fixtures that every part shares, and the table of measured errors against the reference arrays."""

import multiprocessing
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from shared_ray import own_ray, pytest_collection_modifyitems, shared_ray, sharing

__all__ = ["own_ray", "pytest_collection_modifyitems", "shared_ray", "sharing"]

from cddpm.tracking import mlflow_settings

mlflow_settings.apply()  # these processes are ours
os.environ.pop("COLUMNS", None)  # pytest-xdist sets it, and lines of what is no terminal are not broken without it
multiprocessing.set_forkserver_preload(["cddpm.training.stages"])  # imported once for all that are forked

REFERENCE = Path(__file__).resolve().parents[2] / "shared" / "reference"


@pytest.fixture(scope="session")
def reference_dir() -> Path:
    """Folder with arrays made by running the published code; tests that need it are skipped where it is absent."""
    if not REFERENCE.is_dir():
        pytest.skip(f"reference arrays are not here: {REFERENCE} is missing")
    return REFERENCE


@pytest.fixture(scope="session")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty lab book to copy: making one takes MLflow seconds."""
    from cddpm.tracking import connection

    folder = tmp_path_factory.mktemp("database")
    connection.connect(connection.default_uri(folder))
    return folder / "mlflow.db"


@pytest.fixture
def near(record_property: Callable[[str, Any], None]) -> Callable[..., None]:
    """``near(name, found, expected, limit=1e-4, floor=0)``: the largest difference is at most ``limit`` of the largest value.

    The measured error is printed and comes into the table at the end of the run. ``floor`` (in the arrays' unit) is what
    counts as the largest value where that is smaller: for numbers that are 0 but for rounding.
    """

    def compare(name: str, found: Any, expected: Any, limit: float = 1e-4, floor: float = 0.0) -> None:
        ours = np.asarray(found.detach() if hasattr(found, "detach") else found, np.float64)
        theirs = np.asarray(expected, np.float64)
        assert ours.shape == theirs.shape, f"{name}: shape {ours.shape}, expected is {theirs.shape}"
        size = max(float(np.abs(theirs).max(initial=0.0)), floor)
        difference = float(np.abs(ours - theirs).max(initial=0.0))
        error = difference / size if difference else 0.0
        print(f"{name}: relative error {error:.1e}, allowed {limit:.0e}")
        record_property("parity", (name, error, limit))
        assert error <= limit, f"{name}: relative error {error:.2e}, allowed {limit:.0e}; largest value {size:.3g}"

    return compare


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """One line per compared quantity: the largest of its errors, and how often it was compared."""
    measured: dict[str, list[tuple[float, float]]] = {}
    for report in [r for key in ("passed", "failed") for r in terminalreporter.stats.get(key, [])]:
        for key, value in getattr(report, "user_properties", []) if getattr(report, "when", "") == "call" else []:
            if key == "parity":
                measured.setdefault(value[0], []).append((value[1], value[2]))
    if not measured:
        return
    if "A" not in terminalreporter.config.getoption("reportchars"):
        total = sum(len(errors) for errors in measured.values())
        terminalreporter.write_line(f"{total} comparisons with given numbers held; -m parity -rA tells each error")
        return
    terminalreporter.section("measured relative errors", sep="-")
    width = max(len(name) for name in measured)
    for name, errors in sorted(measured.items()):
        error, limit = max(errors)
        terminalreporter.write_line(f"{name:<{width}}  {error:8.1e}  allowed {limit:.0e}  ({len(errors)} comparisons)")
