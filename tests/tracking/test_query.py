"""Which versions are meant: references, conditions (what can be written, what a wrong one is told), and orders."""

import sqlite3
from pathlib import Path

import pytest

from cddpm.errors import ConfigError, TrackingError
from cddpm.tracking.address import file_uri
from cddpm.tracking.catalogue import Version
from cddpm.tracking.query import (
    Comparison,
    find,
    in_order,
    is_about_test,
    metric_key,
    param_key,
    parse,
    settings_of,
    texts,
)
from cddpm.tracking.registry import Registry


@pytest.fixture
def registry(three_versions: Path) -> Registry:
    return Registry.open(file_uri(three_versions))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("metrics.dice > 0.4", [Comparison("metrics", "dice", ">", 0.4)]),
        ("metrics.dice>=1e-3", [Comparison("metrics", "dice", ">=", 0.001)]),
        ("tags.cddpm.sweep == 'a and b'", [Comparison("tags", "cddpm.sweep", "=", "a and b")]),
        ("`tags.my tag` != 3", [Comparison("tags", "my tag", "!=", 3.0)]),
        ("params.loss = l1", [Comparison("params", "loss", "=", "l1")]),
        ("params.loss = '1'", [Comparison("params", "loss", "=", "1")]),
        (
            "params.guidance_scale > 1 AND metrics.val/Brats21/dice<.5",
            [Comparison("params", "guidance_scale", ">", 1.0), Comparison("metrics", "val/Brats21/dice", "<", 0.5)],
        ),
    ],
)
def test_what_can_be_written(text: str, expected: list[Comparison]) -> None:
    assert parse(text, "--where") == expected


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "'nothing' is no comparison"),
        ("metrics.dice", "'metrics.dice' is no comparison; write NAME OPERATOR VALUE"),
        ("metrics.dice > 0.4 and", "'nothing' is no comparison"),
        ("metrics.dice > 0.4 or metrics.dice < 1", "is no comparison"),
        ("metric.dice > 0.4", "'metric.dice': did you mean metrics.dice?"),
        ("dice > 0.4", "begin it with metrics., params., tags."),
        ("metrics.dice > high", "> needs a number behind it"),
        ("metrics.dice > '0.4'", "> needs a number behind it"),
        ("tags.a = 'open", "cannot read ''open'; quotes come in pairs"),
        ("metrics.dice => 3", "is no comparison"),
    ],
)
def test_what_cannot_is_told(text: str, told: str) -> None:
    with pytest.raises(ConfigError, match="--where") as caught:
        parse(text, "--where")
    assert told in str(caught.value)


def test_a_kind_may_be_given() -> None:
    assert parse("dice>=0.4 and Brats21/dice>0.2", "--require", "metrics") == [
        Comparison("metrics", "dice", ">=", 0.4),
        Comparison("metrics", "Brats21/dice", ">", 0.2),
    ]


@pytest.mark.parametrize(
    ("comparison", "found", "holds"),
    [
        (Comparison("params", "x", ">", 1.0), "1.5", True),
        (Comparison("params", "x", ">", 1.0), "1.0", False),
        (Comparison("params", "x", ">", 1.0), "text", False),
        (Comparison("params", "x", "!=", 1.0), "text", True),
        (Comparison("params", "x", "=", 1.0), "1", True),
        (Comparison("params", "x", "=", "1"), "1.0", False),
        (Comparison("params", "x", "!=", 1.0), None, False),
        (Comparison("metrics", "x", "<=", 0.5), 0.5, True),
    ],
)
def test_what_holds(comparison: Comparison, found: float | str | None, holds: bool) -> None:
    assert comparison.holds(found) is holds


def test_short_names() -> None:
    metrics = ["val/dice", "val/Brats21/dice", "test/dice", "objective"]
    assert metric_key("dice", metrics) == "val/dice"
    assert metric_key("Brats21/dice", metrics) == "val/Brats21/dice"
    assert metric_key("objective", metrics) == "objective"
    assert metric_key("MSLUB/dice", metrics) is None
    space = "search.scoring.space.scoring.guidance_scale"
    params = ["scoring.guidance_scale", space, "training.batch_size", "pretraining.batch_size"]
    assert param_key(space, params) == space
    assert param_key("guidance_scale", params) == "scoring.guidance_scale"
    assert param_key("scale", params) is None
    assert param_key("training.batch_size", params) == "training.batch_size"
    with pytest.raises(ConfigError, match=r"params.batch_size: may be pretraining.batch_size or training.batch_size"):
        param_key("batch_size", params)


def test_test_metrics_are_noticed() -> None:
    assert is_about_test(parse("metrics.test/dice > 0.3", "--where"))
    assert not is_about_test(parse("metrics.dice > 0.3 and tags.test/x = 1", "--where"))


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


@pytest.mark.parametrize(
    ("where", "told"),
    [
        ("params.guidance_scal > 1", r"no version has params.guidance_scal; there are .*guidance_scale"),
        ("metrics.val/dise > 0", r"no version has metrics.val/dise; there are val/dice"),
        ("tags.zzz = 1", r"no version has tags.zzz; there are cddpm\."),
    ],
)
def test_a_wrong_name_gets_the_nearest(registry: Registry, where: str, told: str) -> None:
    with pytest.raises(TrackingError, match=f"--where: {told}"):
        registry.select(parse(where, "--where"))


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


def test_the_trials_stand_over_the_sweeps_and_those_over_the_defaults(registry: Registry) -> None:
    settings = settings_of([registry.find("3")], registry._catalogue)[3]
    assert settings["scoring.guidance_scale"] == "1.5"  # the trial's
    assert settings["training.images"] == "500"  # the sweep's
    assert settings["scoring.residual"] == "l1"  # a default


def test_of_a_run_that_is_gone_nothing_is_known(registry: Registry, three_versions: Path) -> None:
    version = registry.find("3")
    with sqlite3.connect(three_versions) as connection:
        for table in ("tags", "params", "latest_metrics", "runs"):
            connection.execute(f"DELETE FROM {table} WHERE run_uuid = ?", (version.run_id,))
    assert settings_of([version], registry._catalogue) == {3: {}}


def test_flat() -> None:
    assert texts({"a": {"b": 1, "c": {"d": [1, 2]}}, "e": "text", "f": None, "g": {}}) == {
        "a.b": "1",
        "a.c.d": "[1, 2]",
        "e": "text",
        "f": "null",
        "g": "{}",
    }


RUN = "0123456789abcdef" * 2


def _version(number: int, aliases: tuple[str, ...] = (), sweep: str | None = "demo", run: str = RUN) -> Version:
    trial = None if sweep is None else number
    return Version(number, aliases, sweep, trial, run, "m-1", "f", "2026-01-01T00:00:00+00:00", {}, {})


VERSIONS = [_version(12, ("champion", "tried")), _version(3), _version(1, sweep=None, run="f" * 32)]


@pytest.mark.parametrize(
    ("ref", "number"),
    [("12", 12), ("champion", 12), ("tried", 12), ("demo/0003", 3), (RUN, 12), ("f" * 32, 1)],  # the newest of a run
)
def test_every_name_is_found(ref: str, number: int) -> None:
    assert find(ref, VERSIONS, "'cddpm'").number == number


@pytest.mark.parametrize(
    ("ref", "told"),
    [
        ("champoin", "did you mean champion?"),
        ("demo/003", "did you mean demo/0003"),
        ("zzz", "there are champion, tried, demo/0012, 12, demo/0003, 3, 1"),
        (RUN[:20], f"did you mean {RUN}"),
    ],
)
def test_a_wrong_one_gets_the_nearest(ref: str, told: str) -> None:
    with pytest.raises(TrackingError, match=f"'{ref}' is no version of 'cddpm'; ") as caught:
        find(ref, VERSIONS, "'cddpm'")
    assert told in str(caught.value)
    assert "(allowed: a version number, an alias, a run id or <sweep>/<trial>)" in str(caught.value)


def test_nothing_there() -> None:
    with pytest.raises(TrackingError, match="there are none yet"):
        find("1", [], "'cddpm'")
