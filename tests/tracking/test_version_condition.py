"""Conditions: what can be written, what it means, and what a wrong one is told."""

import pytest

from cddpm.errors import ConfigError, TrackingError
from cddpm.tracking.version_condition import (
    Comparison,
    fulfilled,
    full_name,
    is_about_test,
    metric_key,
    param_key,
    parse,
)


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


def test_unknown_names_get_the_nearest() -> None:
    (comparison,) = parse("metrics.val/dise > 0", "--where")
    with pytest.raises(TrackingError, match=r"--where: no version has metrics.val/dise; there are val/dice"):
        full_name(comparison, ["val/dice", "objective"], "--where")
    (comparison,) = parse("tags.zzz = 1", "--where")
    with pytest.raises(TrackingError, match="there are none at all"):
        full_name(comparison, [], "--where")


def test_all_must_hold() -> None:
    two = [(Comparison("metrics", "dice", ">", 0.1), "val/dice"), (Comparison("tags", "a", "=", "x"), "a")]
    assert fulfilled(two, {"metrics": {"val/dice": 0.2}, "tags": {"a": "x"}})
    assert not fulfilled(two, {"metrics": {"val/dice": 0.2}, "tags": {}})
    assert fulfilled([], {})


def test_test_metrics_are_noticed() -> None:
    assert is_about_test(parse("metrics.test/dice > 0.3", "--where"))
    assert not is_about_test(parse("metrics.dice > 0.3 and tags.test/x = 1", "--where"))
