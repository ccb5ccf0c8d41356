"""The search section: which settings are searched, when, over which ranges, and how much may be spent.

A setting may be searched under a condition alone: ``if: {diffusion.condition_dropout: {above: 0}}``. It is asked of the settings
that a trial runs with, searched or not: those that are not searched, and those whose own condition does not hold, have the
configuration's own value.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, Discriminator, Field, Tag, model_serializer, model_validator

from cddpm.config.sections import Frozen, Name, Positive


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


class Conditional(Frozen):
    """A parameter that may be searched only where others have certain values: ``if: {diffusion.patch.enabled: true}``."""

    only_if: Annotated[Condition, Field(alias="if")] = ()
    """Where it does not hold, the setting is not searched: it keeps the configuration's own value."""


class Float(Conditional):
    """A real parameter: ``{float: [low, high], log: true}``."""

    float: tuple[float, float]
    log: bool = False

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        _check_range(self.float, self.log)
        return self


class Integer(Conditional):
    """A whole parameter: ``{int: [low, high], step: 1}``."""

    int: tuple[int, int]
    step: Positive = 1
    log: bool = False

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        _check_range(self.int, self.log)
        if self.log and self.step != 1:
            raise ValueError(f"step: {self.step}: a log range has step 1")
        return self


class Choice(Conditional):
    """One of several values: ``{choice: [a, b, c]}``. A value may be a list (of noise levels, say)."""

    choice: Annotated[tuple[Any, ...], Field(min_length=1)]


def _check_range(limits: tuple[float, float], log: bool) -> None:
    low, high = limits
    if not low < high:
        raise ValueError(f"range [{low}, {high}]: the first number must be below the second")
    if log and low <= 0:
        raise ValueError(f"range [{low}, {high}]: a log range must start above 0")


def _kind(value: Any) -> str | None:
    names = value if isinstance(value, Mapping) else type(value).model_fields if isinstance(value, BaseModel) else ()
    return next((kind for kind in ("float", "int", "choice") if kind in names), None)


Parameter = Annotated[
    Annotated[Float, Tag("float")] | Annotated[Integer, Tag("int")] | Annotated[Choice, Tag("choice")],
    Discriminator(
        _kind,
        custom_error_type="parameter",
        custom_error_message="allowed is {float: [low, high]}, {int: [low, high]} or {choice: [...]}",
    ),
]
Space = dict[str, Parameter]


def ordered(space: Mapping[str, Parameter]) -> list[str]:
    """Paths of ``space``, each after those that its condition asks for, else by name. The order of the file means nothing.

    Raises ``ValueError`` naming parameters whose conditions ask for each other in a circle.
    """
    waiting, done = sorted(space), []
    while waiting:
        ready = next((path for path in waiting if not _asks(space, path) & set(waiting)), None)
        if ready is None:
            raise ValueError(f"conditions ask for each other in a circle: {', '.join(waiting)}")
        waiting.remove(ready)
        done.append(ready)
    return done


def _asks(space: Mapping[str, Parameter], path: str) -> set[str]:
    return {other for other, _ in asked(space[path].only_if)}


def active(space: Mapping[str, Parameter], own: Callable[[str], Any], values: Mapping[str, Any]) -> Iterator[str]:
    """Paths whose conditions hold, in ``ordered``'s order. ``own(path)``: the configuration's value of a setting.

    ``values`` holds searched values; it may grow while the paths are taken, one by one.
    """
    taken: set[str] = set()
    for path in ordered(space):
        if holds(space[path].only_if, lambda asked: values[asked] if asked in taken & values.keys() else own(asked)):
            taken.add(path)
            yield path


class LevelConfig(Frozen):
    """One level of the search: its space by dotted configuration path, and how many points are tried."""

    trials: Positive = 1
    space: Space = Field(default={})
    start: tuple[dict[str, Any], ...] = ()
    """Points tried first."""
    sampler: Literal["tpe", "cma-es", "random", "grid", "nsga-ii"] = "tpe"
    """``grid``: every point of a finite space once, in an order shuffled by the seed. ``cma-es``: number ranges only are
    searched together, choices one by one."""


GOALS = {
    "dice": "maximize",
    "auprc": "maximize",
    "auroc": "maximize",
    "healthy_false_positive_ml": "minimize",
    "seconds_per_volume": "minimize",
}
"""What can be an objective, and which way is better."""


class ObjectiveConfig(Frozen):
    """One of several things wanted at once: ``{metric: healthy_false_positive_ml, goal: minimize}``."""

    metric: Literal["dice", "auprc", "auroc", "healthy_false_positive_ml", "seconds_per_volume"]
    """``healthy_false_positive_ml``: segmented volume of a healthy validation scan, mean over them. ``seconds_per_volume``:
    of the network, for the noise levels, noise seeds and branches that a point needs."""
    goal: Literal["maximize", "minimize"]

    @model_validator(mode="after")
    def _right_way(self) -> Self:
        if self.goal != GOALS[self.metric]:
            raise ValueError(f"goal: '{self.goal}' {self.metric}; allowed is {GOALS[self.metric]}")
        return self


class AshaConfig(Frozen):
    """Asynchronous successive halving (Li et al. 2020) over images seen: where weak trainings are stopped."""

    grace_images: Positive = 100_000
    """No training is stopped before. Images of the first rung; each further one is ``reduction_factor`` times later. Of
    ``median``: trials are compared after each so many images."""
    reduction_factor: Annotated[int, Field(ge=2)] = 3
    """One of so many trials goes on at a rung."""
    brackets: Annotated[int, Field(ge=2, le=8)] = 3
    """Of ``hyperband``: brackets of trials, each with its first rung a factor later than the one before."""


class SearchConfig(Frozen):
    """The sweep: training trials on Ray Tune + Optuna, each ending in a search over its cached reconstructions."""

    objective: Literal["dice", "auprc"] = "dice"
    """Mean over the volumes of each objective data set, then over data sets, on *validation*. What trials are stopped and
    compared by."""
    objectives: tuple[ObjectiveConfig, ...] = ()
    """Several at once: the search over scoring settings looks for their Pareto front. The first one is ``objective``, dice
    or auprc: what a training reports to the pruner, and what the champion is best in."""
    datasets: tuple[Name, ...] = ()
    """Unhealthy data sets of the objective; empty: all of ``data.unhealthy``."""
    training: LevelConfig = LevelConfig()
    """Space over training settings: a trial costs a training."""
    scoring: LevelConfig = LevelConfig(trials=64)
    """Space over ``scoring.*``: a trial is arithmetic on the cache."""
    logged_points: Annotated[int, Field(ge=0)] = 20
    """The best so many points over ``scoring.*`` of a finished sweep become MLflow runs of their own; the others are rows of
    their trial's table."""
    scoring_batch: Positive = 1
    """Points over ``scoring.*`` that are proposed together. More than 1: they are scored at the same time, in as many
    processes as the batch has points and the trial has CPUs, each with store and cache opened once."""
    preview_trials: Positive = 1
    """Scoring settings that each validation of a training searches, on ``training.validation_volumes`` volumes of each data
    set: what trials are stopped by is then the best of them, found as the trial's own end finds it, but for the number of
    volumes and settings. 1: the configuration's own settings."""
    scheduler: Literal["asha", "hyperband", "median", "none"] = "asha"
    """Which trainings are stopped early, decided by Optuna's pruners. ``asha``: the weak at each rung.
    ``hyperband``: the same in several brackets (Li et al. 2018). ``median``: who is worse than the median of finished trials,
    once there are five (Golovin et al. 2017). A training that is stopped saves its state first."""
    asha: AshaConfig = AshaConfig()
    concurrent_trials: Positive | None = None
    """Trainings at the same time; empty: as many as the cluster holds."""
    maximum_seconds: Annotated[float, Field(gt=0)] | None = None
    """After this wall-clock time of running trials, over all starts of the sweep, no new training starts, and those that run
    save their state and end: a higher limit and ``--resume`` go on."""
    maximum_gpu_hours: Annotated[float, Field(gt=0)] | None = None
    """As ``maximum_seconds``, of the GPU-hours that trials have booked."""
    maximum_cpu_hours: Annotated[float, Field(gt=0)] | None = None
    """As ``maximum_gpu_hours``, of CPUs."""
    equal_failures: Positive | None = 3
    """No new training starts after so many trials in a row failed with the same message; empty: whatever fails is
    recorded and the sweep goes on."""
    warm_start: tuple[Name, ...] = ()
    """Earlier sweeps below ``output_dir`` whose finished trials the sampler learns from, where they fit this space, this
    objective and these data; their best scoring settings are tried first."""

    @property
    def aims(self) -> tuple[ObjectiveConfig, ...]:
        """All objectives; the only one, if there are not several."""
        return self.objectives or (ObjectiveConfig(metric=self.objective, goal="maximize"),)

    @model_validator(mode="before")
    @classmethod
    def _first_objective(cls, raw: Any) -> Any:
        """``objective`` follows ``objectives``."""
        several = raw.get("objectives") if isinstance(raw, Mapping) else None
        first = several[0] if isinstance(several, list | tuple) and several else None
        if not isinstance(first, Mapping) or first.get("metric") not in GOALS:
            return raw
        metric = first["metric"]
        if metric not in ("dice", "auprc"):
            raise ValueError(f"objectives: the first is what trials are compared by: dice or auprc; found '{metric}'")
        if raw.get("objective", metric) != metric:
            raise ValueError(
                f"objective: '{raw['objective']}', but objectives begin with '{metric}'; set only one of them"
            )
        return {**raw, "objective": metric}

    @model_validator(mode="after")
    def _each_once(self) -> Self:
        metrics = [aim.metric for aim in self.objectives]
        twice = sorted({metric for metric in metrics if metrics.count(metric) > 1})
        if twice:
            raise ValueError(f"objectives: '{twice[0]}' is named twice")
        return self
