"""The landscape of the search space: which settings matter, the objective along each, and what is traded for what."""

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.ticker import LogLocator, NullFormatter

from cddpm.config import Choice, Parameter, Space
from cddpm.report.chart import INK, SERIES, Chart
from cddpm.report.document import Section, charts, figure, paragraph
from cddpm.report.setting import short_names, shown
from cddpm.search import importance as importances
from cddpm.search import space as spaces
from cddpm.search.record import SweepRecord
from cddpm.search.scoring_search import objective_datasets

MOST_DOTS = 4000
"""A random part of larger tables is drawn; lines are over all of it."""
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
    space, metric = record.config.search.training.space, record.config.search.objective
    own = spaces.defaults(space, record.config)
    return [
        Observation(
            {**own, **t.params},
            t.result.objective,
            _metrics(t.result.best.datasets, metric),
            f"trial {t.name}",
            t.number,
        )
        for t in record.finished
        if t.result is not None
    ]


def of_settings(record: SweepRecord) -> list[Observation]:
    """One per scoring setting of every finished trial; what a setting does not say is as configured."""
    space, metric = record.config.search.scoring.space, record.config.search.objective
    own = spaces.defaults(space, record.config)
    return [
        Observation(
            {**own, **p.params},
            p.objective,
            _metrics(p.datasets, metric),
            f"trial {t.name}, setting {p.number}",
            t.number,
        )
        for t in record.finished
        for p in t.points
    ]


def _metrics(datasets: Mapping[str, Mapping[str, float]], metric: str) -> dict[str, float]:
    return {name: values[metric] for name, values in datasets.items() if metric in values}


def importance(record: SweepRecord) -> Section:
    """Share of the objective's variance that each setting explains, per level."""
    metric = record.config.search.objective
    settings = of_settings(record)
    levels = {
        "training": (record.config.search.training.space, [(o.settings, o.objective) for o in of_trials(record)]),
        "scoring": (record.config.search.scoring.space, _within_trials(settings)),
    }
    words = {
        "training": f"between trainings, of validation {metric} at each training's best scoring settings",
        "scoring": f"between scoring settings, of validation {metric} less the mean of the same training",
    }
    figures, missing = [], []
    for level, (space, rows) in levels.items():
        shares = importances.importance(space, rows) if space else {}
        if shares:
            figures.append(_bars(level, shares, words[level], len(rows)))
        elif space:
            missing.append(
                f"Importance of {level} settings: {len(rows)} values are too few or all the same; at least "
                f"{importances.FEWEST} are needed."
            )
    body = (charts(figures) if figures else "") + "".join(paragraph(text, "missing") for text in missing)
    return Section("importance", "Importance of settings", body or paragraph("No settings were searched.", "note"))


def _within_trials(observations: Sequence[Observation]) -> list[importances.Observation]:
    """Differences between trainings are taken out: each value less the mean of its trial."""
    values: dict[int, list[float]] = {}
    for o in observations:
        values.setdefault(o.trial, []).append(o.objective)
    means = {trial: sum(v) / len(v) for trial, v in values.items()}
    return [(o.settings, o.objective - means[o.trial]) for o in observations]


def _bars(level: str, shares: Mapping[str, float], words: str, count: int) -> str:
    names = short_names(shares)
    with Chart(f"importance-{level}", f"Importance of {level} settings", height=0.7 + 0.27 * len(shares)) as chart:
        rows = range(len(shares) - 1, -1, -1)
        bars = chart.axes.barh(rows, list(shares.values()), color=SERIES[0], height=0.62)
        chart.axes.bar_label(bars, [f"{share:.0%}" for share in shares.values()], color=INK, fontsize=8.5, padding=3)
        chart.axes.set_yticks(rows, [names[path] for path in shares])
        chart.axes.set_xlim(0, 1.15 * max(shares.values()))
        chart.axes.set_xlabel("share of variance")
        chart.axes.grid(False, axis="y")
    drawn = f", on {min(count, importances.MOST):,} of {count:,} values" if count > importances.MOST else ""
    return figure(
        chart.svg(),
        f"Share of the variance {words}, that each {level} setting explains alone (functional ANOVA{drawn}). With few values "
        "it is a hint, not a measurement.",
    )


def slices(record: SweepRecord) -> Section:
    """The objective against every searched setting."""
    search = record.config.search
    figures = [
        *_slices(record, "training", search.training.space, of_trials(record)),
        *_slices(record, "scoring", search.scoring.space, of_settings(record)),
    ]
    if not figures:
        missing = paragraph("No finished trial, or nothing was searched.", "missing")
        return Section("slices", "Slices through the space", missing)
    words = (
        "On validation. Of a training setting, each dot is one training trial at its best scoring settings; of a scoring "
        "setting, each dot is one setting tried on the reconstructions of one training trial. Lines and bars: the best found "
        "there, over all that was tried. Diamond: the settings of the best trial, mean over data sets."
    )
    return Section("slices", "Slices through the space", paragraph(words) + charts(figures))


def _slices(record: SweepRecord, level: str, space: Space, observations: Sequence[Observation]) -> Iterator[str]:
    if len(observations) < 2:
        return
    drawn = random.Random(0).sample(observations, MOST_DOTS) if len(observations) > MOST_DOTS else observations
    names = short_names(space)
    for path, parameter in space.items():
        with Chart(f"slice-{level}-{path}", f"Validation {record.config.search.objective} against {path}") as chart:
            series = _series(record)
            for index, dataset in enumerate(series):
                look = _Look(index, len(series), dataset, parameter, path)
                look.draw(chart, drawn, observations)
            _mark_best(chart, record, level, path, parameter)
            _scale(chart, parameter, path)
            chart.axes.set_xlabel(names[path])
            chart.axes.set_ylabel(f"validation {record.config.search.objective}")
            chart.legend()
        yield figure(chart.svg(), _words(record.config.search.objective, path, len(drawn), len(observations)))


def _scale(chart: Chart, parameter: Parameter, path: str) -> None:
    if isinstance(parameter, Choice):
        ticks = [shown(path, value) for value in parameter.choice]
        turned = 30 if sum(map(len, ticks)) > 40 else 0
        chart.axes.set_xticks(range(len(ticks)), ticks, rotation=turned, ha="right" if turned else "center")
        chart.axes.set_xlim(-0.6, len(ticks) - 0.4)
        chart.axes.grid(False, axis="x")
    elif parameter.log:
        chart.axes.set_xscale("log")
        chart.axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0), numticks=8))
        chart.axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        chart.axes.xaxis.set_minor_formatter(NullFormatter())


def _series(record: SweepRecord) -> list[str | None]:
    """Data sets apart if there are several; None stands for the objective itself."""
    names = objective_datasets(record.config)
    return list(names) if 1 < len(names) <= len(SERIES) else [None]


def _value(observation: Observation, dataset: str | None) -> float | None:
    return observation.objective if dataset is None else observation.datasets.get(dataset)


@dataclass(frozen=True)
class _Look:
    """One data set's dots and best values in a slice; choices of several data sets stand side by side."""

    index: int
    count: int
    dataset: str | None
    parameter: Parameter
    path: str

    def draw(self, chart: Chart, drawn: Sequence[Observation], everything: Sequence[Observation]) -> None:
        x, y, places = self._points(drawn)
        tips = [f"{place}: {self.dataset or ''} {value:.3f}" for place, value in zip(places, y, strict=True)]
        width = 0.6 / self.count if isinstance(self.parameter, Choice) else 0.0
        jitter = np.random.default_rng(self.index).uniform(-0.4, 0.4, x.size) * width
        chart.dots(x + self._shift(width) + jitter, y, tips, self.index, self.dataset or "tried")
        whole_x, whole_y, _ = self._points(everything)
        at, best = envelope(whole_x, whole_y, isinstance(self.parameter, Choice))
        colour = SERIES[self.index]
        if width:
            chart.axes.hlines(
                best, at + self._shift(width) - width / 2, at + self._shift(width) + width / 2, colour, lw=2
            )
        else:
            chart.axes.plot(at, best, color=colour, zorder=4)

    def _shift(self, width: float) -> float:
        return (self.index - (self.count - 1) / 2) * width

    def _points(self, observations: Sequence[Observation]) -> tuple[np.ndarray, np.ndarray, list[str]]:
        """Places on the axis, values, and where they were made."""
        known = [(o, y) for o in observations if (y := _value(o, self.dataset)) is not None]
        x = _positions(self.parameter, [o.settings[self.path] for o, _ in known])
        inside = np.flatnonzero(np.isfinite(x))
        return x[inside], np.array([known[i][1] for i in inside], float), [known[i][0].place for i in inside]


def _positions(parameter: Parameter, values: Sequence[Any]) -> np.ndarray:
    """Where values stand on the axis: choices by their index, numbers as they are; NaN for what is no choice."""
    if not isinstance(parameter, Choice):
        return np.array([np.nan if v is None else float(v) for v in values])
    places = {spaces.encode(value): float(i) for i, value in enumerate(parameter.choice)}
    return np.array([places.get(spaces.encode(value), np.nan) for value in values])


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


def _mark_best(chart: Chart, record: SweepRecord, level: str, path: str, parameter: Parameter) -> None:
    """The champion's value of this setting, at its own objective."""
    champion = record.champion
    if champion is None or champion.result is None:
        return
    own = champion.params if level == "training" else champion.result.best.params
    value = own.get(path, spaces.defaults({path: parameter}, record.config)[path])
    place = _positions(parameter, [value])
    if np.isfinite(place).all():
        chart.mark(place, [champion.result.objective], "best", [f"{path} {shown(path, value)}"])


def _words(metric: str, path: str, drawn: int, count: int) -> str:
    part = f"; {drawn:,} of {count:,} dots are drawn" if drawn < count else ""
    return f"Validation {metric} against {path}{part}."
