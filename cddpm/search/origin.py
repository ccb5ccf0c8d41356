"""Where a sweep comes from: its configuration, the fingerprint of its data, and code and machine of each start."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cddpm import artifact
from cddpm.config import ExperimentConfig, recorded
from cddpm.errors import SearchError
from cddpm.reconstruct import reconstruction
from cddpm.scoring import score_book
from cddpm.tracking import provenance
from cddpm.training import stages

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
    forced: tuple[str, ...] = ()
    """What had changed since the start before, and was gone on with in spite of it (``--force``)."""


@dataclass(frozen=True)
class Origin:
    """Configuration as of the last start, fingerprint of the slice store, every start in order."""

    config: dict[str, Any]
    store: str
    starts: tuple[Start, ...]


def enter(sweep: Path, config: ExperimentConfig, store: str, forced: Sequence[str] = ()) -> None:
    """Add a start, now and here, to the folder ``sweep``. Raises ``StorageError`` if the disk refuses."""
    earlier = read(sweep)
    now = datetime.now(UTC).isoformat(timespec="seconds")
    start = Start(now, provenance.commit(), provenance.machine(), provenance.versions(PACKAGES), tuple(forced))
    starts = (*(earlier.starts if earlier else ()), start)
    artifact.write_json(sweep / ORIGIN, asdict(Origin(recorded(config), store, starts)))


def read(sweep: Path) -> Origin | None:
    """What was entered, None if nothing was. Raises ``SearchError`` for a damaged file."""
    path = sweep / ORIGIN
    if not path.exists():
        return None
    remedy = "delete it, the next start writes it"
    return artifact.read_json(path, Origin, "the origin of a sweep", remedy, SearchError)


def versions() -> dict[str, Any]:
    """What a number depends on beside configuration and data: this method's own versions, and those of its packages."""
    own = {
        "method": stages.METHOD_VERSION,
        "reconstruction": reconstruction.VERSION,
        "scoring": score_book.SCORING_VERSION,
    }
    return {f"version of {name}": version for name, version in {**provenance.versions(PACKAGES), **own}.items()}
