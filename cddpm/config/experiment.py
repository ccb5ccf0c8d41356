"""A whole experiment: settings that fit together."""

from typing import Self

from pydantic import model_validator

from cddpm.config.faults import faults
from cddpm.config.paths import field_paths
from cddpm.config.settings import Settings


class ExperimentConfig(Settings):
    """A whole experiment: data, networks, training, scoring, evaluation, search.

    Raises ``ValidationError`` that lists every combination of settings that cannot be (``faults``).
    """

    @model_validator(mode="after")
    def _possible(self) -> Self:
        found = list(faults(self))
        if found:
            raise ValueError("\n".join(found))
        return self


FIELDS = frozenset(field_paths(ExperimentConfig))
"""Dotted paths of all settings."""
