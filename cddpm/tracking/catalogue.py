"""What the registry reads in MLflow: registered models, their versions, and runs, as plain values.

There are two ways to them. ``catalogue_client.CatalogueClient`` asks MLflow's client, and is the only one that writes.
``catalogue_file.CatalogueFile`` reads a SQLite file of a schema that it was tested with: MLflow, whose own entities say the
same, takes over two seconds to import. A test holds that both ways say the same.
"""

import json
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any, Protocol, Self

from cddpm.tracking import names


@dataclass(frozen=True)
class Model:
    """A registered model."""

    aliases: dict[str, int]
    """Alias -> number of a version."""
    tags: dict[str, str]


@dataclass(frozen=True)
class Run:
    """A run, as far as a version needs it."""

    id: str
    artifacts: str
    """URI of the folder with its files."""
    params: dict[str, str]
    tags: dict[str, str]


@dataclass(frozen=True)
class Version:
    """A version of a registered model; by this program, if it has a ``fingerprint``: that of its package."""

    number: int
    aliases: tuple[str, ...]
    sweep: str | None
    trial: int | None
    run_id: str
    model_id: str
    """MLflow's, of the logged model with its files."""
    fingerprint: str
    created: str
    """ISO 8601, UTC."""
    metrics: dict[str, float]
    tags: dict[str, str]

    @classmethod
    def of(
        cls, number: int, run_id: str, source: str, created_ms: int, tags: Mapping[str, str], aliases: Mapping[str, int]
    ) -> Self:
        """From an entry of MLflow: ``source`` is ``models:/<model id>``, ``created_ms`` since 1970, ``aliases`` of the model.

        What is for machines lies together in one tag; an earlier version of this program made a tag of each.
        """
        told = {**json.loads(tags.get(names.RECORD, "{}")), **tags}
        trial = told.get(names.TRIAL)
        return cls(
            number=number,
            aliases=tuple(sorted(alias for alias, meant in aliases.items() if meant == number)),
            sweep=told.get(names.SWEEP),
            trial=int(trial) if trial else None,
            run_id=run_id,
            model_id=source.removeprefix("models:/"),
            fingerprint=told.get(names.FINGERPRINT_PACKAGE, ""),
            created=datetime.fromtimestamp(created_ms / 1000, UTC).isoformat(timespec="seconds"),
            metrics=json.loads(told.get(names.METRICS, "{}")),
            tags={key: value for key, value in told.items() if key not in (names.RECORD, names.METRICS)},
        )

    @property
    def trial_name(self) -> str | None:
        """``<sweep>/0003``, or the sweep's name for a model that no trial made."""
        if self.sweep is None or self.trial is None:
            return self.sweep
        return names.trial_key(self.sweep, self.trial)

    @property
    def archived(self) -> bool:
        """Whether it is hidden from lists."""
        return names.ARCHIVED in self.tags

    def plain(self) -> dict[str, Any]:
        """As JSON data."""
        own = asdict(self)
        return {**own, "aliases": list(self.aliases), "archived": self.archived, "trial_name": self.trial_name}


class Catalogue(Protocol):
    """Every method raises ``TrackingError`` (``AwayError`` for what may pass) if MLflow or its database refuses."""

    def models(self) -> list[str]:
        """Names of all registered models, sorted."""
        ...

    def model(self, name: str) -> Model | None:
        """The registered model, None if there is none of this name."""
        ...

    def versions(self, name: str) -> list[Version]:
        """All versions of a model, in any order; none if there is no such model."""
        ...

    def runs(self, ids: Collection[str]) -> dict[str, Run]:
        """Runs by id; those that were deleted for good are absent."""
        ...

    def location(self, model_id: str) -> str | None:
        """Artifact URI of a logged model, None if there is no such model."""
        ...
