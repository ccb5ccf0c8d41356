"""Faults in how a sweep searches: conditions that cannot be asked, samplers that cannot walk the space."""

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from cddpm.config.settings import Settings, shown, value_at
from cddpm.config.space import (
    All,
    Choice,
    Float,
    Integer,
    LevelConfig,
    Parameter,
    Test,
    active,
    asked,
    is_number,
    ordered,
)
from cddpm.text.likeness import did_you_mean

GRID_POINTS = 100_000
"""A larger grid is a mistake."""


def condition_faults(
    config: Settings,
    level: str,
    fields: frozenset[str],
    refused: Callable[[str, str, list[Any]], Iterator[str]],
) -> Iterator[str]:
    """Conditions on settings that do not exist, are chosen later, cannot be compared, or can never be as asked.

    ``refused(where, path, values)`` yields a line for each of ``values`` that the setting at ``path`` would refuse.
    """
    section: LevelConfig = getattr(config.search, level)
    for path, parameter in section.space.items():
        where = f"search.{level}.space.{path}.if"
        wrong = [
            f"{where}: {line}"
            for test in asked(parameter.only_if)
            for line in _test_faults(config, level, *test, fields)
        ]
        wrong += [line for other, test in asked(parameter.only_if) for line in refused(where, other, list(test.named))]
        yield from wrong
        if parameter.only_if and not wrong and not any(_may_hold(config, tests) for tests in parameter.only_if):
            yield f"{where}: holds in no trial; the setting would never be searched"
    try:
        ordered(section.space)
    except ValueError as error:
        yield f"search.{level}.space: {error}"
    else:
        for point in section.start:
            yield from _ignored_faults(config, level, section, point, fields)


def sampler_faults(config: Settings, level: str) -> Iterator[str]:
    """Samplers that cannot search this space, or not so long."""
    section: LevelConfig = getattr(config.search, level)
    where = f"search.{level}.sampler"
    ranges = [path for path, parameter in section.space.items() if not isinstance(parameter, Choice)]
    if section.sampler == "cma-es" and len(ranges) < 2:
        yield f"{where}: 'cma-es' needs at least 2 ranges of numbers; search.{level}.space has {len(ranges)}: take tpe"
    if section.sampler == "cma-es" and level == "scoring" and len(config.search.objectives) > 1:
        yield f"{where}: 'cma-es' has one objective, search.objectives names {len(config.search.objectives)}: take tpe or nsga-ii"
    if section.sampler != "grid":
        return
    endless = [path for path in ranges if isinstance(section.space[path], Float)]
    if endless:
        yield f"{where}: 'grid' needs a finite space, but {endless[0]} is a float range; list its values as a choice"
    else:
        yield from _grid_faults(section, where, level)


def warm_start_faults(config: Settings) -> Iterator[str]:
    """Earlier sweeps that nobody could learn from."""
    names, level = config.search.warm_start, config.search.training
    if config.name in names:
        yield f"search.warm_start: '{config.name}' is this sweep's own name"
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        yield f"search.warm_start: '{twice[0]}' is named twice"
    if names and level.space and level.sampler != "tpe":
        yield f"search.warm_start: search.training.sampler '{level.sampler}' does not learn from earlier trials; allowed is tpe"


def _grid_faults(section: LevelConfig, where: str, level: str) -> Iterator[str]:
    sizes = [len(p.choice) if isinstance(p, Choice) else len(range(*_span(p))) for p in section.space.values()]
    size = math.prod(sizes)
    if size > GRID_POINTS:
        yield f"{where}: 'grid' of {size} points; allowed are up to {GRID_POINTS}: take random or tpe"
    elif level == "training" and section.space and section.trials > size:
        yield f"search.{level}.trials: {section.trials}, but the grid has {size} points"


def _span(parameter: Parameter) -> tuple[int, int, int]:
    if not isinstance(parameter, Integer):
        raise TypeError("only whole ranges can be counted")
    return parameter.int[0], parameter.int[1] + 1, parameter.step


def _test_faults(config: Settings, level: str, other: str, test: Test, fields: frozenset[str]) -> Iterator[str]:
    if other not in fields:
        yield f"'{other}' is no setting{did_you_mean(other, fields)}"
    elif level == "training" and other in config.search.scoring.space:
        yield f"'{other}' is chosen later, by search.scoring.space; allowed are settings of the training"
    elif test.numeric and not any(is_number(value) for value in _possible(config, other)):
        yield f"'{other}' is {shown(value_at(config, other))}, which is neither above nor below a number"


def _possible(config: Settings, path: str) -> list[Any]:
    """The configuration's own value, and the choices or ends of the space that searches it."""
    found = [value_at(config, path)]
    for space in (config.search.training.space, config.search.scoring.space):
        if path in space:
            parameter = space[path]
            found += parameter.choice if isinstance(parameter, Choice) else _ends(parameter)
    return found


def _ends(parameter: Parameter) -> tuple[float, float]:
    if isinstance(parameter, Choice):
        raise TypeError("a choice has no ends")
    return parameter.float if isinstance(parameter, Float) else parameter.int


def _may_hold(config: Settings, tests: All) -> bool:
    """Whether each test can hold for its own setting; whether all can together is not asked."""
    return all(
        any(test.holds(v) for v in _possible(config, path)) or _inside(config, path, test)
        for path, test in tests.items()
    )


def _inside(config: Settings, path: str, test: Test) -> bool:
    """Whether a searched range holds numbers as ``test`` asks, between its ends."""
    for space in (config.search.training.space, config.search.scoring.space):
        parameter = space.get(path)
        if parameter is not None and not isinstance(parameter, Choice):
            low, high = _ends(parameter)
            above = max(low, test.above if test.above is not None else low)
            below = min(high, test.below if test.below is not None else high)
            named = [v for v in test.one_of or () if is_number(v) and above <= v <= below]
            if above < below and (test.one_of is None or named):
                return True
    return False


def searched_at_start(config: Settings, fields: frozenset[str]) -> list[str]:
    """Training settings that the first trial, the configuration as it is, would search; empty if conditions are faulty."""
    space = {path: parameter for path, parameter in config.search.training.space.items() if path in fields}
    if any(other not in fields for parameter in space.values() for other, _ in asked(parameter.only_if)):
        return []
    try:
        return list(active(space, lambda path: value_at(config, path), {}))
    except ValueError:
        return []


def _ignored_faults(
    config: Settings, level: str, section: LevelConfig, point: Mapping[str, Any], fields: frozenset[str]
) -> Iterator[str]:
    """Values of a start point whose own condition does not hold there, as far as the point says."""
    elsewhere = set(config.search.training.space) if level == "scoring" else set()
    left_open = (set(section.space) | elsewhere) - set(point)
    known = {
        path: parameter
        for path, parameter in section.space.items()
        if path in point and not any(other in left_open or other not in fields for other, _ in asked(parameter.only_if))
    }
    holding = set(active(known, lambda path: value_at(config, path), point))
    for path in sorted(known.keys() - holding):
        yield f"search.{level}.start: '{path}' would be ignored: its condition does not hold at this point"
