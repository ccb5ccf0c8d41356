"""The window of a long search: what a sampler needs of a study is in it, whatever was tried."""

from typing import Any

import numpy as np
import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.distributions import FloatDistribution
from optuna.study import StudyDirection
from optuna.trial import TrialState

from cddpm.config import Float, LevelConfig
from cddpm.search.sampler import Sampler
from cddpm.search.window import BEST, LATEST, Window, memory_for

WHOLE = BEST + LATEST
MINIMIZE, MAXIMIZE = StudyDirection.MINIMIZE, StudyDirection.MAXIMIZE
ENDS = [TrialState.COMPLETE] * 8 + [TrialState.FAIL]


@st.composite
def courses(draw: st.DrawFn) -> tuple[list[str], list[list[float]], list[TrialState]]:
    """Goals, values and states of trials, equal values among them; some of the last ones are still being scored."""
    goals = draw(st.lists(st.sampled_from(["maximize", "minimize"]), min_size=1, max_size=2))
    length = draw(st.sampled_from([3, WHOLE - 1, WHOLE, WHOLE + 1, WHOLE + 70]))
    random = np.random.default_rng(draw(st.integers(0, 2**31)))
    values = random.integers(0, 60, (length, len(goals))) / 60
    if draw(st.booleans()):  # a long front, if the goals are equal
        values[:, -1] += 1 - values[:, 0]
    states = [ENDS[i] for i in random.integers(0, len(ENDS), length)]
    running = draw(st.integers(0, 3))
    return goals, values.tolist(), states[: length - running] + [TrialState.RUNNING] * running


def shown(goals: list[str], values: list[list[float]], states: list[TrialState]) -> tuple[Window, int]:
    """A window that was told of these trials, and its study."""
    window = Window(goals)
    study = window.create_new_study([{"minimize": MINIMIZE, "maximize": MAXIMIZE}[goal] for goal in goals])
    for one, state in zip(values, states, strict=True):
        trial = window.create_new_trial(study)
        if state.is_finished():
            window.set_trial_state_values(trial, state, one if state == TrialState.COMPLETE else None)
    return window, study


@settings(max_examples=15, deadline=None)
@given(courses())
def test_the_best_and_the_latest_are_in_it(course: tuple[list[str], list[list[float]], list[TrialState]]) -> None:
    goals, values, states = course
    window, study = shown(*course)
    numbers = [t.number for t in window.get_all_trials(study, deepcopy=False)]
    ended = [n for n, state in enumerate(states) if state.is_finished()]
    signs = np.array([1 if goal == "maximize" else -1 for goal in goals])
    high = {n: signs * values[n] for n, state in enumerate(states) if state == TrialState.COMPLETE}
    if len(goals) == 1:
        best = {*sorted(high, key=lambda n: (-high[n][0], n))[:BEST]}
    else:
        beaten = {n for n in high if any((high[m] >= high[n]).all() and (high[m] > high[n]).any() for m in high)}
        best = {*sorted({*high} - beaten)[-BEST:]}
    others = [n for n in ended if n not in best]
    running = {n for n, state in enumerate(states) if not state.is_finished()}
    assert numbers == sorted(best | {*others[-LATEST:]} | running)


def test_what_is_asked_for_by_state_is_of_the_window() -> None:
    states = [TrialState.COMPLETE] * 299 + [TrialState.RUNNING]
    window, study = shown(["maximize"], [[n / 300] for n in range(300)], states)
    assert [t.number for t in window.get_all_trials(study, states=(TrialState.RUNNING,))] == [299]
    complete = window.get_all_trials(study, states=(TrialState.COMPLETE,))
    assert [t.number for t in complete] == list(range(299 - WHOLE, 299))  # the best are the latest here


def test_points_that_wait_are_tried() -> None:
    study = optuna.create_study(storage=Window(["maximize"]), direction="maximize")
    for n in range(WHOLE + 10):
        study.enqueue_trial({"x": n / 1000})
    drawn = [study.ask({"x": FloatDistribution(0, 1)}).params["x"] for _ in range(WHOLE + 10)]
    assert drawn == [n / 1000 for n in range(WHOLE + 10)]


def proposals(storage: optuna.storages.BaseStorage, sampler: str, count: int) -> list[float]:
    level = LevelConfig(space={"a": Float(float=(0.0, 1.0)), "b": Float(float=(0.0, 1.0))}, sampler=sampler)
    study = optuna.create_study(storage=storage, direction="maximize", sampler=Sampler(level, 3, lasting=True))
    found = []
    for _ in range(count):
        trial = study.ask()
        a, b = trial.suggest_float("a", 0, 1), trial.suggest_float("b", 0, 1)
        found.append(-abs(a - 0.3) - abs(b - 0.8))
        study.tell(trial, found[-1])
    return found


@pytest.mark.slow
@pytest.mark.parametrize("sampler", ["tpe", "cma-es"])
def test_a_search_that_fits_is_the_search_without_a_window(sampler: str) -> None:
    plain: Any = optuna.storages.InMemoryStorage()
    assert proposals(Window(["maximize"]), sampler, WHOLE) == proposals(plain, sampler, WHOLE)


@pytest.mark.slow
@pytest.mark.parametrize("sampler", ["tpe", "cma-es"])
def test_a_longer_search_goes_on_learning(sampler: str) -> None:
    memory = memory_for(LevelConfig(sampler=sampler), ["maximize"])
    assert isinstance(memory, Window)
    found = proposals(memory, sampler, WHOLE + 150)
    assert np.mean(found[-50:]) > np.mean(found[:50]) + 0.1
    assert max(found) > -0.02
