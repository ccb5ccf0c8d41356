"""More trials for a finished sweep: its configuration stays what it was, and beside it stands what was added."""

from pathlib import Path

from cddpm import artifact
from cddpm.config import ExperimentConfig, with_values
from cddpm.errors import SearchError

FILE = "extensions.json"
TRIALS = "search.training.trials"


def extended(sweep: Path, config: ExperimentConfig, more: int = 0) -> ExperimentConfig:
    """``config`` with the trials that were added to the sweep so far, and ``more``.

    Raises ``SearchError`` for a damaged record, ``ConfigError`` if the space does not hold so many.
    """
    added = sum(_read(sweep)) + more
    total = config.search.training.trials + added
    return with_values(config, {TRIALS: total}, f"--extend {more}") if added else config


def extend(sweep: Path, config: ExperimentConfig, more: int, ended: int) -> None:
    """Keep that ``more`` trials were added; ``ended``: trials of the sweep that have ended.

    Raises ``SearchError`` unless the sweep is finished: one that was interrupted while it was extended is resumed.
    """
    if more < 1:
        raise SearchError(f"--extend {more}: allowed is 1 or more")
    total = extended(sweep, config).search.training.trials
    if ended < total:
        raise SearchError(
            f"--extend {more}: {total - ended} of the {total} trials of sweep '{config.name}' are still missing; "
            "finish them with --resume first"
        )
    extended(sweep, config, more)
    artifact.write_json(sweep / FILE, [*_read(sweep), more])


def _read(sweep: Path) -> list[int]:
    path = sweep / FILE
    if not path.exists():
        return []
    return artifact.read_json(path, list[int], "a record of extensions", "restore it, or use another name", SearchError)
