"""A benchmark: methods x cohorts x folds, each an experiment of its own made from the method's file and a few settings."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import Field, ValidationError, model_validator

from cddpm.config.experiment import ExperimentConfig
from cddpm.config.loading import explain, override, parse, read_yaml, resolve_paths
from cddpm.config.sections import Frozen, Name
from cddpm.errors import ConfigError


class CohortConfig(Frozen):
    """Unhealthy data sets that share a modality, and so a training."""

    modality: Name
    unhealthy: Annotated[tuple[Name, ...], Field(min_length=1)]


class MethodConfig(Frozen):
    """One row of the table."""

    label: str
    """What the table calls it."""
    config: Path
    """Experiment file, relative to the benchmark's own folder."""
    set: dict[str, Any] = Field(default={})
    """Settings of this method by dotted path; they win over the benchmark's ``set``."""


class BenchmarkConfig(Frozen):
    """Every method on every cohort and fold."""

    name: Name
    methods: Annotated[tuple[MethodConfig, ...], Field(min_length=1)]
    cohorts: Annotated[tuple[CohortConfig, ...], Field(min_length=1)]
    set: dict[str, Any] = Field(default={})
    """Settings of all methods by dotted path."""
    compared_with: str | None = None
    """Label of the method that the others are tested against; empty: the last one."""

    @model_validator(mode="after")
    def _possible(self) -> Self:
        labels = [method.label for method in self.methods]
        twice = sorted({label for label in labels if labels.count(label) > 1})
        if twice:
            raise ValueError(f"methods: '{twice[0]}' is the label of two methods")
        if self.compared_with is not None and self.compared_with not in labels:
            raise ValueError(f"compared_with: '{self.compared_with}': allowed are {', '.join(labels)}")
        names = [name for cohort in self.cohorts for name in cohort.unhealthy]
        again = sorted({name for name in names if names.count(name) > 1})
        if again:
            raise ValueError(f"cohorts: data set '{again[0]}' stands in two cohorts")
        return self


def load_benchmark(
    path: Path, overrides: Mapping[str, Any] | None = None
) -> tuple[BenchmarkConfig, dict[str, list[ExperimentConfig]]]:
    """The benchmark of a YAML file, and per method's label one experiment per cohort; ``overrides`` win over all files.

    Raises ``ConfigError`` listing every fault of all experiments.
    """
    try:
        benchmark = BenchmarkConfig.model_validate(read_yaml(path))
    except ValidationError as error:
        raise ConfigError("\n".join(explain(error, str(path), BenchmarkConfig))) from None
    found: dict[str, list[ExperimentConfig]] = {}
    faults: list[str] = []
    for method in benchmark.methods:
        for cohort in benchmark.cohorts:
            try:
                made = _experiment(path, benchmark, method, cohort, overrides or {})
                found.setdefault(method.label, []).append(made)
            except ConfigError as error:
                faults.append(f"{method.label}, {cohort.modality}: {error}")
    if faults:
        raise ConfigError("\n".join(faults))
    _refuse_different_rules(path, found)
    return benchmark, found


def _experiment(
    path: Path, benchmark: BenchmarkConfig, method: MethodConfig, cohort: CohortConfig, overrides: Mapping[str, Any]
) -> ExperimentConfig:
    file = path.parent / method.config
    own = {
        "name": benchmark.name,
        "data.modality": cohort.modality,
        "data.unhealthy": list(cohort.unhealthy),
        "search.datasets": [],
    }
    raw = read_yaml(file)
    for values in (benchmark.set, method.set, own, overrides):
        raw = override(raw, values, str(path))
    return resolve_paths(parse(raw, str(file)), Path.cwd())


def _refuse_different_rules(path: Path, found: Mapping[str, list[ExperimentConfig]]) -> None:
    """Rows of one table must be measured alike."""
    first, *others = found
    faults = [
        f"{path}: {fault} differs between '{first}' and '{label}'; put it into the benchmark's own 'set'"
        for label in others
        for section in ("data", "evaluation")
        for fault in _differences(section, getattr(found[first][0], section), getattr(found[label][0], section))
    ]
    if faults:
        raise ConfigError("\n".join(faults))


def _differences(section: str, one: Frozen, other: Frozen) -> Iterator[str]:
    for name in type(one).model_fields:
        if getattr(one, name) != getattr(other, name):
            yield f"{section}.{name}"
