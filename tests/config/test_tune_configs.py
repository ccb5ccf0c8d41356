"""Every file of ``tune_configs/`` is what it says: it loads, and all that it searches is there to be searched."""

import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from cddpm.config import Choice, ExperimentConfig, Float, active, load, parse, to_dict, value_at, with_values

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted(p for p in (ROOT / "tune_configs").glob("*.yaml") if not p.name.startswith("benchmark"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_every_file_loads_and_bears_its_own_name(path: Path) -> None:
    assert load(path).name == path.stem


def corners(config: ExperimentConfig) -> Iterator[dict[str, Any]]:
    """Points of the sweep's space that hold the first, or the last, value of every parameter."""
    space = {**config.search.training.space, **config.search.scoring.space}
    for end in (0, -1):
        point = {
            path: (p.choice if isinstance(p, Choice) else p.float if isinstance(p, Float) else p.int)[end]
            for path, p in space.items()
        }
        yield {path: point[path] for path in active(space, functools.partial(value_at, config), point)}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_every_parameter_of_every_sweep_sets_a_real_field(path: Path) -> None:
    config = load(path)
    for point in corners(config):
        reached = to_dict(with_values(config, point))
        for name, value in point.items():
            target = reached
            for part in name.split("."):
                target = target[part]
            assert target == (list(value) if isinstance(value, tuple) else value), name


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_writing_and_reading_back_changes_nothing(path: Path) -> None:
    config = load(path)
    assert parse(to_dict(config), "again") == config
    assert parse(yaml.safe_load(yaml.safe_dump(to_dict(config))), "again") == config
