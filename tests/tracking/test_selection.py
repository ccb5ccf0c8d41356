"""Which versions, and in which order."""

from pathlib import Path

import pytest

from cddpm.errors import ConfigError, TrackingError
from cddpm.tracking.address import file_uri
from cddpm.tracking.registry import Registry
from cddpm.tracking.selection import in_order
from cddpm.tracking.version_condition import parse


@pytest.fixture
def registry(three_versions: Path) -> Registry:
    return Registry.open(file_uri(three_versions))


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        ("params.guidance_scale > 0.5", [3, 2]),
        ("params.scoring.guidance_scale = 1", [2]),
        ("params.training.images = 500", [3, 2, 1]),  # of the sweep
        ("params.scoring.residual = l1", [3, 2, 1]),  # a default, which no run repeats
        ("metrics.dice >= 0.4 and metrics.Brats21/dice < 0.5", [2]),
        ("metrics.test/dice > 0.5", [1]),
        ("tags.cddpm.trial != 0", [3, 2]),
        ("tags.cddpm.sweep = 'demo' and params.guidance_scale < 1", [1]),
        ("metrics.dice > 1", []),
    ],
)
def test_filters(registry: Registry, where: str, expected: list[int]) -> None:
    assert [version.number for version in registry.select(parse(where, "--where"))] == expected


def test_the_best_of_those_that_fit(registry: Registry) -> None:
    fitting = parse("params.guidance_scale != 1", "--where")
    assert [version.number for version in registry.best(top=9, comparisons=fitting)] == [3, 1]


def test_sweeps_and_archived_ones(registry: Registry) -> None:
    assert [version.number for version in registry.select(sweep="demo")] == [3, 2, 1]
    assert registry.select(sweep="other") == []
    registry.archive("2", "superseded", who="anna")
    assert [version.number for version in registry.select()] == [3, 1]
    assert [version.number for version in registry.select(archived=True)] == [3, 2, 1]
    assert registry.best()[0].number == 3
    assert registry.best(archived=True)[0].number == 2
    assert registry.find("2").archived


def test_a_wrong_name_gets_the_nearest(registry: Registry) -> None:
    with pytest.raises(TrackingError, match=r"no version has params.guidance_scal; there are .*guidance_scale"):
        registry.select(parse("params.guidance_scal > 1", "--where"))


@pytest.mark.parametrize(
    ("order", "expected"),
    [
        ("version", [3, 2, 1]),
        ("created", [1, 2, 3]),
        ("trial", [1, 2, 3]),
        ("dice", [2, 3, 1]),
        ("val/loss", [3, 1, 2]),
        ("objective", [1, 3, 2]),  # only 1 has it
    ],
)
def test_orders(registry: Registry, order: str, expected: list[int]) -> None:
    assert [version.number for version in in_order(registry.versions(), order, "cddpm")] == expected


def test_an_unknown_order_is_told(registry: Registry) -> None:
    with pytest.raises(
        ConfigError, match="--sort craeted: allowed are version, created, trial or a metric; did you mean created"
    ):
        in_order(registry.versions(), "craeted", "cddpm")
    assert in_order([], "dice", "cddpm") == []
