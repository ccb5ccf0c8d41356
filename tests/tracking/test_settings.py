"""With which settings a version was made."""

import sqlite3
from pathlib import Path

from cddpm.tracking.address import file_uri
from cddpm.tracking.registry import Registry
from cddpm.tracking.settings import texts


def test_the_trials_stand_over_the_sweeps_and_those_over_the_defaults(three_versions: Path) -> None:
    registry = Registry.open(file_uri(three_versions))
    settings = registry.settings(registry.find("3"))
    assert settings["scoring.guidance_scale"] == "1.5"  # the trial's
    assert settings["training.images"] == "500"  # the sweep's
    assert settings["scoring.residual"] == "l1"  # a default


def test_of_a_run_that_is_gone_nothing_is_known(three_versions: Path) -> None:
    registry = Registry.open(file_uri(three_versions))
    version = registry.find("3")
    with sqlite3.connect(three_versions) as connection:
        for table in ("tags", "params", "latest_metrics", "runs"):
            connection.execute(f"DELETE FROM {table} WHERE run_uuid = ?", (version.run_id,))
    assert registry.settings(version) == {}


def test_flat() -> None:
    assert texts({"a": {"b": 1, "c": {"d": [1, 2]}}, "e": "text", "f": None, "g": {}}) == {
        "a.b": "1",
        "a.c.d": "[1, 2]",
        "e": "text",
        "f": "null",
        "g": "{}",
    }
