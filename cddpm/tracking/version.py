"""A registered model package, as its registry entry describes it."""

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from cddpm.tracking import names
from cddpm.tracking.catalogue import ModelRecord, VersionRecord


@dataclass(frozen=True)
class Version:
    """A registered model package."""

    number: int
    aliases: tuple[str, ...]
    sweep: str | None
    trial: int | None
    run_id: str
    model_id: str
    fingerprint: str
    created: str
    """ISO 8601, UTC."""
    metrics: dict[str, float]
    tags: dict[str, str]

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
        return {
            "number": self.number,
            "aliases": list(self.aliases),
            "archived": self.archived,
            "sweep": self.sweep,
            "trial": self.trial,
            "trial_name": self.trial_name,
            "run_id": self.run_id,
            "model_id": self.model_id,
            "fingerprint": self.fingerprint,
            "created": self.created,
            "metrics": self.metrics,
            "tags": self.tags,
        }


def is_ours(record: VersionRecord) -> bool:
    """Whether this program registered the version."""
    return names.FINGERPRINT_PACKAGE in _tags(record)


def version_of(record: VersionRecord, model: ModelRecord) -> Version:
    """The version that a record of the catalogue describes."""
    tags = _tags(record)
    trial = tags.get(names.TRIAL)
    return Version(
        number=record.number,
        aliases=tuple(sorted(alias for alias, number in model.aliases.items() if number == record.number)),
        sweep=tags.get(names.SWEEP),
        trial=int(trial) if trial else None,
        run_id=record.run_id,
        model_id=record.source.removeprefix("models:/"),
        fingerprint=tags[names.FINGERPRINT_PACKAGE],
        created=datetime.fromtimestamp(record.created_ms / 1000, UTC).isoformat(timespec="seconds"),
        metrics=json.loads(tags.get(names.METRICS, "{}")),
        tags={key: value for key, value in tags.items() if key != names.METRICS},
    )


def _tags(record: VersionRecord) -> dict[str, str]:
    """Its tags and those of its record; an earlier version of this program made a tag of each."""
    shown = {key: value for key, value in record.tags.items() if key != names.RECORD}
    return {**json.loads(record.tags.get(names.RECORD, "{}")), **shown}
