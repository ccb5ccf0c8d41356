"""A benchmark: methods x cohorts x folds, each an experiment of its own made from the method's file and a few settings."""

from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import Field, model_validator

from cddpm.config.sections import Frozen, Name


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
