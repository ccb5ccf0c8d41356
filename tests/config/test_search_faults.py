"""What a sweep cannot search: conditions, samplers and objectives that make no sense are told before anything starts."""

from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError
from test_config import faults, nested

from cddpm.config import Space, Test, active, ordered, parse, to_dict
from cddpm.errors import ConfigError

DROPOUT = {"diffusion.condition_dropout": {"float": [0, 0.3]}}
LEVELS = "search.training.space"
POINTS = "search.scoring.space"


def one(path: str, parameter: dict[str, Any], condition: Any, **more: Any) -> dict[str, Any]:
    """A training space of one conditional parameter, and ``more``."""
    return {LEVELS: {path: {**parameter, "if": condition}, **more}}


RATE = ("training.weight_decay", {"float": [0, 0.1]})
WHERE = f"{LEVELS}.training.weight_decay.if"

ONE_FAULT = [
    (one(*RATE, {"training.learning_rat": 1}), f"{WHERE}: 'training.learning_rat' is no setting; did you mean"),
    (one(*RATE, {"diffusion.loss": "l3"}), f"{WHERE}: Input should be 'l1', 'l2' or 'ssim-l1' (found 'l3')"),
    (one(*RATE, {"diffusion.loss": {"not": "l3"}}), f"{WHERE}: Input should be 'l1', 'l2' or 'ssim-l1' (found 'l3')"),
    (
        one(*RATE, {"diffusion.loss": {"above": 1}}),
        f"{WHERE}: 'diffusion.loss' is 'l1', which is neither above nor below",
    ),
    (one(*RATE, {"model.conditioned": {"above": 0}}), f"{WHERE}: 'model.conditioned' is True, which is neither"),
    (one(*RATE, {"diffusion.loss": "l2"}), f"{WHERE}: holds in no trial; the setting would never be searched"),
    (one(*RATE, {"diffusion.condition_dropout": {"above": 0.3}}, **DROPOUT), f"{WHERE}: holds in no trial"),
    (
        one(*RATE, {"diffusion.loss": {}}),
        f"{LEVELS}.training.weight_decay.float.if.0.diffusion.loss.test: says nothing",
    ),
    (
        {
            **one(*RATE, {"scoring.residual": "l1"}),
            POINTS: {"scoring.residual": {"choice": ["l1", "l2"]}},
        },
        f"{WHERE}: 'scoring.residual' is chosen later, by search.scoring.space",
    ),
    (
        one(
            *RATE,
            {"diffusion.loss": "l1"},
            **{"diffusion.loss": {"choice": ["l1", "l2"], "if": {"training.weight_decay": {"above": 0}}}},
        ),
        f"{LEVELS}: conditions ask for each other in a circle: diffusion.loss, training.weight_decay",
    ),
    (one(*RATE, {"training.weight_decay": 0}), f"{LEVELS}: conditions ask for each other in a circle"),
    (
        {
            LEVELS: {
                "diffusion.noise.kind": {"choice": ["simplex", "gaussian"]},
                "diffusion.noise.octaves": {"int": [2, 8], "if": {"diffusion.noise.kind": "simplex"}},
            },
            "search.training.start": [{"diffusion.noise.kind": "gaussian", "diffusion.noise.octaves": 4}],
        },
        "search.training.start: 'diffusion.noise.octaves' would be ignored: its condition does not hold at this point",
    ),
    # samplers
    (
        {LEVELS: DROPOUT, "search.training.sampler": "cma-es"},
        "search.training.sampler: 'cma-es' needs at least 2 ranges of numbers; search.training.space has 1",
    ),
    (
        {LEVELS: DROPOUT, "search.training.sampler": "grid"},
        "search.training.sampler: 'grid' needs a finite space, but diffusion.condition_dropout is a float range",
    ),
    (
        {
            LEVELS: {"diffusion.loss": {"choice": ["l1", "l2"]}},
            "search.training.sampler": "grid",
            "search.training.trials": 3,
        },
        "search.training.trials: 3, but the grid has 2 points",
    ),
    (
        {
            POINTS: {
                "scoring.minimum_component_voxels": {"int": [0, 999]},
                "scoring.erosion_divisor": {"int": [1, 1000]},
            },
            "search.scoring.sampler": "grid",
        },
        "search.scoring.sampler: 'grid' of 1000000 points; allowed are up to 100000",
    ),
    (
        {"search.training.sampler": "tpf"},
        "search.training.sampler: Input should be 'tpe', 'cma-es', 'random', 'grid' or",
    ),
    (
        {"search.scheduler": "pbt"},
        "search.scheduler: Input should be 'asha', 'hyperband', 'median' or 'none' (found 'pbt')",
    ),
    ({"search.asha.enabled": False}, "search.asha.enabled: unknown setting"),
    ({"search.warm_start": ["one"]}, "search.warm_start: 'one' is this sweep's own name"),
    ({"search.warm_start": ["two", "two"]}, "search.warm_start: 'two' is named twice"),
    (
        {"search.warm_start": ["two"], LEVELS: DROPOUT, "search.training.sampler": "random"},
        "search.warm_start: search.training.sampler 'random' does not learn from earlier trials; allowed is tpe",
    ),
    # objectives
    (
        {"search.objectives": [{"metric": "dice", "goal": "minimize"}]},
        "search.objectives.0.goal: 'minimize' dice; allowed is maximize",
    ),
    (
        {"search.objectives": [{"metric": "seconds_per_volume", "goal": "minimize"}]},
        "search.objectives: the first is what trials are compared by: dice or auprc; found 'seconds_per_volume'",
    ),
    (
        {"search.objective": "auprc", "search.objectives": [{"metric": "dice", "goal": "maximize"}]},
        "search.objective: 'auprc', but objectives begin with 'dice'; set only one of them",
    ),
    (
        {"search.objectives": [{"metric": "dice", "goal": "maximize"}] * 2},
        "search.objectives: 'dice' is named twice",
    ),
    (
        {
            "search.objectives": [
                {"metric": "dice", "goal": "maximize"},
                {"metric": "healthy_false_positive_ml", "goal": "minimize"},
            ],
            POINTS: {
                "scoring.minimum_component_voxels": {"int": [0, 80]},
                "scoring.erosion_divisor": {"int": [10, 50]},
            },
            "search.scoring.sampler": "cma-es",
        },
        "search.scoring.sampler: 'cma-es' has one objective, search.objectives names 2",
    ),
]


@pytest.mark.parametrize(("values", "expected"), ONE_FAULT, ids=[expected[:60] for _, expected in ONE_FAULT])
def test_a_fault_is_one_line(values: dict[str, Any], expected: str) -> None:
    lines = faults(values)
    assert len(lines) == 1, lines
    assert lines[0].startswith(f"my.yaml: {expected}")


def test_a_setting_that_the_first_trial_does_not_search_may_lie_outside_of_its_range() -> None:
    values = one("diffusion.patch.size", {"int": [16, 32]}, {"diffusion.patch.enabled": True})
    switch = {"diffusion.patch.enabled": {"choice": [False, True]}}
    parse(nested({LEVELS: {**values[LEVELS], **switch}}), "my.yaml")  # size 48, patches off
    (line,) = faults({LEVELS: {**values[LEVELS], **switch}, "diffusion.patch.enabled": True})
    assert "diffusion.patch.size: 48, the setting itself, is not in it" in line


def test_a_scoring_condition_may_ask_for_a_training_setting() -> None:
    guided = {"scoring.guidance_scale": {"float": [0, 2], "if": {"diffusion.condition_dropout": {"above": 0}}}}
    config = parse(nested({LEVELS: DROPOUT, POINTS: guided, "search.training.trials": 2}), "my.yaml")
    assert list(active(config.search.scoring.space, lambda path: 0.0, {})) == []
    assert list(active(config.search.scoring.space, lambda path: 0.1, {})) == ["scoring.guidance_scale"]


@pytest.mark.parametrize(
    ("condition", "holds", "fails"),
    [
        ({"above": 0}, [0.1, 3], [0, -1, None, "x", True]),
        ({"above": 0, "below": 2}, [1], [0, 2, 3]),
        ({"in": ["l1", None, [1, 2]]}, ["l1", None, (1, 2)], ["l2", [1], 0]),
        ({"not": None}, [0, "x", False], [None]),
        ({"not": ["a", 0]}, ["b", False], ["a", 0, 0.0]),
        ({"in": [1]}, [1, 1.0], [True, 2]),
    ],
)
def test_what_a_test_asks(condition: dict[str, Any], holds: list[Any], fails: list[Any]) -> None:
    test = Test.model_validate(condition)
    assert all(test.holds(value) for value in holds)
    assert not any(test.holds(value) for value in fails)


@pytest.mark.parametrize("condition", [{"above": None}, {"in": []}, {"in": None}, {}, {"abov": 1}, {"above": True}])
def test_a_condition_that_asks_nothing_is_refused(condition: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Test.model_validate(condition)


def test_alternatives_and_what_must_hold_together() -> None:
    either = [{"a": {"above": 0}, "b": "x"}, {"c": True}]
    space = TypeAdapter(Space).validate_python({"p": {"choice": [1, 2], "if": either}})
    for own, expected in (
        ({"a": 1, "b": "x", "c": False}, ["p"]),
        ({"a": 1, "b": "y", "c": False}, []),
        ({"a": 0, "b": "y", "c": True}, ["p"]),
    ):
        assert list(active(space, own.__getitem__, {})) == expected


def test_nested_conditions_ask_for_what_the_trial_runs_with() -> None:
    space = TypeAdapter(Space).validate_python(
        {
            "a.size": {"int": [2, 9], "if": {"b.enabled": True}},
            "b.enabled": {"choice": [True, False]},
            "a.overlap": {"int": [0, 1], "if": {"a.size": {"above": 4}}},
        }
    )
    own = {"a.size": 3, "b.enabled": False, "a.overlap": 0}.__getitem__
    assert ordered(space) == ["b.enabled", "a.size", "a.overlap"]
    assert list(active(space, own, {"b.enabled": True, "a.size": 5})) == ["b.enabled", "a.size", "a.overlap"]
    assert list(active(space, own, {"b.enabled": True, "a.size": 4})) == ["b.enabled", "a.size"]
    assert list(active(space, own, {"b.enabled": False, "a.size": 5})) == ["b.enabled"]  # its own 3 is what counts


def test_conditions_and_objectives_survive_writing_and_reading() -> None:
    values = {
        **one(*RATE, [{"diffusion.loss": {"not": ["l2"]}}, {"diffusion.noise.kind": "simplex"}]),
        "search.objectives": [{"metric": "auprc", "goal": "maximize"}, {"metric": "auroc", "goal": "maximize"}],
    }
    config = parse(nested(values), "my.yaml")
    assert config.search.objective == "auprc"
    again = parse(to_dict(config), "again")
    assert again == config
    assert to_dict(again) == to_dict(config)


def test_one_objective_is_the_only_aim() -> None:
    config = parse(nested({"search.objective": "auprc"}), "my.yaml")
    assert [(aim.metric, aim.goal) for aim in config.search.aims] == [("auprc", "maximize")]
    with pytest.raises(ConfigError, match="set only one of them"):
        parse(
            {
                **to_dict(config),
                "search": {**to_dict(config)["search"], "objectives": [{"metric": "dice", "goal": "maximize"}]},
            },
            "x",
        )
