"""What a person reads in the terminal before and after a sweep: the plan, the leaderboard, and the exact next commands."""

import shlex

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from cddpm.config import ExperimentConfig
from cddpm.search.champion import Contender
from cddpm.search.leaderboard import Row
from cddpm.search.scoring_search import objective_datasets
from cddpm.search.sweep import Summary

COLUMNS = 110


def opening(config: ExperimentConfig, console: Console) -> None:
    """What the sweep will do."""
    search = config.search
    console.print(
        f"[bold]sweep '{config.name}'[/]: {search.training.trials} training trials of {config.training.images:,} images, "
        f"each with {search.scoring.trials} scoring settings on its reconstructions; objective: validation "
        f"{search.objective} on {', '.join(objective_datasets(config))}",
        highlight=False,
    )


def closing(config: ExperimentConfig, summary: Summary, console: Console) -> None:
    """Leaderboard and next commands."""
    console.print(leaderboard(config, summary.rows))
    console.print(_verdict(config, summary.contenders), highlight=False)
    if summary.undelivered:
        console.print(
            f"[yellow]{summary.undelivered} lab-book entries have not reached MLflow; the next command that opens it "
            "delivers them[/]"
        )
    console.print("\n[bold]next[/]")
    for title, command in _next(config, summary):
        console.print(f"  [dim]{title:24}[/] {escape(command)}", highlight=False, soft_wrap=True)


def leaderboard(config: ExperimentConfig, rows: list[Row]) -> Table:
    """Every trial once; test scores only where something was scored on test."""
    names = objective_datasets(config)
    table = Table(title=f"leaderboard of '{config.name}' ({config.search.objective})", title_justify="left")
    table.add_column("trial", no_wrap=True)
    table.add_column("state")
    table.add_column("validation", justify="right")
    for name in names:
        table.add_column(f"test {name}", justify="right")
    table.add_column("settings", overflow="fold")
    for row in rows:
        test = [_number((row.test or {}).get(name)) for name in names]
        style = "bold green" if row.name.startswith("champion") else "cyan" if row.state == "for comparison" else ""
        table.add_row(row.name, row.state, _number(row.validation), *test, _settings(row), style=style)
    return table


def _settings(row: Row) -> str:
    parts = [f"{path.rsplit('.', 1)[-1]} {_short(value)}" for path, value in row.settings.items()]
    return ", ".join([*parts, *([row.note] if row.note else [])])


def _short(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _verdict(config: ExperimentConfig, contenders: list[Contender]) -> str:
    """Test scores side by side; all operating points come from validation."""
    names, metric = objective_datasets(config), config.search.objective
    parts = [f"{c.name} {c.metric(names, metric):.3f} (median {_median(c, names):.3f})" for c in contenders]
    return f"test Dice, mean over volumes, operating point from validation: {'; '.join(parts)}"


def _median(contender: Contender, names: tuple[str, ...]) -> float:
    values = sorted(r["dice"] for r in contender.test.rows if r["dataset"] in names and r["dice"] is not None)
    middle = len(values) // 2
    return float(values[middle] if len(values) % 2 else (values[middle - 1] + values[middle]) / 2)


def _next(config: ExperimentConfig, summary: Summary) -> list[tuple[str, str]]:
    uri, out = shlex.quote(summary.tracking_uri), shlex.quote(str(config.output_dir / "predictions"))
    mine = f" --tracking-uri {uri}"
    return [
        ("look at the picture", str(summary.picture)),
        ("open the lab book", f"mlflow ui --backend-store-uri {uri} --workers 1   # then http://127.0.0.1:5000"),
        ("list checkpoints", f"cddpm registry list{mine}"),
        ("pick the best one", f"cddpm registry best --metric dice{mine}"),
        (
            "find anomalies in a scan",
            f"cddpm predict {shlex.quote(str(summary.a_scan))} --out {out} --model champion{mine}",
        ),
    ]
