"""The course of a sweep: what was found when, how trainings went, and where the time went."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.ticker import MaxNLocator

from cddpm.report.chart import INK, LINE, MARK, SERIES, Chart
from cddpm.report.document import Cell, Section, cell, charts, duration, figure, paragraph, table
from cddpm.search.record import History, SweepRecord, TrialRecord
from cddpm.tracking import names
from cddpm.training import stages

MOST_CURVES = 40
"""Curves in one chart: the champion's and those of the best other trials."""


def history(record: SweepRecord) -> Section:
    """Best value so far over training trials, and over the scoring settings of each trial."""
    figures = [*_over_trials(record), *_over_settings(record)]
    body = charts(figures) if figures else paragraph("No trial has a value yet.", "missing")
    return Section("history", "Course of the search", body)


def _over_trials(record: SweepRecord) -> Iterator[str]:
    finished = sorted(record.finished, key=lambda t: t.number)
    stopped = [t for t in record.trials if t.preview is not None]
    if not finished:
        return
    metric, best = record.config.search.objective, record.champion
    values = [t.objective or 0.0 for t in finished]
    with Chart("history-trials", f"Validation {metric} of each training trial and the best so far") as chart:
        chart.axes.step(
            [t.number for t in finished], np.maximum.accumulate(values), where="post", color=INK, label="best so far"
        )
        chart.dots([t.number for t in finished], values, [_tip(t) for t in finished], 0, "finished")
        if stopped:
            low = [t.preview or 0.0 for t in stopped]
            chart.dots(
                [t.number for t in stopped],
                low,
                [f"trial {t.name}: {t.note}" for t in stopped],
                1,
                "stopped early: preview",
                hollow=True,
            )
        if best is not None:
            chart.mark([best.number], [best.objective or 0.0], "best", [_tip(best)])
        chart.axes.set_xlabel("training trial")
        chart.axes.set_ylabel(f"validation {metric}")
        chart.axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        chart.legend()
    failed = sum(t.state == "failed" for t in record.trials)
    yield figure(
        chart.svg(),
        f"Validation {metric} of every training trial, in the order of their numbers, each at the best of its scoring "
        f"settings. Failed trials: {failed}.",
    )


def _tip(trial: TrialRecord) -> str:
    return f"trial {trial.name}: {trial.objective:.3f} {trial.note}".strip()


def _over_settings(record: SweepRecord) -> Iterator[str]:
    shown = [t for t in _few(record) if len(t.points) > 1]
    if not shown:
        return
    metric = record.config.search.objective
    with Chart("history-settings", f"Best validation {metric} against scoring settings tried") as chart:
        for trial, look in _looks(record, shown):
            x, y = _improvements([p.objective for p in trial.points])
            chart.axes.step(x, y, where="post", **look)
        chart.axes.set_xlabel("scoring settings tried")
        chart.axes.set_ylabel(f"best validation {metric} so far")
        chart.legend()
    total = sum(len(t.points) for t in record.trials)
    yield figure(
        chart.svg(),
        f"Best validation {metric} so far over the scoring settings of a trial, one line per trial"
        f"{_some(record, shown)}; {total:,} settings in all. The first is the configuration's own.",
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


def _looks(record: SweepRecord, shown: Sequence[TrialRecord]) -> Iterator[tuple[TrialRecord, dict[str, Any]]]:
    """The best trial stands out; up to four others have colours of their own, more are grey."""
    best = record.champion
    others = [t for t in shown if t is not best]
    for index, trial in enumerate(others):
        few = len(others) <= len(SERIES)
        label = f"trial {trial.name}" if few else "other trials" if index == 0 else None
        colour = SERIES[index] if few else LINE
        yield trial, {"color": colour, "label": label, "linewidth": 1.4 if few else 1.0, "zorder": 2}
    if best is not None and best in shown:
        yield best, {"color": MARK, "label": f"trial {best.name} (best)", "linewidth": 2.0, "zorder": 4}


def training(record: SweepRecord) -> Section:
    """Losses and previews over images seen, for the encoder and the model."""
    wanted = [
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
            f"preview {record.config.search.objective}",
            "Preview of the objective on a few unhealthy validation volumes; trials are stopped by it",
        ),
        (
            stages.ENCODER,
            names.PRETRAIN_LOSS,
            "pretraining loss",
            "Loss of the encoder's pretraining, on training slices",
        ),
        (
            stages.ENCODER,
            names.PRETRAIN_VAL_LOSS,
            "pretraining validation loss",
            "Pretraining loss on healthy validation slices",
        ),
    ]
    shown = _few(record)
    histories = {stage: [(t, record.history(t, stage)) for t in shown] for stage in (stages.CHECKPOINT, stages.ENCODER)}
    figures = [f for stage, *words in wanted if (f := _curves(record, histories[stage], stage, *words))]
    missing = "No training has been validated yet, or the folder of artifacts beside the sweep is gone."
    return Section("training", "Training curves", charts(figures) if figures else paragraph(missing, "missing"))


def _curves(
    record: SweepRecord,
    histories: Iterable[tuple[TrialRecord, History]],
    stage: str,
    key: str,
    axis: str,
    words: str,
) -> str | None:
    rows = {t.number: [(r["images"], r[key]) for r in history if key in r] for t, history in histories}
    shown = [t for t, _ in histories if rows[t.number]]
    if not shown:
        return None
    with Chart(f"curve-{stage}-{key.replace('/', '-')}", f"{axis} against images seen") as chart:
        for trial, look in _looks(record, shown):
            x, y = zip(*rows[trial.number], strict=True)
            chart.axes.plot(x, y, marker="o", markersize=3 if len(shown) <= 5 else 0, **look)
        chart.axes.set_xlabel("images seen")
        chart.axes.set_ylabel(axis)
        chart.axes.xaxis.set_major_formatter(lambda value, _: _thousands(value))
        chart.legend()
    return figure(chart.svg(), f"{words}{_some(record, shown)}.")


def _thousands(images: float) -> str:
    for size, unit in ((1e6, " M"), (1e3, " k")):
        if images >= size:
            return f"{images / size:g}{unit}"
    return f"{images:g}"


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
        return Section("cost", "Cost", paragraph("No trial has finished, so no time is known.", "missing"))
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
    return Section(
        "cost",
        "Cost",
        paragraph(text)
        + charts([_bars(list(costs.values()))])
        + table(caption, ["trial", *(name for name, _ in STAGES), "all"], lines),
    )


def _bars(costs: Sequence[Cost]) -> str:
    sums = [sum(part(c) for c in costs) for _, part in STAGES]
    with Chart("cost", "Time by stage", height=1.9) as chart:
        rows = range(len(STAGES) - 1, -1, -1)
        bars = chart.axes.barh(rows, sums, color=SERIES[0], height=0.6)
        chart.axes.bar_label(
            bars, [f"{duration(s)} ({s / max(1e-9, sum(sums)):.0%})" for s in sums], color=INK, fontsize=8.5, padding=3
        )
        chart.axes.set_yticks(rows, [name.replace(", ", ",\n", 1) for name, _ in STAGES])
        chart.axes.set_xlim(0, 1.45 * max(*sums, 1e-9))
        chart.axes.set_xlabel("seconds")
        chart.axes.grid(False, axis="y")
    return figure(chart.svg(), f"Wall-clock time of {len(costs)} finished trials together, by stage.")
