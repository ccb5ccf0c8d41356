"""What a person reads in the terminal before and after a sweep: the plan, the leaderboard, and the exact next commands."""

import shutil
import statistics
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rich.markup import escape

from cddpm.config import ExperimentConfig, TrackingConfig
from cddpm.search.champion import Contender
from cddpm.search.leaderboard import Row
from cddpm.search.scoring_search import objective_datasets
from cddpm.search.sweep import Summary
from cddpm.text import Console, Table, command, near, whole
from cddpm.text.numbers import score, setting
from cddpm.tracking.address import to_publish

COLUMNS = 110
FRONT_ROWS = 15


def opening(config: ExperimentConfig, console: Console) -> None:
    """What the sweep will do."""
    search = config.search
    wanted = " and ".join(aim.metric for aim in search.aims)
    console.print(
        f"[bold]sweep '{config.name}'[/]: {search.training.trials} training trials of {config.training.images:,} images, "
        f"each with {search.scoring.trials} scoring settings on its reconstructions; objective: validation "
        f"{wanted} on {', '.join(objective_datasets(config))}"
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
    if summary.undelivered:
        model = "The champion is not yet registered: " if summary.version is None else ""
        waiting = to_publish(summary.undelivered, config.output_dir)
        console.print(escape(model + waiting), style="yellow")
    console.print("\n[bold]next[/]")
    for title, line in _next(config, summary):
        console.print(f"  [dim]{title}:[/]")
        console.command(line)


def leaderboard(config: ExperimentConfig, rows: list[Row], with_settings: bool) -> Table:
    """Every trial once; test scores only where something was scored on test."""
    names = objective_datasets(config)
    table = Table(f"leaderboard of '{escape(config.name)}' ({config.search.objective})")
    table.add_column("trial")
    table.add_column("state")
    table.add_column("validation", justify="right")
    for name in names:
        table.add_column(f"test {escape(name)}", justify="right")
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
    names, metric = objective_datasets(config), config.search.objective
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
    stays = not summary.promoted and summary.version is not None  # the champion of an earlier sweep
    model, why = str(summary.version) if stays else "champion", f"best of sweep {config.name}"
    promote = command(cddpm, "registry", "promote", model, "--alias", "champion", "--why", why, *ours, *mine)
    browse, dataset = "browse the lab book", objective_datasets(config)[0]
    best = ["registry", "best", "--metric", "dice", "--dataset", dataset]
    return [
        ("look at the picture", command(summary.picture)),
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
