"""Every trial of a sweep once, best first, as a table and as a note in Markdown; the Pareto front of several objectives.

On the front are the points that no other point beats in one objective without losing in another.
"""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from cddpm import artifact
from cddpm.config import ExperimentConfig, ObjectiveConfig, to_dict
from cddpm.search import trial as trials
from cddpm.search.trial import FAILED, Stop, TrialResult, read_ending
from cddpm.text import command
from cddpm.text.numbers import score, setting
from cddpm.tracking import names


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


def best(sweep: Path) -> tuple[float, int] | None:
    """Objective and number of the best trial so far."""
    first = next(iter(results(sweep)), None)
    return (first.objective, first.number) if first else None


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


FRONT = "pareto.json"


@dataclass(frozen=True)
class Aim:
    """Something that is traded off, searched for or only recorded."""

    metric: str
    goal: Literal["maximize", "minimize"]


def front(values: Sequence[Mapping[str, float]], aims: Sequence[Aim | ObjectiveConfig]) -> list[int]:
    """Indices of the points on the front, best first in the first objective; of equal points the earliest.

    A point is off the front if another is at least as good in every objective and better in one (Pareto dominance).
    """
    signs = np.array([1.0 if aim.goal == "maximize" else -1.0 for aim in aims])
    table = np.array([[point[aim.metric] for aim in aims] for point in values]).reshape(len(values), len(aims)) * signs
    order = np.lexsort((np.arange(len(table)), *(-table.T[::-1])))
    kept: list[int] = []
    for index in order:  # best first: only what came before can beat or equal it
        if not kept or not (table[kept] >= table[index]).all(axis=1).any():
            kept.append(int(index))
    return kept


def front_members(sweep: Path, config: ExperimentConfig, results: Sequence[TrialResult]) -> list[dict[str, Any]]:
    """The front over all scoring points of all finished trials: trial, number, params and values of each.

    Points of a trial that were made before there were several objectives are left out.
    """
    found: list[dict[str, Any]] = []
    for result in results:
        for point in trials.read_points(trials.folder_of(sweep, result.number)):
            if all(aim.metric in point.values for aim in config.search.aims):
                params = {**result.params, **point.params}
                found.append({"trial": result.number, "number": point.number, "params": params, "values": point.values})
    return [found[i] for i in front([member["values"] for member in found], config.search.aims)]


def save_front(sweep: Path, config: ExperimentConfig, points: Sequence[Mapping[str, Any]]) -> Path:
    """Write ``pareto.json``; returns its path."""
    aims = [to_dict(aim) for aim in config.search.aims]
    artifact.write_json(sweep / FRONT, {"objectives": aims, "points": list(points)})
    return sweep / FRONT


MOST_TRIALS = 10


def note(config: ExperimentConfig, rows: Sequence[Row]) -> str:
    """The leaderboard of a finished sweep (``rows`` as they are shown to the person), and links.

    The best ``MOST_TRIALS`` trials and every contender on test are in it; how many others there are is said.
    """
    objective, model = config.search.objective, config.tracking.registered_model
    tested = sorted({name for row in rows for name in row.test or {}})
    shown = [row for row in rows if row.test is not None or row in rows[:MOST_TRIALS]]
    head = ["trial", f"validation {objective}", *(f"test {objective}: {name}" for name in tested), "state", "settings"]
    lines = [head, ["---", *("---:" for _ in range(1 + len(tested))), "---", "---"]]
    for row in shown:
        test = [score((row.test or {}).get(name)) for name in tested]
        settings = ", ".join(f"{path.rsplit('.', 1)[-1]} {setting(value)}" for path, value in row.settings.items())
        lines.append([row.name, score(row.validation), *test, row.state, settings or "as configured"])
    table = "\n".join(f"| {' | '.join(_cell(text) for text in line)} |" for line in lines)
    left = len(rows) - len(shown)
    parts = [
        f"Best by **{objective} on validation**; test was scored once, at the operating points of validation.",
        table,
        *([f"And {left} more, in `leaderboard.csv` among the artifacts."] if left else []),
        f"[Registered model `{model}`](#/models/{model}) · pictures, tables and `leaderboard.csv` are among this run's "
        f"artifacts · the whole sweep on one page: `{command('cddpm', 'report', config.name)}`",
        f"The trials alone, in the list of runs: ``tags.`{names.SWEEP}` = '{config.name}' and tags.`{names.KIND}` = "
        f"'{names.KIND_TRIAL}'``",
    ]
    return "\n\n".join(parts) + "\n"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
