"""When a searched setting is searched at all: ``if: {diffusion.condition_dropout: {above: 0}}``.

A condition is asked of the settings that a trial runs with, searched or not: those that are not searched, and those whose
own condition does not hold, have the configuration's own value.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Annotated, Any, Self

from pydantic import BeforeValidator, Field, model_serializer, model_validator

from cddpm.config.sections import Frozen


class Test(Frozen):
    """What one setting must be: ``{above: 0}``, ``{below: 3}``, ``{in: [l1, l2]}``, ``{not: null}``, or a plain value."""

    __test__ = False  # no test of pytest's

    above: float | None = None
    below: float | None = None
    one_of: Annotated[tuple[Any, ...] | None, Field(alias="in")] = None
    none_of: Annotated[tuple[Any, ...] | None, Field(alias="not"), BeforeValidator(lambda v: _tuple(v))] = None

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        empty = [name for name in self.model_fields_set if getattr(self, name) in (None, ())]
        if empty or not self.model_fields_set:
            raise ValueError(
                "test: says nothing; allowed are a value, {above: n}, {below: n}, {in: [...]}, {not: value}"
            )
        return self

    @model_serializer
    def _as_written(self) -> dict[str, Any]:
        """Only what was asked: ``not: null`` is a test, an absent one is none."""
        names = {"above": "above", "below": "below", "one_of": "in", "none_of": "not"}
        found = {names[field]: getattr(self, field) for field in names if field in self.model_fields_set}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in found.items()}

    def holds(self, value: Any) -> bool:
        """Whether ``value`` is as asked. What is no number is neither above nor below anything."""
        number = value if is_number(value) else None
        return (
            (self.above is None or (number is not None and number > self.above))
            and (self.below is None or (number is not None and number < self.below))
            and (self.one_of is None or any(same(value, one) for one in self.one_of))
            and (self.none_of is None or not any(same(value, one) for one in self.none_of))
        )

    @property
    def numeric(self) -> bool:
        """Whether it compares numbers."""
        return self.above is not None or self.below is not None

    @property
    def named(self) -> tuple[Any, ...]:
        """Values that it names."""
        return (*(self.one_of or ()), *(self.none_of or ()))


def is_number(value: Any) -> bool:
    """A number that can be compared; true and false are none."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def same(one: Any, other: Any) -> bool:
    """Equal as a file writes it: 0 is 0.0, a list is a tuple; but true is not 1."""
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(same(a, b) for a, b in zip(one, other, strict=True))
    return bool(one == other) and isinstance(one, bool) == isinstance(other, bool)


def _tuple(value: Any) -> Any:
    """``not: x`` means the one value x; ``not: [x, y]`` none of them."""
    return value if isinstance(value, list | tuple) else (value,)


def _written(value: Any) -> Any:
    """A plain value stands for ``{in: [value]}``."""
    return value if isinstance(value, Mapping | Test) else {"in": [value]}


def _alternatives(value: Any) -> Any:
    return [value] if isinstance(value, Mapping) else value


All = dict[str, Annotated[Test, BeforeValidator(_written)]]
"""Tests by dotted path; every one must hold."""
Condition = Annotated[tuple[All, ...], BeforeValidator(_alternatives)]
"""One mapping, or a list of which one is enough; empty: no condition."""


def holds(condition: tuple[All, ...], setting: Callable[[str], Any]) -> bool:
    """Whether ``condition`` is met, where ``setting(path)`` is the value that the trial runs with."""
    return not condition or any(all(test.holds(setting(path)) for path, test in tests.items()) for tests in condition)


def asked(condition: tuple[All, ...]) -> Iterator[tuple[str, Test]]:
    """Every test of ``condition`` with its path."""
    for tests in condition:
        yield from tests.items()
