"""Whatever the space, the seed and the configuration: the first trials of a search are spread over it."""

import itertools
import math
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState
from pydantic import TypeAdapter
from tiny_training import tiny_config

from cddpm.config import LevelConfig, Space
from cddpm.search import sampler
from cddpm.search import space as spaces
from cddpm.search.sampler import STARTUP, Sampler

optuna.logging.set_verbosity(optuna.logging.WARNING)
CONFIG = tiny_config()
QUICKSTART = Path(__file__).parents[2] / "tune_configs" / "quickstart.yaml"
LEARNERS = ["tpe", "nsga-ii"]

floats = st.tuples(st.floats(1e-6, 1.0), st.floats(1.5, 1e4)).map(lambda r: [r[0], r[0] * r[1]])
ints = st.tuples(st.integers(1, 50), st.integers(1, 60)).map(lambda r: [r[0], r[0] + r[1]])
parameters = st.one_of(
    st.builds(lambda r, log: {"float": r, "log": log}, floats, st.booleans()),
    st.builds(lambda r: {"int": r, "log": True}, ints),
    st.builds(lambda r, step: {"int": [r[0], r[0] + step * (r[1] - r[0])], "step": step}, ints, st.integers(1, 3)),
    st.builds(lambda count: {"choice": list(range(count))}, st.integers(2, 6)),
)


@st.composite
def searched(draw: st.DrawFn) -> Space:
    """A space in which some parameters are searched only where the first, a choice, has its first value."""
    raw = draw(st.lists(parameters, min_size=1, max_size=6))
    space = {f"part.p{i}": parameter for i, parameter in enumerate(raw)}
    if "choice" in raw[0]:
        for path in draw(st.sets(st.sampled_from(sorted(space)))) - {"part.p0"}:
            space[path] = {**space[path], "if": {"part.p0": 0}}
    found: Space = TypeAdapter(Space).validate_python(space)
    return found


def own_point(space: Space, random: np.random.Generator) -> dict[str, Any]:
    """A configuration of the space, by chance."""
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=int(random.integers(2**31))))
    trial = study.ask()
    spaces.suggest(space, trial, CONFIG)
    return dict(trial.params)


def begun(space: Space, seed: int, count: int, own: dict[str, Any] | None, name: str = "tpe") -> list[FrozenTrial]:
    """The first ``count`` trials, each of which has ended, in one of three ways, before the next is asked."""
    random = np.random.default_rng(seed)
    study = optuna.create_study(sampler=Sampler(LevelConfig(space=space, sampler=name), seed))
    if own is not None:
        study.enqueue_trial(own)
    for _ in range(count):
        trial = study.ask()
        spaces.suggest(space, trial, CONFIG)
        if (state := list(TrialState)[random.integers(4)]) != TrialState.RUNNING:
            study.tell(trial, random.random() if state == TrialState.COMPLETE else None, state=state)
    return study.trials


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(searched(), st.integers(0, 2**31), st.integers(2, STARTUP), st.booleans(), st.sampled_from(LEARNERS))
def test_the_first_points_are_even_and_none_is_near_another(
    space: Space, seed: int, count: int, configured: bool, name: str
) -> None:
    """Trial 0, the configuration as it is, is one of them."""
    own = own_point(space, np.random.default_rng(seed)) if configured else None
    trials = begun(space, seed, count, own, name)
    assert own is None or trials[0].params == own
    for path, distribution in spaces.distributions(space).items():
        tried = [t.params[path] for t in trials if path in t.params]
        if tried:
            _even(distribution, tried)
    nearest = min(sampler.distance(a, b) for a, b in itertools.combinations(trials, 2))
    if any(isinstance(d, FloatDistribution) for t in trials for d in t.distributions.values()):
        always = [p for p, d in trials[0].distributions.items() if isinstance(d, FloatDistribution)]
        if any(all(p in t.params for t in trials) for p in always):
            assert nearest >= 0.25 / sampler.strata(count - 1) - 1e-9


def _even(distribution: BaseDistribution, tried: list[Any]) -> None:
    places = [sampler.place_of(distribution, value) for value in tried]
    if isinstance(distribution, FloatDistribution):
        parts = sampler.strata(len(tried) - 1)
        assert parts < 2 * len(tried)
        assert len({min(parts - 1, int(place * parts)) for place in places}) == len(tried)
        gaps = [abs(a - b) for a, b in itertools.combinations(places, 2)]
        assert min(gaps, default=1.0) >= 0.25 / parts - 1e-9
        return
    times = Counter(tried)
    assert max(times.values()) - (min(times.values()) if len(times) == _size(distribution) else 0) <= 1
    if isinstance(distribution, IntDistribution) and not distribution.log:
        parts = sampler.strata(len(tried) - 1)
        if parts <= _size(distribution):
            assert len({int(place * parts) for place in places}) == len(tried)


def _size(distribution: BaseDistribution) -> int:
    if isinstance(distribution, CategoricalDistribution):
        return len(distribution.choices)
    assert isinstance(distribution, IntDistribution)
    return (distribution.high - distribution.low) // distribution.step + 1


@pytest.mark.slow
@settings(max_examples=30, deadline=None)
@given(searched(), st.integers(0, 2**31), st.lists(st.floats(0, 1), min_size=STARTUP - 1, max_size=STARTUP - 1))
def test_they_follow_from_seed_and_settings_not_from_values_or_restarts(
    space: Space, seed: int, values: list[float]
) -> None:
    own = own_point(space, np.random.default_rng(seed))
    storage, walks = optuna.storages.InMemoryStorage(), []
    for restarted in (False, True):
        name, found = f"restarted {restarted}", []
        for number, value in enumerate(values):
            if number == 0 or restarted:
                study = optuna.create_study(
                    study_name=name,
                    storage=storage,
                    load_if_exists=True,
                    sampler=Sampler(LevelConfig(space=space), seed),
                )
            if number == 0:
                study.enqueue_trial(own)
            trial = study.ask()
            spaces.suggest(space, trial, CONFIG)
            found.append(dict(trial.params))
            study.tell(trial.number, value if restarted else -value)
        walks.append(found)
    assert walks[0] == walks[1]


@settings(max_examples=100, deadline=None)
@given(parameters, st.integers(0, 2**31))
def test_a_place_is_where_its_value_stands(parameter: dict[str, Any], seed: int) -> None:
    (distribution,) = spaces.distributions(TypeAdapter(Space).validate_python({"p": parameter})).values()
    value = own_point(TypeAdapter(Space).validate_python({"p": parameter}), np.random.default_rng(seed))["p"]
    back = sampler._value_at(distribution, sampler.place_of(distribution, value))
    assert back == (pytest.approx(value) if isinstance(distribution, FloatDistribution) else value)


def test_places_by_hand() -> None:
    assert sampler.place_of(FloatDistribution(1e-4, 1e-2, log=True), 1e-3) == pytest.approx(0.5)
    assert sampler.place_of(FloatDistribution(-1, 3), 0) == 0.25
    assert sampler.place_of(IntDistribution(2, 6, step=2), 4) == 0.5
    assert sampler.place_of(IntDistribution(2, 6, step=2), 2) == pytest.approx(1 / 6)
    assert sampler.place_of(CategoricalDistribution(["a", "b", "c"]), "c") == 2
    assert [sampler.strata(count) for count in (0, 1, 2, 3, 4, 7, 8)] == [1, 2, 4, 4, 8, 8, 16]


def test_distances_by_hand() -> None:
    known = {"c": CategoricalDistribution(["a", "b"]), "f": FloatDistribution(0, 2), "g": FloatDistribution(0, 1)}

    def made(**params: Any) -> FrozenTrial:
        return optuna.trial.create_trial(params=params, distributions={p: known[p] for p in params}, value=0.0)

    one, other = made(c="a", f=0.5), made(c="b", f=1.5, g=0.25)
    assert sampler.distance(one, other) == 1 + 0.5
    assert sampler.distance(other, one) == 1 + 0.5 + 1  # the one has no g
    assert sampler.distance(one, one) == 0


@pytest.mark.parametrize("seed", range(20))
def test_all_pairs_of_two_choices_come_before_any_comes_again(seed: int) -> None:
    choices = {"part.a": {"choice": ["x", "y"]}, "part.b": {"choice": [1, 2, 3]}}
    space = TypeAdapter(Space).validate_python(choices)
    trials = begun(space, seed, 6, None)
    assert len({tuple(sorted(t.params.items())) for t in trials}) == 6


@pytest.mark.parametrize("seed", range(8))
def test_the_quickstarts_three_trainings_differ_visibly(seed: int) -> None:
    space = TypeAdapter(Space).validate_python(yaml.safe_load(QUICKSTART.read_text())["search"]["training"]["space"])
    ranges = {p: parameter for p, parameter in space.items() if "float" in type(parameter).model_fields}
    own = {"training.learning_rate": 1e-3, "diffusion.condition_dropout": "0.1"}
    trials = begun(space, seed, 3, {p: own[p] for p in space if p in own})
    for path, parameter in spaces.distributions(space).items():
        tried = [t.params[path] for t in trials]
        if path in ranges:
            assert all(abs(math.log(a / b)) > 0.1 for a, b in itertools.combinations(tried, 2))
        else:
            assert len(set(tried)) == min(3, _size(parameter))
