"""Fixtures that every part shares, and the table of measured errors against the reference arrays."""

import multiprocessing
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from shared_ray import own_ray, pytest_collection_modifyitems, shared_ray, sharing
from ten_scans import COUNTS

__all__ = ["own_ray", "pytest_collection_modifyitems", "shared_ray", "sharing"]

from cddpm import tracking

tracking.apply_settings()  # these processes are ours
os.environ.pop("COLUMNS", None)  # pytest-xdist sets it, and lines of what is no terminal are not broken without it
os.unsetenv("COLUMNS")  # readline, which pytest imports, sets it where Python does not see it
multiprocessing.set_forkserver_preload(["cddpm.training.stages"])  # imported once for all that are forked

VARIABLE = "CDDPM_REFERENCE"
BESIDE = Path(__file__).resolve().parents[2] / "shared" / "reference"
PUBLISHED = Path(os.environ.get(VARIABLE) or BESIDE)


@pytest.fixture(scope="session")
def published_reference() -> Path:
    """Folder with arrays that the published code made: ``CDDPM_REFERENCE`` or ``../shared/reference``; else a skip."""
    if not PUBLISHED.is_dir() and os.environ.get(VARIABLE):
        raise FileNotFoundError(f"{VARIABLE}={PUBLISHED}: no such folder; leave it empty for {BESIDE}")
    if not PUBLISHED.is_dir():
        pytest.skip(
            f"the published code's arrays are not here: {PUBLISHED} is missing ({VARIABLE} names another folder)"
        )
    return PUBLISHED


@pytest.fixture(scope="session")
def own_reference_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with arrays of our own making, laid out anew with the frozen results."""
    from own_reference.folder import FROZEN_RESULTS, load_results, write
    from own_reference.sizes import FROZEN

    return write(FROZEN, tmp_path_factory.mktemp("own_arrays"), load_results(FROZEN_RESULTS))


FOLDERS = {"published": "published_reference", "own_arrays": "own_reference_dir"}
THERE = [name for name in FOLDERS if name != "published" or PUBLISHED.is_dir() or os.environ.get(VARIABLE)]
"""Absent arrays make one test say so (tests/parity/test_own_reference.py), not every one of them a skip."""


@pytest.fixture(scope="session", params=THERE)
def reference_dir(request: pytest.FixtureRequest) -> Path:
    """Each folder of reference arrays in turn: those of the published code where they are, and our own always."""
    return Path(request.getfixturevalue(FOLDERS[request.param]))


@pytest.fixture(scope="session")
def ten_scans(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The DATA_DIR that small sweeps and benchmarks would make, each for itself."""
    from cddpm.config import PhantomConfig
    from cddpm.data.phantom.folder import make_phantom

    return make_phantom(tmp_path_factory.mktemp("ten_scans") / "data", PhantomConfig(**COUNTS), ("t2",))


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
