"""The landscape of the search: which settings matter, the objective along each, and what is traded for what."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cddpm.config import Choice, Parameter, Space
from cddpm.errors import SearchError
from cddpm.report.chart import MARK, SERIES, Chart, a_part, bars, chart, dots, line, mark, told
from cddpm.report.document import Block, Cell, Charts, Section, Table, Words, cell, described, short_names, shown
from cddpm.scoring.glossary import describe
from cddpm.search import importance as importances
from cddpm.search import space as spaces
from cddpm.search.leaderboard import Aim, front
from cddpm.search.point import Point
from cddpm.search.record import FRONT, SweepRecord, TrialRecord
from cddpm.text.numbers import NOTHING

BINS = 12


@dataclass(frozen=True)
class Observation:
    """Settings by dotted path, the objective, its value per data set, and where it was made."""

    settings: Mapping[str, Any]
    objective: float
    datasets: Mapping[str, float]
    place: str
    trial: int


def of_trials(record: SweepRecord) -> list[Observation]:
    """One per finished training trial, at its best scoring settings."""
    own = spaces.defaults(record.config.search.training.space, record.config)
    found = [(t, t.result.best) for t in record.finished if t.result is not None]
    return [_observation(record, {**own, **t.params}, best, f"trial {t.name}", t) for t, best in found]


def of_settings(record: SweepRecord) -> list[Observation]:
    """One per scoring setting of every finished trial; what a setting does not say is as configured."""
    own = spaces.defaults(record.config.search.scoring.space, record.config)
    found = [(t, p) for t in record.finished for p in t.points]
    return [_observation(record, {**own, **p.params}, p, f"trial {t.name}, setting {p.number}", t) for t, p in found]


def _observation(
    record: SweepRecord, settings: Mapping[str, Any], point: Point, place: str, trial: TrialRecord
) -> Observation:
    metric = record.config.search.objective
    datasets = {name: values[metric] for name, values in point.datasets.items() if metric in values}
    return Observation(settings, point.objective, datasets, place, trial.number)


def importance(record: SweepRecord) -> Section:
    """Share of the objective's variance that each setting explains, per level."""
    metric = record.config.search.objective
    levels = {
        "training": (record.config.search.training.space, [(o.settings, o.objective) for o in of_trials(record)]),
        "scoring": (record.config.search.scoring.space, _within_trials(of_settings(record))),
    }
    words = {
        "training": f"between trainings, of validation {metric} at each training's best scoring settings",
        "scoring": f"between scoring settings, of validation {metric} less the mean of the same training",
    }
    found: list[Chart] = []
    missing: list[Block] = []
    for level, (space, rows) in levels.items():
        shares = importances.importance(space, rows) if space else {}
        if shares:
            found.append(_bars(level, shares, words[level], len(rows)))
        elif space:
            why = f"{len(rows)} values are too few or all the same; at least {importances.FEWEST} are needed."
            missing.append(Words(f"Importance of {level} settings: {why}", "missing"))
    blocks = [Charts(found), *missing] if found else missing or [Words("No settings were searched.", "note")]
    return Section("importance", "Importance of settings", blocks)


def _within_trials(observations: Sequence[Observation]) -> list[importances.Observation]:
    """Differences between trainings are taken out: each value less the mean of its trial."""
    values: dict[int, list[float]] = {}
    for o in observations:
        values.setdefault(o.trial, []).append(o.objective)
    means = {trial: sum(v) / len(v) for trial, v in values.items()}
    return [(o.settings, o.objective - means[o.trial]) for o in observations]


def _bars(level: str, shares: Mapping[str, float], words: str, count: int) -> Chart:
    names = short_names(shares)
    drawn = f", on {min(count, importances.MOST):,} of {count:,} values" if count > importances.MOST else ""
    return bars(
        [names[path] for path in shares],
        list(shares.values()),
        [f"{share:.0%}" for share in shares.values()],
        f"Importance of {level} settings",
        f"Share of the variance {words}, that each {level} setting explains alone (functional ANOVA{drawn}). With few values "
        "it is a hint, not a measurement.",
        "share of variance",
    )


def slices(record: SweepRecord) -> Section:
    """The objective against every searched setting."""
    search = record.config.search
    found = [
        *_slices(record, "training", search.training.space, of_trials(record)),
        *_slices(record, "scoring", search.scoring.space, of_settings(record)),
    ]
    title = "Slices through the space"
    if not found:
        return Section("slices", title, [Words("No finished trial, or nothing was searched.", "missing")])
    words = (
        "On validation. Of a training setting, each dot is one training trial at its best scoring settings; of a scoring "
        "setting, each dot is one setting tried on the reconstructions of one training trial. Lines and bars: the best found "
        "there, over all that was tried. Diamond: the settings of the best trial, mean over data sets."
    )
    return Section("slices", title, [Words(words), Charts(found)])


def _slices(record: SweepRecord, level: str, space: Space, observations: Sequence[Observation]) -> Iterator[Chart]:
    if len(observations) < 2:
        return
    metric, datasets, names = record.config.search.objective, _datasets(record), short_names(space)
    drawn = len(a_part(len(observations), len(datasets)))
    for path, parameter in space.items():
        yield chart(
            [*_traces(observations, datasets, parameter, path), *_champion(record, level, parameter, path)],
            f"Validation {metric} against {path}",
            f"{drawn:,} of {len(observations):,} tried are drawn.",
            names[path],
            f"validation {metric}",
            **_axis(parameter, path),
        )


def _axis(parameter: Parameter, path: str) -> dict[str, Any]:
    if isinstance(parameter, Choice):
        ticks = [told(shown(path, value)) for value in parameter.choice]
        return {
            "xaxis_tickvals": list(range(len(ticks))),
            "xaxis_ticktext": ticks,
            "xaxis_range": [-0.6, len(ticks) - 0.4],
            "xaxis_showgrid": False,
        }
    return {"xaxis_type": "log"} if parameter.log else {}


def _datasets(record: SweepRecord) -> list[str | None]:
    """Data sets apart if there are several; None stands for the objective itself."""
    names = record.config.objective_datasets
    return list(names) if 1 < len(names) <= len(SERIES) else [None]


def _traces(
    observations: Sequence[Observation], datasets: Sequence[str | None], parameter: Parameter, path: str
) -> list[Any]:
    """Dots, and over them lines, or bars at choices, of the best; at a choice, data sets stand side by side."""
    width = 0.6 / len(datasets) if isinstance(parameter, Choice) else 0.0
    tried, best = [], []
    for index, dataset in enumerate(datasets):
        name, colour, middle = dataset or "tried", SERIES[index], (index - (len(datasets) - 1) / 2) * width
        x, y, places = _points(observations, dataset, parameter, path)
        drawn = a_part(x.size, len(datasets))
        jitter = width * np.random.default_rng(index).uniform(-0.4, 0.4, len(drawn))
        tips = [f"{places[i]}: {dataset or ''} {y[i]:.3f}" for i in drawn]
        tried.append(dots(x[drawn] + middle + jitter, y[drawn], tips, name, colour))
        at, top = envelope(x, y, each=bool(width))
        if width:
            ends = np.array([-width / 2, width / 2, np.nan])
            at, top = (at[:, None] + middle + ends).ravel(), np.repeat(top, 3)
        best.append(line(at, top, name, colour, showlegend=False))
    return [*tried, *best]


def _champion(record: SweepRecord, level: str, parameter: Parameter, path: str) -> Iterator[Any]:
    """The champion's value of this setting, at its own objective."""
    if (champion := record.champion) is not None and (result := champion.result) is not None:
        own = champion.params if level == "training" else result.best.params
        value = own.get(path, spaces.defaults({path: parameter}, record.config)[path])
        tip = f"trial {champion.name}: {path} {shown(path, value)}, {result.objective:.3f}"
        yield mark(_positions(parameter, [value]), [result.objective], [tip], "best")


def _points(
    observations: Sequence[Observation], dataset: str | None, parameter: Parameter, path: str
) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Places on the axis, values, and where they were made; without what is missing or has no place there."""
    values = [o.objective if dataset is None else o.datasets.get(dataset) for o in observations]
    x, y = _positions(parameter, [o.settings[path] for o in observations]), np.array(values, float)
    known = np.flatnonzero(np.isfinite(x) & np.isfinite(y))
    return x[known], y[known], [observations[i].place for i in known.tolist()]


def _positions(parameter: Parameter, values: Sequence[Any]) -> np.ndarray:
    """Where values stand on the axis: choices by their index, numbers as they are.

    NaN for what is no choice, and for what a logarithmic axis cannot show.
    """
    if isinstance(parameter, Choice):
        places = {spaces.encode(value): float(i) for i, value in enumerate(parameter.choice)}
        return np.array([places.get(spaces.encode(value), np.nan) for value in values])
    return np.array([np.nan if v is None or (parameter.log and v <= 0) else float(v) for v in values])


def envelope(x: np.ndarray, y: np.ndarray, each: bool) -> tuple[np.ndarray, np.ndarray]:
    """The best of ``y`` per value of ``x`` (``each``, or if these are few), else per bin of as many points.

    At the place where it was found; ``x`` and ``y`` are (N,).
    """
    order = np.argsort(x, kind="stable")
    values = np.unique(x)
    if each or values.size <= BINS:
        groups = [order[x[order] == place] for place in values]
    else:
        groups = np.array_split(order, max(1, min(BINS, x.size // 8)))
    best = np.array([group[np.argmax(y[group])] for group in groups], int)
    return x[best], y[best]


_ANCHOR, _TITLE = "pareto", "Trade-offs"
FALSE_POSITIVES = "false_positive_rate"


def tradeoff(record: SweepRecord) -> Section:
    """The Pareto front. Raises ``SearchError`` for a damaged one."""
    if record.pareto is None:
        return _of_one_objective(record)
    try:
        return _of_front(record, record.pareto)
    except (KeyError, TypeError, ValueError) as error:
        raise SearchError(
            f"{record.folder / FRONT}: not a Pareto front ({error!r}); --resume the sweep to make it again"
        ) from error


def aims(entries: Sequence[Mapping[str, Any] | str]) -> list[Aim]:
    """Objectives as ``pareto.json`` names them: with metric and goal, or by metric alone, whose better side is known."""
    return [
        Aim(entry, _goal(entry))
        if isinstance(entry, str)
        else Aim(entry["metric"], entry.get("goal") or _goal(entry["metric"]))
        for entry in entries
    ]


def _goal(metric: str) -> Any:
    try:
        return "minimize" if describe(metric).better == "lower" else "maximize"
    except KeyError:
        return "minimize" if "seconds" in metric else "maximize"


def _of_front(record: SweepRecord, raw: Mapping[str, Any]) -> Section:
    objectives, points = aims(raw["objectives"]), raw["points"]
    if not points:
        return Section(_ANCHOR, _TITLE, [Words("No point has all objectives yet.", "missing")])
    first, *others = objectives
    paths = list(dict.fromkeys(path for p in points for path in p["params"]))
    names = short_names(paths)
    lines = [
        [
            Cell(f"{int(p['trial']):04d} / {p['number']}", float(p["trial"])),
            *(cell(float(p["values"][o.metric])) for o in objectives),
            *(_setting(path, p["params"]) for path in paths),
        ]
        for p in points
    ]
    caption = "Points that no other beats in everything, on validation: training trial / scoring setting."
    columns = ["point", *(f"{o.metric} ({o.goal})" for o in objectives), *names.values()]
    return Section(
        _ANCHOR, _TITLE, [Charts([_pair(points, first, other) for other in others]), Table(caption, columns, lines)]
    )


def _setting(path: str, params: Mapping[str, Any]) -> Cell:
    value = params.get(path)
    sortable = isinstance(value, int | float) and not isinstance(value, bool)
    return Cell(shown(path, value), float(value) if sortable else None) if path in params else Cell(NOTHING)  # type: ignore[arg-type]


def _pair(points: Sequence[Mapping[str, Any]], y: Aim, x: Aim) -> Chart:
    values = [p["values"] for p in points]
    across, up = np.array([(v[x.metric], v[y.metric]) for v in values], float).T
    best = sorted(front(values, [y, x]), key=lambda i: across[i])
    tips = [
        f"trial {p['trial']}, setting {p['number']}: {y.metric} {up[i]:.3g}, {x.metric} {across[i]:.3g}; "
        f"{described(dict(p['params']))}"
        for i, p in enumerate(points)
    ]
    return chart(
        [
            line(across[best], up[best], "front in these two", MARK, line_shape="hv"),
            dots(across, up, tips, "front in all objectives", SERIES[0]),
        ],
        f"{y.metric} against {x.metric} on the Pareto front",
        "Both on validation, of all points of the Pareto front.",
        f"{x.metric} ({x.goal})",
        f"{y.metric} ({y.goal})",
    )


def _of_one_objective(record: SweepRecord) -> Section:
    """Not searched for, but recorded: the objective against false positives in healthy scans."""
    metric, found = record.config.search.objective, _against_healthy(record)
    if len(found) < 2:
        return Section(_ANCHOR, _TITLE, [Words("One objective was searched, so there is no Pareto front.", "note")])
    up, across = np.array([(objective, 100 * healthy) for objective, healthy, _ in found]).T
    both = [Aim(metric, "maximize"), Aim(FALSE_POSITIVES, "minimize")]
    best = front([{metric: up, FALSE_POSITIVES: across} for up, across, _ in found], both)
    best.sort(key=lambda i: across[i])
    drawn = a_part(len(found))
    tips = [f"{words} ({metric} {o:.3f}, {h:.2%} of healthy brains)" for o, h, words in found]
    shown = chart(
        [
            dots(across[drawn], up[drawn], [tips[i] for i in drawn], "tried", SERIES[0]),
            line(across[best], up[best], "", MARK, line_shape="hv", showlegend=False),
            mark(across[best], up[best], [tips[i] for i in best], "not dominated"),
        ],
        f"Validation {metric} against false positives in healthy scans",
        f"Scoring settings, each at its own operating point; {len(drawn):,} of {len(found):,} are drawn, and all diamonds. One "
        "objective was searched; this front was not looked for, only recorded.",
        "predicted part of healthy brains (%)",
        f"validation {metric}",
    )
    return Section(_ANCHOR, _TITLE, [Charts([shown])])


def _against_healthy(record: SweepRecord) -> list[tuple[float, float, str]]:
    return [
        (
            p.objective,
            p.datasets["healthy"][FALSE_POSITIVES],
            f"trial {t.name}, setting {p.number}: {described(p.params)}",
        )
        for t in record.finished
        for p in t.points
        if FALSE_POSITIVES in p.datasets.get("healthy", {})
    ]
