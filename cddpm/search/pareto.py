"""The Pareto front: points that no other point beats in one objective without losing in another."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from cddpm import artifact
from cddpm.config import ExperimentConfig, ObjectiveConfig, to_dict
from cddpm.search import trial as trials
from cddpm.search.trial import TrialResult

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


def members(sweep: Path, config: ExperimentConfig, results: Sequence[TrialResult]) -> list[dict[str, Any]]:
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


def save(sweep: Path, config: ExperimentConfig, points: Sequence[Mapping[str, Any]]) -> Path:
    """Write ``pareto.json``; returns its path."""
    aims = [to_dict(aim) for aim in config.search.aims]
    artifact.write_json(sweep / FRONT, {"objectives": aims, "points": list(points)})
    return sweep / FRONT
