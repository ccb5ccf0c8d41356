"""Rungs and brackets by hand, and who is stopped at them."""

from pathlib import Path

import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_warm_start import config

from cddpm.config import AshaConfig, SearchConfig
from cddpm.search import study as pruners

GRACE = AshaConfig(grace_images=100, reduction_factor=3)
RULES = {"search__asha__grace_images": 100, "search__asha__reduction_factor": 3}


def search(pruner: str) -> SearchConfig:
    return SearchConfig(scheduler=pruner, asha=GRACE)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("pruner", "images", "expected"),
    [
        ("asha", 1000, [[100, 300, 900]]),
        ("asha", 900, [[100, 300]]),
        ("asha", 100, [[]]),
        ("hyperband", 1000, [[100, 300, 900], [300, 900], [900]]),
        ("hyperband", 900, [[100, 300], [300], []]),
        ("median", 1000, []),
        ("none", 1000, []),
    ],
)
def test_rungs_lie_inside_the_budget(pruner: str, images: int, expected: list[list[int]]) -> None:
    assert pruners.rungs(search(pruner), images) == expected


@given(st.integers(1, 10**6), st.integers(2, 5), st.integers(1, 10**7), st.integers(1, 10**7))
def test_validations_of_any_batch_size_are_compared_at_rungs(grace: int, factor: int, one: int, other: int) -> None:
    rules = AshaConfig(grace_images=grace, reduction_factor=factor)
    halving, median, none = (SearchConfig(scheduler=kind, asha=rules) for kind in ("asha", "median", "none"))
    first, second = (pruners.compared_at(halving, images) for images in sorted((one, other)))
    assert first <= second
    for images, at in ((min(one, other), first), (max(one, other), second)):
        if images < grace:
            assert at == images
        else:
            assert at <= images < factor * at
            assert at in pruners.rungs(halving, images + 1)[0]
            assert images - grace < pruners.compared_at(median, images) <= images
            assert pruners.compared_at(median, images) % grace == 0
        assert pruners.compared_at(none, images) == images


@pytest.mark.parametrize(("pruner", "images"), [("asha", 1000), ("hyperband", 1000), ("hyperband", 900)])
def test_rungs_are_those_of_optunas_pruner(tmp_path: Path, pruner: str, images: int) -> None:
    """A trial worse than all others is stopped at the first rung of its bracket, one image before it never."""
    wanted = config(tmp_path, search__scheduler=pruner, **RULES, training__images=images)
    firsts = {rungs[0] for rungs in pruners.rungs(wanted.search, images + 1)}
    found = set()
    for number in range(12):
        study = optuna.create_study(study_name="training", direction="maximize", pruner=pruners.pruner_of(wanted))
        for _ in range(number):
            study.ask()
        trial = study.ask()
        for rung in (100, 300, 900):  # others of any bracket that were better there
            for value in (1.0, 2.0, 3.0):
                for key in range(3):
                    attrs = {f"completed_rung_{key}": value}
                    study.add_trial(optuna.trial.create_trial(value=value, system_attrs=attrs))
            trial.report(0.0, rung - 1)
            if trial.should_prune():
                pytest.fail(f"stopped before a rung, at {rung - 1}")
            trial.report(0.0, rung)
            if trial.should_prune():
                found.add(rung)
                break
    assert found <= firsts
    assert min(found) == 100


def test_the_median_of_five_finished_trials_stops_the_worse_half(tmp_path: Path) -> None:
    wanted = config(tmp_path, search__scheduler="median", **RULES)
    study = optuna.create_study(direction="maximize", pruner=pruners.pruner_of(wanted))
    verdicts = []
    for value in (0.1, 0.2, 0.3, 0.4, 0.5, 0.29, 0.31):
        trial = study.ask()
        trial.report(value, pruners.compared_at(wanted.search, 130))
        verdicts.append(trial.should_prune())
        study.tell(trial, value)
    assert verdicts == [False] * 5 + [True, False]


def test_without_a_pruner_nothing_is_stopped(tmp_path: Path) -> None:
    study = optuna.create_study(
        direction="maximize", pruner=pruners.pruner_of(config(tmp_path, search__scheduler="none"))
    )
    for value in (1.0, 0.0):
        trial = study.ask()
        trial.report(value, 10**6)
        assert not trial.should_prune()
