"""Fixtures that every part shares."""

from pathlib import Path

import pytest

REFERENCE = Path(__file__).resolve().parents[2] / "shared" / "reference"


@pytest.fixture(scope="session")
def reference_dir() -> Path:
    """Folder with arrays made by running the published code; tests that need it are skipped where it is absent."""
    if not REFERENCE.is_dir():
        pytest.skip(f"reference arrays are not here: {REFERENCE} is missing")
    return REFERENCE
