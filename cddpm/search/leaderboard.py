"""Every trial of a sweep once, best first, as a table and as a note in Markdown; the Pareto front of several objectives.

On the front are the points that no other point beats in one objective without losing in another.
"""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from cddpm import artifact
from cddpm.config import ExperimentConfig, ObjectiveConfig, to_dict
from cddpm.search import record
from cddpm.search import trial as trials
from cddpm.search.champion import Contender
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


def rows(sweep: Path) -> list[Row]:
    """Every trial that has ended once: finished ones best first, then those stopped early, then failed ones.

    Of those stopped early the furthest comes first, of these the best preview. Raises ``SearchError`` for a damaged file.
    """
    found = record.trials_of(sweep)
    ended = [
        Row(f"{r.number:04d}", "finished", r.objective, None, {**r.params, **r.best.params}, r.seconds)
        for r in record.results(sweep)
    ]
    early = sorted((t.stop for t in found if t.stop), key=lambda s: (-s.images, -s.objective, s.number))
    ended += [Row(f"{s.number:04d}", "stopped early", None, None, s.params, note=s.note) for s in early]
    return ended + [Row(t.name, "failed", None, None, {}, note=t.error) for t in found if t.state == "failed"]


def with_test(config: ExperimentConfig, rows: list[Row], contenders: list[Contender]) -> list[Row]:
    """The leaderboard with test scores: in the champion's row, the first of ``contenders``; the others get rows of their own."""
    names = config.objective_datasets

    def scores(c: Contender) -> dict[str, float]:
        return {name: c.metric((name,), config.search.objective) for name in names}

    winner, *others = contenders
    own = [
        replace(row, name=f"champion = {row.name}", test=scores(winner))
        if row.name == f"{winner.trial:04d}" and row.state == "finished"
        else row
        for row in rows
    ]
    return [*own, *(Row(c.name, "for comparison", c.validation, scores(c), {}) for c in others)]


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


def front_members(sweep: Path, config: ExperimentConfig) -> list[dict[str, Any]]:
    """The front over all scoring points of all finished trials: trial, number, params and values of each.

    Points of a trial that were made before there were several objectives are left out.
    """
    found: list[dict[str, Any]] = []
    for result in record.results(sweep):
        for point in trials.read_points(trials.folder_of(sweep, result.number)):
            if all(aim.metric in point.values for aim in config.search.aims):
                params = {**result.params, **point.params}
                found.append({"trial": result.number, "number": point.number, "params": params, "values": point.values})
    return [found[i] for i in front([member["values"] for member in found], config.search.aims)]


def save_front(sweep: Path, config: ExperimentConfig, points: Sequence[Mapping[str, Any]]) -> Path:
    """Write ``pareto.json``; returns its path."""
    aims = [to_dict(aim) for aim in config.search.aims]
    artifact.write_json(sweep / record.FRONT, {"objectives": aims, "points": list(points)})
    return sweep / record.FRONT


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
