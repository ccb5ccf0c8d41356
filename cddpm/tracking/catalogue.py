"""What the registry reads and writes in MLflow, as plain records.

There are three ways to them. ``catalogue_file.CatalogueFile`` opens a SQLite file directly: MLflow's own store takes over two
seconds to import. ``catalogue_server.CatalogueServer`` asks a server over HTTP: MLflow's client takes more than one.
``catalogue_client.CatalogueClient`` asks that client: for other databases, files of a schema that the first does not know, and
servers entered in a way that the second does not know. Tests hold that all say the same.
"""

from collections.abc import Collection
from contextlib import AbstractContextManager
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

    @property
    def contested(self) -> bool:
        """Whether ``exclusive`` cannot keep others out."""
        ...

    def exclusive(self) -> AbstractContextManager[None]:
        """What is read and written inside belongs together: nobody else writes meanwhile, where that can be had."""
        ...

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

    def tag_model(self, name: str, key: str, value: str) -> None:
        """Set or replace a tag of a registered model."""
        ...

    def tag_version(self, name: str, number: int, key: str, value: str | None) -> None:
        """Set or replace a tag of a version; None removes it."""
        ...

    def set_alias(self, name: str, alias: str, number: int) -> None:
        """Point an alias to a version that exists."""
        ...
