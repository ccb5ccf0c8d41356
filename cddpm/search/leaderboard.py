"""Every trial of a sweep once, best validation value first, and beside them what must be beaten."""

import csv
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cddpm import artifact
from cddpm.search import trial as trials
from cddpm.search.trial import FAILED, Stop, TrialResult, read_ending


@dataclass(frozen=True)
class Row:
    """A line of the leaderboard.

    ``validation`` is the best objective of a search over scoring settings, so only finished trials have one; ``test`` only
    what was scored on test.
    """

    name: str
    state: str
    validation: float | None
    test: dict[str, float] | None
    settings: dict[str, Any]
    seconds: float | None = None
    note: str = ""


def results(sweep: Path) -> list[TrialResult]:
    """Finished trials, best first. Raises ``SearchError`` for a damaged result file."""
    found = [trials.read_result(folder) for folder in _folders(sweep)]
    return sorted((r for r in found if r), key=lambda r: (-r.objective, r.number))


def stops(sweep: Path) -> list[Stop]:
    """Trials that were stopped early, the furthest first, of these the best preview first.

    Raises ``SearchError`` for a damaged file.
    """
    found = [trials.read_stop(folder) for folder in _folders(sweep)]
    return sorted((s for s in found if s), key=lambda s: (-s.images, -s.objective, s.number))


def rows(sweep: Path) -> list[Row]:
    """Every trial once: finished ones best first, then those stopped early, then failed ones."""
    finished = [
        Row(_name(r.number), "finished", r.objective, None, {**r.params, **r.best.params}, r.seconds)
        for r in results(sweep)
    ]
    return [*finished, *_others(sweep)]


def _others(sweep: Path) -> list[Row]:
    early, failed = stops(sweep), []
    for folder in _folders(sweep):
        fault = read_ending(folder, FAILED)
        if fault and not any((folder / name).exists() for name in (trials.RESULT, trials.STOPPED)):
            failed.append(Row(folder.name, "failed", None, None, {}, note=fault["error"]))
    return [Row(_name(s.number), "stopped early", None, None, s.params, note=s.note) for s in early] + failed


def _folders(sweep: Path) -> list[Path]:
    return sorted(p for p in (sweep / "trials").glob("[0-9]*") if p.is_dir())


def _name(number: int) -> str:
    return f"{number:04d}"


def write_csv(path: Path, table: list[Row]) -> None:
    """The leaderboard as a CSV file."""
    columns = sorted({key for row in table for key in row.settings})
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(["name", "state", "validation", *_test_columns(table), "seconds", "note", *columns])
    for row in table:
        test = [(row.test or {}).get(name) for name in _test_columns(table)]
        settings = [row.settings.get(name) for name in columns]
        writer.writerow([row.name, row.state, row.validation, *test, row.seconds, row.note, *settings])
    artifact.write_text(path, text.getvalue())


def _test_columns(table: list[Row]) -> list[str]:
    return sorted({name for row in table for name in row.test or {}})
