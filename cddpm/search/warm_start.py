"""What a sweep learns from earlier ones: their finished trials for the sampler, their best scoring settings to try first.

A trial of an earlier sweep counts if its objective and its data are those of this sweep and its settings lie in this space.
What was found is kept in ``<sweep>/warm_start.json`` at the first start, so that a resumed sweep knows no more and no less.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cddpm import artifact
from cddpm.campaign import IDENTITY
from cddpm.config import ExperimentConfig, active, flat, parse, to_dict, value_at, with_values
from cddpm.errors import ConfigError, SearchError
from cddpm.search import record
from cddpm.search import space as spaces
from cddpm.search import trial as trials
from cddpm.search.trial import TrialResult
from cddpm.text.likeness import did_you_mean

FILE = "warm_start.json"
SCORING_POINTS = 5
"""Scoring settings of so many earlier trials, the best ones, are tried first."""
_OWN_BUSINESS = ("name", "output_dir", "storage", "tracking.", "compute.", "search.", "data.")
"""Settings in which earlier trials may differ without a word (data, and how they are prepared, are compared by themselves)."""


@dataclass(frozen=True)
class Trial:
    """A finished trial of an earlier sweep, as the study takes it."""

    name: str
    params: dict[str, Any]
    value: float


@dataclass(frozen=True)
class Earlier:
    """What earlier sweeps give."""

    trials: list[Trial]
    scoring: list[dict[str, Any]]
    """Scoring settings by dotted path."""
    said: list[str]
    """What was left out and why, and what differs."""


def earlier(sweep: Path, config: ExperimentConfig, store: str) -> Earlier:
    """What ``search.warm_start`` gives to the sweep in the folder ``sweep`` on the data ``store``.

    Raises ``SearchError`` for a sweep that is not there, or a damaged file.
    """
    path = sweep / FILE
    if not path.exists():
        artifact.write_json(path, asdict(gathered(sweep.parent, config, store)))
    return artifact.read_json(path, Earlier, "a record of a warm start", "delete it to look again", SearchError)


def gathered(sweeps: Path, config: ExperimentConfig, store: str) -> Earlier:
    """Look at all sweeps that ``config`` names, below ``sweeps``. Raises ``SearchError`` for one that is not there."""
    found, said, results = list[Trial](), list[str](), list[TrialResult]()
    for name in config.search.warm_start:
        folder = sweeps / name
        if not (folder / IDENTITY).exists():
            there = sorted(path.parent.name for path in sweeps.glob(f"*/{IDENTITY}"))
            raise SearchError(f"search.warm_start: {folder}: there is no such sweep{did_you_mean(name, there)}")
        if reason := _other_task(folder, config, store):
            said.append(f"sweep '{name}' is left out: {reason}")
            continue
        for result in record.results(folder):
            taken, line = _taken(folder, config, result)
            found += [taken] if taken else []
            results += [result] if taken else []
            said += [line] if line else []
    return Earlier(found, list(_scoring_points(config, results)), said)


def _other_task(folder: Path, config: ExperimentConfig, store: str) -> str | None:
    """Why nothing of an earlier sweep can be compared with this one."""
    identity = "the settings that a sweep began with"
    before = artifact.read_json(folder / IDENTITY, dict[str, Any], identity, "restore it", SearchError)
    now, entered = flat(to_dict(config)), record.read_origin(folder)
    pairs = {
        "search.objective": (before.get("search.objective"), config.search.objective),
        "data sets of the objective": (
            before.get("search.datasets") or before.get("data.unhealthy"),
            list(config.objective_datasets),
        ),
        "data.fold": (before.get("data.fold"), config.data.fold),
        "data.healthy": (before.get("data.healthy"), now["data.healthy"]),
        "data (slice store)": (entered.store if entered else None, store),
    }
    other = [f"{what} {was}, here {is_}" for what, (was, is_) in pairs.items() if was != is_]
    return "; ".join(other) or None


def _taken(folder: Path, config: ExperimentConfig, result: TrialResult) -> tuple[Trial | None, str | None]:
    """The trial as the study takes it, and what is to be said of it."""
    name, path = f"{folder.name}/{result.number:04d}", trials.folder_of(folder, result.number) / trials.CONFIG
    space = config.search.training.space
    try:
        then = parse(json.loads(path.read_text()), str(path))
    except (ConfigError, OSError, ValueError) as error:
        return None, f"trial {name} is left out: its configuration cannot be read ({str(error).splitlines()[0]})"
    settings = spaces.defaults(space, then)
    searched = list(active(space, lambda asked: value_at(config, asked), settings))
    params = spaces.point(space, {path: settings[path] for path in searched})
    outside = [f"{path} {settings[path]}" for path in searched if path not in params]
    if outside:
        return None, f"trial {name} is left out: {', '.join(outside)} is not in this space"
    here = with_values(config, {path: settings[path] for path in searched}, name)
    if then.data.preparation != here.data.preparation:
        return None, f"trial {name} is left out: its scans were prepared otherwise ({then.data.preparation})"
    differs = list(_differences(then, config, {path: settings[path] for path in searched}))
    note = (
        f"trial {name} had other settings: {', '.join(differs[:4])}{' ...' if len(differs) > 4 else ''}"
        if differs
        else None
    )
    return Trial(name, params, result.objective), note


def _differences(then: ExperimentConfig, config: ExperimentConfig, settings: Mapping[str, Any]) -> Iterator[str]:
    """Settings outside of the space in which an earlier trial was another one than ``config`` would be."""
    was, now = flat(to_dict(then)), {**flat(to_dict(config)), **settings}
    for path in sorted(was.keys() | now.keys()):
        if not path.startswith(_OWN_BUSINESS) and was.get(path) != now.get(path):
            yield f"{path} {was.get(path)}, here {now.get(path)}"


def _scoring_points(config: ExperimentConfig, results: list[TrialResult]) -> Iterator[dict[str, Any]]:
    """The best scoring settings of the best trials, those that lie in this space, each once."""
    space, seen = config.search.scoring.space, list[dict[str, Any]]()
    for result in sorted(results, key=lambda r: -r.objective):
        known = {path: value for path, value in result.best.params.items() if path in space}
        inside = spaces.values(space, spaces.point(space, known))
        settings = {p: inside[p] for p in active(space, lambda asked: value_at(config, asked), inside) if p in inside}
        if inside.keys() == known.keys() and settings and settings not in seen and len(seen) < SCORING_POINTS:
            seen.append(settings)
            yield settings


def with_scoring_points(config: ExperimentConfig, points: list[dict[str, Any]]) -> ExperimentConfig:
    """``config`` whose inner searches try ``points`` first, after those that it names itself."""
    if not points:
        return config
    named = list(config.search.scoring.start)
    return with_values(config, {"search.scoring.start": [*named, *points]}, "search.warm_start")
