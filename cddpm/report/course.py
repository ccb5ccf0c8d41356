"""The course of a sweep: what was found when, how trainings went, and where the time went."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cddpm.report.chart import GREY, MARK, SERIES, Chart, bars, chart, dots, line, mark
from cddpm.report.document import Cell, Charts, Section, Table, Words, cell
from cddpm.search.record import History, SweepRecord, TrialRecord
from cddpm.text.numbers import duration
from cddpm.tracking import names
from cddpm.training import stages

MOST_CURVES = 40
"""Curves in one chart: the champion's and those of the best other trials."""
CURVES = (
    (
        stages.CHECKPOINT,
        names.TRAIN_LOSS,
        "training loss",
        "Training loss (mean since the point before), on training slices",
    ),
    (stages.CHECKPOINT, names.VAL_LOSS, "validation loss", "Loss on healthy validation slices"),
    (
        stages.CHECKPOINT,
        names.MONITOR_OBJECTIVE,
        "preview {objective}",
        "Preview of the objective on a few unhealthy validation volumes; trials are stopped by it",
    ),
    (stages.ENCODER, names.PRETRAIN_LOSS, "pretraining loss", "Loss of the encoder's pretraining, on training slices"),
    (
        stages.ENCODER,
        names.PRETRAIN_VAL_LOSS,
        "pretraining validation loss",
        "Pretraining loss on healthy validation slices",
    ),
)
"""Stage, name in its history, axis and caption of each chart of training."""


def history(record: SweepRecord) -> Section:
    """Best value so far over training trials, and over the scoring settings of each trial."""
    found = [*_over_trials(record), *_over_settings(record)]
    missing = Words("No trial has a value yet.", "missing")
    return Section("history", "Course of the search", [Charts(found) if found else missing])


def _over_trials(record: SweepRecord) -> Iterator[Chart]:
    finished, best = sorted(record.finished, key=lambda t: t.number), record.champion
    if best is None:
        return
    metric = record.config.search.objective
    stopped = [t for t in record.trials if t.preview is not None]
    numbers, values = [t.number for t in finished], [t.objective or 0.0 for t in finished]
    failed = sum(t.state == "failed" for t in record.trials)
    yield chart(
        [
            line(numbers, np.maximum.accumulate(values), "best so far", GREY, line_shape="hv"),
            dots(numbers, values, map(_tip, finished), "finished", SERIES[0]),
            dots(
                [t.number for t in stopped],
                [t.preview or 0.0 for t in stopped],
                [f"trial {t.name}: {t.note}" for t in stopped],
                "stopped early: preview",
                SERIES[1],
                symbol="circle-open",
            ),
            mark([best.number], [best.objective or 0.0], [_tip(best)], "best"),
        ],
        f"Validation {metric} of each training trial and the best so far",
        f"In the order of their numbers, each at the best of its scoring settings. Failed trials: {failed}.",
        "training trial",
        f"validation {metric}",
        xaxis_dtick=1 if len(record.trials) <= 12 else None,
    )


def _tip(trial: TrialRecord) -> str:
    return f"trial {trial.name}: {trial.objective or 0.0:.3f} {trial.note}".strip()


def _over_settings(record: SweepRecord) -> Iterator[Chart]:
    shown = [t for t in _few(record) if len(t.points) > 1]
    if not shown:
        return
    metric, total = record.config.search.objective, sum(len(t.points) for t in record.trials)
    rows = [(t, *_improvements([p.objective for p in t.points])) for t in shown]
    yield chart(
        _lines(record, rows, "%{y:.3f} after %{x:,} settings", line_shape="hv"),
        f"Best validation {metric} against scoring settings tried",
        f"One line per trial{_some(record, shown)}; {total:,} settings in all. The first is the configuration's own.",
        "scoring settings tried",
        f"best validation {metric} so far",
    )


def _improvements(values: Sequence[float]) -> tuple[list[int], list[float]]:
    """Where the best so far rises, and the end: all that a step line needs."""
    best = np.maximum.accumulate(values)
    kept = [0, *(np.flatnonzero(np.diff(best)) + 1).tolist(), len(values) - 1]
    return [i + 1 for i in kept], [float(best[i]) for i in kept]


def _few(record: SweepRecord) -> list[TrialRecord]:
    """Finished trials, best first, then others; no more than a chart can show."""
    rest = [t for t in record.trials if t.result is None]
    return [*record.finished, *rest][:MOST_CURVES]


def _some(record: SweepRecord, shown: Sequence[TrialRecord]) -> str:
    return f" (the best {len(shown)})" if len(shown) < len(record.finished) else ""


def _lines(
    record: SweepRecord, rows: Sequence[tuple[TrialRecord, Sequence[float], Sequence[float]]], hover: str, **look: Any
) -> Iterator[Any]:
    """A line per trial: the best one stands out; up to four others have colours of their own, more are grey."""
    best = record.champion
    others = [row for row in rows if row[0] is not best]
    for index, (trial, x, y) in enumerate(others):
        words = f"trial {trial.name}: {hover}"
        if len(others) <= len(SERIES):
            yield line(x, y, f"trial {trial.name}", SERIES[index], words, **look)
        else:
            yield line(x, y, "other trials", GREY, words, line_width=1, showlegend=index == 0, **look)
    for trial, x, y in rows:
        if trial is best:
            yield line(x, y, f"trial {trial.name} (best)", MARK, f"trial {trial.name}: {hover}", line_width=3, **look)


def training(record: SweepRecord) -> Section:
    """Losses and previews over images seen, for the encoder and the model."""
    histories = {
        stage: [(t, record.history(t, stage)) for t in _few(record)] for stage in (stages.CHECKPOINT, stages.ENCODER)
    }
    found = [made for stage, *words in CURVES for made in _curves(record, histories[stage], *words)]
    missing = "No training has been validated yet, or the folder of artifacts beside the sweep is gone."
    return Section("training", "Training curves", [Charts(found) if found else Words(missing, "missing")])


def _curves(
    record: SweepRecord, histories: Sequence[tuple[TrialRecord, History]], key: str, name: str, words: str
) -> Iterator[Chart]:
    axis = name.format(objective=record.config.search.objective)
    rows = [
        (t, [r["images"] for r in history if key in r], [r[key] for r in history if key in r])
        for t, history in histories
    ]
    rows = [row for row in rows if row[1]]
    if rows:
        yield chart(
            _lines(record, rows, "%{y:.4g} after %{x:,} images", mode="lines+markers"),
            f"{axis} against images seen",
            f"{words}{_some(record, [t for t, *_ in rows])}.",
            "images seen",
            axis,
            xaxis_exponentformat="SI",
            xaxis_minexponent=3,
        )


@dataclass(frozen=True)
class Cost:
    """Seconds of one trial, by stage. ``rest``: reconstruction, starting workers, and waiting for another trial."""

    pretraining: float
    training: float
    scoring: float
    rest: float

    @property
    def total(self) -> float:
        """All of it."""
        return self.pretraining + self.training + self.scoring + self.rest


STAGES: tuple[tuple[str, Callable[[Cost], float]], ...] = (
    ("pretraining", lambda c: c.pretraining),
    ("training", lambda c: c.training),
    ("scoring settings", lambda c: c.scoring),
    ("reconstruction, start-up, waiting", lambda c: c.rest),
)


def cost_of(record: SweepRecord, trial: TrialRecord) -> Cost | None:
    """What a finished trial took; None for others. Stages that were found, not made, cost nothing."""
    result = trial.result
    if result is None:
        return None
    made = {
        kind: record.history(trial, kind) if kind in result.made else [] for kind in (stages.ENCODER, stages.CHECKPOINT)
    }
    before, training = seconds_of(made[stages.ENCODER], "pretrain"), seconds_of(made[stages.CHECKPOINT], "train")
    scoring = sum(p.seconds for p in trial.points)
    return Cost(before, training, scoring, max(0.0, result.seconds - before - training - scoring))


def seconds_of(history: History, stage: str) -> float:
    """Seconds of training steps in a history, from its images and speeds; validations are not in it."""
    total, before = 0.0, 0.0
    for row in history:
        speed = row.get(f"{stage}/images_per_second")
        total += (row["images"] - before) / speed if speed else 0.0
        before = row["images"]
    return total


def cost(record: SweepRecord) -> Section:
    """Seconds per stage, over the sweep and per trial."""
    costs = {t.name: c for t in record.finished if (c := cost_of(record, t)) is not None}
    if not costs:
        return Section("cost", "Cost", [Words("No trial has finished, so no time is known.", "missing")])
    settings = sum(len(t.points) for t in record.finished)
    scoring = sum(c.scoring for c in costs.values())
    text = (
        f"{settings:,} scoring settings took {duration(scoring)}: "
        f"{3600 * settings / scoring if scoring else 0:,.0f} settings per hour of one trial."
    )
    lines = [
        [Cell(name), *(cell(part(c), duration) for _, part in STAGES), cell(c.total, duration)]
        for name, c in sorted(costs.items())
    ]
    caption = (
        "Wall-clock time of every finished trial by stage. A stage that another trial or sweep had made costs nothing. "
        "Training is without its validations, which are in the last stage's column."
    )
    columns = ["trial", *(name for name, _ in STAGES), "all"]
    return Section("cost", "Cost", [Words(text), Charts([_bars(list(costs.values()))]), Table(caption, columns, lines)])


def _bars(costs: Sequence[Cost]) -> Chart:
    sums = [sum(part(c) for c in costs) for _, part in STAGES]
    return bars(
        [name for name, _ in STAGES],
        sums,
        [f"{duration(s)} ({s / max(1e-9, sum(sums)):.0%})" for s in sums],
        "Time by stage",
        f"Wall-clock time of {len(costs)} finished trials together, by stage.",
        "seconds",
    )
