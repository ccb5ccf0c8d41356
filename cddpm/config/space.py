"""The search section: which settings are searched, over which ranges, and how much may be spent."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, Discriminator, Field, Tag, model_validator

from cddpm.config.sections import Frozen, Name, Positive


class Float(Frozen):
    """A real parameter: ``{float: [low, high], log: true}``."""

    float: tuple[float, float]
    log: bool = False

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        _check_range(self.float, self.log)
        return self


class Integer(Frozen):
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


class Choice(Frozen):
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


class LevelConfig(Frozen):
    """One level of the search: its space by dotted configuration path, and how many points are tried."""

    trials: Positive = 1
    space: Space = Field(default={})
    start: tuple[dict[str, Any], ...] = ()
    """Points tried first."""
    sampler: Literal["tpe", "random"] = "tpe"


class AshaConfig(Frozen):
    """Asynchronous successive halving over images seen; the weak are stopped at each rung."""

    enabled: bool = True
    grace_images: Positive = 100_000
    reduction_factor: Annotated[int, Field(ge=2)] = 3


class SearchConfig(Frozen):
    """The sweep: training trials on Ray Tune + Optuna, each ending in a search over its cached reconstructions."""

    objective: Literal["dice", "auprc"] = "dice"
    """Mean over the volumes of each objective data set, then over data sets, on *validation*."""
    datasets: tuple[Name, ...] = ()
    """Unhealthy data sets of the objective; empty: all of ``data.unhealthy``."""
    training: LevelConfig = LevelConfig()
    """Space over training settings: a trial costs a training."""
    scoring: LevelConfig = LevelConfig(trials=64)
    """Space over ``scoring.*``: a trial is arithmetic on the cache."""
    asha: AshaConfig = AshaConfig()
    concurrent_trials: Positive | None = None
    """Trainings at the same time; empty: as many as the cluster holds."""
    maximum_seconds: Annotated[float, Field(gt=0)] | None = None
    """No new training starts after this wall-clock time."""
