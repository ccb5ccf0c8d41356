"""Which stages a sweep or an evaluation has computed, and what each cost: one JSON file per stage in ``<folder>/stages``.

A worker writes when a stage is there, so a trial that is killed afterwards has still told of it.
"""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from cddpm import artifact
from cddpm.errors import ArtifactError
from cddpm.training.watch import StageRecord

FOLDER = "stages"


@dataclass(frozen=True)
class Entry:
    """A stage and the trial that computed it; None: the driver did, for all."""

    record: StageRecord
    trial: int | None


def enter(folder: Path, record: StageRecord, trial: int | None) -> None:
    """Write a stage down in ``folder`` (of the sweep or evaluation). Raises ``StorageError`` if the disk refuses."""
    path = folder / FOLDER / f"{record.stage}-{record.fingerprint}.json"
    artifact.write_json(path, {**asdict(record), "trial": trial})


def read(folder: Path, known: frozenset[str] = frozenset()) -> Iterator[tuple[str, Entry]]:
    """Name and contents of each stage that is not in ``known``. Raises ``ArtifactError`` for a damaged file."""
    for path in sorted((folder / FOLDER).glob("*.json")):
        if path.stem not in known:
            yield path.stem, _read(path)


def _read(path: Path) -> Entry:
    try:
        row = json.loads(path.read_text())
        trial = row.pop("trial")
        return Entry(StageRecord(**row), trial)
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise ArtifactError(
            f"{path}: not a record of a stage ({error}); remove it: only what it cost is lost"
        ) from error
