"""What the registry reads in MLflow, as plain records.

There are two ways to them. ``catalogue_client.CatalogueClient`` asks MLflow's client, and is the only one that writes.
``catalogue_file.CatalogueFile`` reads a SQLite file of a schema that it was tested with: MLflow takes over two seconds to
import. A test holds that both say the same.
"""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class ModelRecord:
    """A registered model."""

    aliases: dict[str, int]
    """Alias -> number of a version."""
    tags: dict[str, str]


@dataclass(frozen=True)
class VersionRecord:
    """A version of a registered model."""

    number: int
    run_id: str
    source: str
    """``models:/<model id>``."""
    created_ms: int
    """Since 1970, UTC."""
    tags: dict[str, str]


@dataclass(frozen=True)
class RunRecord:
    """A run; of each metric the last value."""

    id: str
    name: str
    status: str
    artifacts: str
    """URI of the folder with its files."""
    params: dict[str, str]
    tags: dict[str, str]
    metrics: dict[str, float]


class Catalogue(Protocol):
    """Every method raises ``TrackingError`` (``AwayError`` for what may pass) if MLflow or its database refuses."""

    def models(self) -> list[str]:
        """Names of all registered models, sorted."""
        ...

    def model(self, name: str) -> ModelRecord | None:
        """The registered model, None if there is none of this name."""
        ...

    def versions(self, name: str) -> list[VersionRecord]:
        """All versions of a model, in any order."""
        ...

    def runs(self, ids: Collection[str]) -> dict[str, RunRecord]:
        """Runs by id; those that were deleted for good are absent."""
        ...

    def location(self, model_id: str) -> str | None:
        """Artifact URI of a logged model, None if there is no such model."""
        ...
