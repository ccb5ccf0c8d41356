"""What a person reads in the terminal before and after a sweep: the plan, the leaderboard, and the exact next commands.

With ``--dry-run``: the resolved space, the number and cost of trials, and what is there already.
"""

import shutil
import statistics
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rich.markup import escape

from cddpm.config import (
    Choice,
    Conditional,
    ExperimentConfig,
    Float,
    Integer,
    LevelConfig,
    Parameter,
    Test,
    TrackingConfig,
    value_at,
)
from cddpm.search.champion import PICTURE, Contender
from cddpm.search.forecast import Memory
from cddpm.search.leaderboard import Row
from cddpm.search.plan import Plan
from cddpm.search.sampler import point_count
from cddpm.search.sweep import Summary
from cddpm.text import Console, Table, command, name, near, whole
from cddpm.text.numbers import about, counted, score, setting, size
from cddpm.tracking.address import to_publish


def show_plan(plan: Plan, console: Console) -> None:
    """Print the plan; nothing was started."""
    config = plan.config
    console.print(f"[bold]plan of sweep '{escape(config.name)}'[/] (nothing is started)")
    for level in ("training", "scoring"):
        section: LevelConfig = getattr(config.search, level)
        drawn = (
            _space(plan, level, section) if section.space else f"{level}: settings as configured, nothing is searched"
        )
        console.print(drawn)
    for line in (*_how(plan), *_cost(plan), *_there(plan)):
        console.print(line)


def _space(plan: Plan, level: str, section: LevelConfig) -> Table:
    count = point_count(section, plan.config)
    table = Table(f"{level}: {counted(count, 'trial')} by {section.sampler}")
    for column in ("setting", "searched", "own value", "only if"):
        table.add_column(column)
    for path, parameter in sorted(section.space.items()):
        own = whole(_plain_value(value_at(plan.config, path)))
        table.add_row(name(path), _range(parameter), own, _condition(parameter))
    return table


def _range(parameter: Parameter) -> str:
    if isinstance(parameter, Choice):
        return ", ".join(whole(_plain_value(value)) for value in parameter.choice)
    if isinstance(parameter, Float):
        return f"{parameter.float[0]:g} to {parameter.float[1]:g}{' (log)' if parameter.log else ''}"
    if isinstance(parameter, Integer):
        step = f" by {parameter.step}" if parameter.step > 1 else ""
        return f"{parameter.int[0]} to {parameter.int[1]}{step}{' (log)' if parameter.log else ''}"
    raise TypeError(f"{type(parameter).__name__}: no parameter of a space")


def _condition(parameter: Conditional) -> str:
    either = [" and ".join(_test(path, test) for path, test in tests.items()) for tests in parameter.only_if]
    return " or ".join(either)


def _test(path: str, test: Test) -> str:
    asked = [f"above {test.above:g}"] if test.above is not None else []
    asked += [f"below {test.below:g}"] if test.below is not None else []
    asked += [f"= {' or '.join(map(_plain_value, test.one_of))}"] if test.one_of is not None else []
    asked += [f"not {' or '.join(map(_plain_value, test.none_of))}"] if test.none_of is not None else []
    return f"{name(path)} {escape(', '.join(asked))}"


def _plain_value(value: Any) -> str:
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_plain_value, value))}]"
    return f"{value:g}" if isinstance(value, float) else "none" if value is None else str(value)


def _how(plan: Plan) -> Iterator[str]:
    search = plan.config.search
    yield f"objectives: {', '.join(f'{aim.goal} {aim.metric}' for aim in search.aims)}"
    rungs = "; ".join(", ".join(f"{images:,}" for images in bracket) or "none" for bracket in plan.rungs)
    yield f"scheduler: {search.scheduler}" + (f", trials are compared after images: {rungs}" if plan.rungs else "")
    if search.preview_trials > 1 and plan.work.preview_points:
        tried = counted(min(search.preview_trials, point_count(search.scoring, plan.config)), "scoring setting")
        volumes = counted(plan.config.training.validation_volumes, "volume")
        yield f"  by the best of {tried} on up to {volumes} of each data set"
    if search.warm_start:
        yield f"warm start: {', '.join(map(whole, search.warm_start))}"
    limits = {
        "seconds": (search.maximum_seconds, plan.spent.seconds),
        "CPU-hours": (search.maximum_cpu_hours, plan.spent.cpu_hours),
        "GPU-hours": (search.maximum_gpu_hours, plan.spent.gpu_hours),
    }
    told = [f"{limit:g} {unit} ({spent:.3g} spent)" for unit, (limit, spent) in limits.items() if limit is not None]
    yield f"budget: {', '.join(told) or 'no limit'}"
    if plan.ended:
        yield f"trials that have ended already: {plan.ended} of {search.training.trials}"


def _cost(plan: Plan) -> Iterator[str]:
    work, seconds, config = plan.work, plan.seconds, plan.config
    yield (
        f"[bold]cost[/], at most (trials that are stopped early or find their stages cost less; {plan.validation_volumes} "
        "validation volumes):"
    )
    trials = counted(config.search.training.trials, "trial")
    known_by = "" if seconds["training"] is None else f", {plan.speed.told_by}"
    yield f"  training: {work.training_images:,} images in {trials}, {_time(seconds['training'])}{known_by}"
    yield f"  pretraining: {work.pretraining_images:,} images, {_time(seconds['pretraining'])}"
    passes = f"  reconstruction: {work.predicted_slices:,} forward passes of slices"
    yield passes + ("" if seconds["reconstruction"] is None else f", {_time(seconds['reconstruction'])}")
    if config.search.preview_trials > 1:
        yield f"  previews: {work.preview_points:,} points on fewer volumes"
    yield f"  scoring: {counted(work.scoring_points, 'point')}, {_time(seconds['scoring'])}"
    known = [value for value in seconds.values() if value]
    if known:
        yield f"  what is known of it: {about(sum(known))}, one training at a time, without validations and start-up"
    if plan.memory is not None:
        yield from _memory(plan.memory)


def _memory(memory: Memory) -> Iterator[str]:
    yield f"[bold]memory[/] of one worker, of {size(memory.free_bytes)} on {escape(memory.device)}:"
    for section, needed in memory.needed.items():
        network, batch = memory.steps[section]
        parts = f"{size(network.fixed_bytes)} for weights and optimizer, {size(network.slice_bytes)} for each of"
        yield f"  {section}: {size(needed)} ({parts} {counted(batch, 'slice')})"


def _time(seconds: float | None) -> str:
    return "time unknown: nothing like it was run here yet" if seconds is None else about(seconds)


def _there(plan: Plan) -> Iterator[str]:
    if plan.stages is None:
        yield "[bold]cache[/]: the synthetic cohort is not made yet, so nothing that depends on it is there"
        return
    yield "[bold]cache[/], for the first trial (the configuration as it is):"
    for stage in plan.stages:
        state = "there" if stage.there else "to be made"
        note = f" ({stage.note})" if stage.note else ""
        yield f"  {stage.kind} {stage.fingerprint}: {state}{note}"


COLUMNS = 110
FRONT_ROWS = 15


def opening(config: ExperimentConfig, console: Console) -> None:
    """What the sweep will do."""
    search = config.search
    wanted = " and ".join(aim.metric for aim in search.aims)
    console.print(
        f"[bold]sweep '{config.name}'[/]: {search.training.trials} training trials of {config.training.images:,} images, "
        f"each with {search.scoring.trials} scoring settings on its reconstructions; objective: validation "
        f"{wanted} on {', '.join(config.objective_datasets)}"
    )


def closing(config: ExperimentConfig, summary: Summary, console: Console) -> None:
    """Leaderboard and next commands."""
    wide = console.width >= COLUMNS
    console.print(leaderboard(config, summary.rows, with_settings=wide))
    if not wide:
        for row in summary.rows:
            if row.settings or row.note:
                console.print(f"  {row.name}: {_settings(row)}")
    if summary.front:
        console.print(pareto_front(config, summary.front))
    for line in _verdict(config, summary.contenders):
        console.print(line)
    if left := summary.registered.undelivered:
        model = "The champion is not yet registered: " if summary.registered.version is None else ""
        waiting = to_publish(left, config.output_dir)
        console.print(escape(model + waiting), style="yellow")
    console.print("\n[bold]next[/]")
    for title, line in _next(config, summary):
        console.print(f"  [dim]{title}:[/]")
        console.command(line)


def leaderboard(config: ExperimentConfig, rows: list[Row], with_settings: bool) -> Table:
    """Every trial once; test scores only where something was scored on test."""
    names = config.objective_datasets
    table = Table(f"leaderboard of '{escape(config.name)}' ({config.search.objective})")
    table.add_column("trial")
    table.add_column("state")
    table.add_column("validation", justify="right")
    for dataset in names:
        table.add_column(f"test {escape(dataset)}", justify="right")
    if with_settings:
        table.add_column("settings")
    for row in rows:
        test = [score((row.test or {}).get(name), "") for name in names]
        style = "bold green" if row.name.startswith("champion") else "cyan" if row.state == "for comparison" else ""
        cells = [row.name, row.state, score(row.validation, ""), *test, *([_settings(row)] if with_settings else [])]
        table.add_row(*cells, style=style)
    return table


def pareto_front(config: ExperimentConfig, front: list[dict[str, Any]]) -> Table:
    """Points that no other beats in one objective without losing in another; of many, some spread over the front."""
    step = max(1, -(-len(front) // FRONT_ROWS))
    title = f"Pareto front on validation: {len(front)} points" + (f", every {step}th shown" if step > 1 else "")
    table = Table(title)
    table.add_column("trial")
    for aim in config.search.aims:
        table.add_column(f"{aim.metric} ({'higher' if aim.goal == 'maximize' else 'lower'} is better)", justify="right")
    table.add_column("settings")
    for member in front[::step]:
        values = [setting(member["values"][aim.metric]) for aim in config.search.aims]
        table.add_row(f"{member['trial']:04d}", *values, ", ".join(_parts(member["params"])))
    return table


def _settings(row: Row) -> str:
    return ", ".join([*_parts(row.settings), *([escape(row.note)] if row.note else [])])


def _parts(settings: Mapping[str, Any]) -> list[str]:
    """Each setting with its value, as markup that is not broken between the two."""
    return [whole(f"{place.rsplit('.', 1)[-1]} {setting(value)}") for place, value in settings.items()]


def _verdict(config: ExperimentConfig, contenders: list[Contender]) -> Iterator[str]:
    """Test scores side by side; all operating points come from validation."""
    names, metric = config.objective_datasets, config.search.objective
    yield f"test {metric}, mean (median) over volumes, operating point from validation:"
    for c in contenders:
        yield f"  {c.name:20} {c.metric(names, metric):.3f} ({_median(c, names, metric):.3f})"


def _median(contender: Contender, names: tuple[str, ...], metric: str) -> float:
    return statistics.median(r[metric] for r in contender.test.rows if r["dataset"] in names and r[metric] is not None)


def _next(config: ExperimentConfig, summary: Summary) -> list[tuple[str, str]]:
    uri = summary.tracking_uri
    usual = uri == f"sqlite:///{Path.cwd() / 'outputs' / 'mlflow.db'}"  # what cddpm looks for by itself
    mine = [] if usual else ["--tracking-uri", uri]
    named = config.tracking.registered_model
    ours = [] if named == TrackingConfig().registered_model else ["--model", named]
    whose = ["--registered-model", named] if ours else []
    out, mlflow, cddpm = config.output_dir / "predictions", _program("mlflow"), _program("cddpm")
    version, promoted = summary.registered.version, summary.registered.promoted
    stays = not promoted and version is not None  # the champion of an earlier sweep
    model, why = str(version) if stays else "champion", f"best of sweep {config.name}"
    promote = command(cddpm, "registry", "promote", model, "--alias", "champion", "--why", why, *ours, *mine)
    browse, dataset = "browse the lab book", config.objective_datasets[0]
    best = ["registry", "best", "--metric", "dice", "--dataset", dataset]
    return [
        ("look at the picture", command(summary.folder / PICTURE)),
        ("everything on one page", command(cddpm, "report", summary.folder, "--open")),
        (browse, uri)
        if uri.startswith("http")
        else (
            f"{browse}, then open http://127.0.0.1:5000",
            command(mlflow, "ui", "--workers", "1", "--backend-store-uri", uri),
        ),
        ("list checkpoints", command(cddpm, "registry", "list", *ours, *mine)),
        ("pick the best one", command(cddpm, *best, *ours, *mine)),
        *([("make it the champion all the same", promote)] if stays else []),
        (
            "find anomalies in a scan",
            command(cddpm, "predict", summary.a_scan, "--out", out, "--model", model, *whose, *mine),
        ),
    ]


def _program(name: str) -> str:
    """How to call a program of this environment from here, whether or not the environment is active."""
    own = Path(sys.executable).parent / name
    return name if shutil.which(name) == str(own) else near(own)
