"""Where a sweep comes from: its configuration, the fingerprint of its data, and code and machine of each start."""

import json
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cddpm import artifact
from cddpm.config import ExperimentConfig, to_dict
from cddpm.errors import SearchError
from cddpm.evaluation import provenance

ORIGIN = "origin.json"
PACKAGES = (*provenance.PACKAGES, "optuna")


@dataclass(frozen=True)
class Start:
    """One start of the sweep's driver."""

    when: str
    """UTC, ISO 8601."""
    commit: str
    machine: str
    """Processor and GPUs of the driver's machine."""
    versions: dict[str, str]
    """By package."""


@dataclass(frozen=True)
class Origin:
    """Configuration as of the last start, fingerprint of the slice store, every start in order."""

    config: dict[str, Any]
    store: str
    starts: tuple[Start, ...]


def enter(sweep: Path, config: ExperimentConfig, store: str) -> None:
    """Add a start, now and here, to the folder ``sweep``. Raises ``StorageError`` if the disk refuses."""
    earlier = read(sweep)
    now = datetime.now(UTC).isoformat(timespec="seconds")
    start = Start(now, provenance.commit(), provenance.machine(), provenance.versions(PACKAGES))
    starts = (*(earlier.starts if earlier else ()), start)
    artifact.write_json(sweep / ORIGIN, asdict(Origin(to_dict(config), store, starts)))


def read(sweep: Path) -> Origin | None:
    """What was entered, None if nothing was. Raises ``SearchError`` for a damaged file."""
    path = sweep / ORIGIN
    if not path.exists():
        return None
    try:
        raw = json.loads(path.read_text())
        return Origin(raw["config"], raw["store"], tuple(Start(**start) for start in raw["starts"]))
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise SearchError(
            f"{path}: not the origin of a sweep ({error}); delete it, the next start writes it"
        ) from error
