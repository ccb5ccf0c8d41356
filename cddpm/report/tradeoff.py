"""What is traded for what: the Pareto front of a sweep with several objectives, or what one objective cost in healthy scans."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from cddpm.errors import SearchError
from cddpm.report.chart import MARK, SERIES, Chart, a_part, chart, dots, line, mark
from cddpm.report.document import Cell, Charts, Section, Table, Words, cell
from cddpm.report.setting import described, short_names, shown
from cddpm.scoring.glossary import describe
from cddpm.search.pareto import FRONT, Aim, front
from cddpm.search.record import SweepRecord
from cddpm.text.numbers import NOTHING

ANCHOR, TITLE = "pareto", "Trade-offs"
FALSE_POSITIVES = "false_positive_rate"


def section(record: SweepRecord) -> Section:
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
        return Section(ANCHOR, TITLE, [Words("No point has all objectives yet.", "missing")])
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
        ANCHOR, TITLE, [Charts([_pair(points, first, other) for other in others]), Table(caption, columns, lines)]
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
        return Section(ANCHOR, TITLE, [Words("One objective was searched, so there is no Pareto front.", "note")])
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
    return Section(ANCHOR, TITLE, [Charts([shown])])


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
