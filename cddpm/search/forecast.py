"""What ``--dry-run`` prints: the resolved space, the number and cost of trials, and what is there already."""

from collections.abc import Iterator
from typing import Any

from rich.markup import escape

from cddpm.config import Choice, Conditional, Float, Integer, LevelConfig, Parameter, Test, value_at
from cddpm.search.plan import Plan
from cddpm.search.sampler import point_count
from cddpm.text import Console, Table, name, whole
from cddpm.text.numbers import about, counted


def show(plan: Plan, console: Console) -> None:
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
        own = whole(_plain(value_at(plan.config, path)))
        table.add_row(name(path), _range(parameter), own, _condition(parameter))
    return table


def _range(parameter: Parameter) -> str:
    if isinstance(parameter, Choice):
        return ", ".join(whole(_plain(value)) for value in parameter.choice)
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
    asked += [f"= {' or '.join(map(_plain, test.one_of))}"] if test.one_of is not None else []
    asked += [f"not {' or '.join(map(_plain, test.none_of))}"] if test.none_of is not None else []
    return f"{name(path)} {escape(', '.join(asked))}"


def _plain(value: Any) -> str:
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_plain, value))}]"
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
    yield f"  training: {work.training_images:,} images in {trials}, {_time(seconds['training'])}"
    yield f"  pretraining: {work.pretraining_images:,} images, {_time(seconds['pretraining'])}"
    yield f"  reconstruction: {work.predicted_slices:,} forward passes of slices"
    if config.search.preview_trials > 1:
        yield f"  previews: {work.preview_points:,} points on fewer volumes"
    yield f"  scoring: {counted(work.scoring_points, 'point')}, {_time(seconds['scoring'])}"
    known = [value for value in seconds.values() if value]
    if known:
        yield f"  what is known of it: {about(sum(known))}, one training at a time, without validations and start-up"


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
