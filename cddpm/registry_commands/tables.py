"""Tables of ``cddpm registry``, readable in 80 columns."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.tree import Tree

from cddpm.tracking import names

if TYPE_CHECKING:
    from cddpm.evaluation.statistics import Comparison, Interval
    from cddpm.evaluation.version_comparison import SideBySide
    from cddpm.tracking.ancestry import Ancestor
    from cddpm.tracking.promotion import Promotion
    from cddpm.tracking.version import Version

_SHOWN_ELSEWHERE = ("mlflow.", names.SWEEP, names.TRIAL, names.KIND, names.FINGERPRINT_PACKAGE)
_OF_HEALTHY = "/healthy/false_positive_rate"
"""Beside means over data sets all that a comparison shows, if there are rows of subjects below; JSON has everything."""


def versions(
    found: Sequence["Version"],
    title: str,
    metrics: Mapping[str, str],
) -> None:
    """A row per version, with a column per metric name -> heading; the day where the terminal is wide enough."""
    console = Console()
    dated = console.width >= 100
    table = _table(title)
    table.add_column("version", justify="right")
    table.add_column("trial", overflow="fold")
    for heading in metrics.values():
        table.add_column(escape(heading), justify="right", no_wrap=True)
    table.add_column("aliases", style="green", overflow="fold")
    if dated:
        table.add_column("created", no_wrap=True)
    for version in found:
        values = [number(version.metrics.get(name)) for name in metrics]
        marks = [*version.aliases, *(["(archived)"] if version.archived else [])]
        when = [version.created[:10]] if dated else []
        name = escape(version.trial_name or version.run_id)
        table.add_row(str(version.number), name, *values, escape("\n".join(marks)), *when)
    console.print(table)


def facts(version: "Version", model: str) -> None:
    """All that the registry says of one version."""
    table = _table(f"{model}, version {version.number}", show_header=False)
    table.add_column(style="cyan", no_wrap=True)
    table.add_column(overflow="fold")
    rows = {
        "aliases": ", ".join(version.aliases) or "-",
        "trial": version.trial_name or "-",
        "run": version.run_id,
        "created": _minute(version.created) + " UTC",
        "package": version.fingerprint,
        **{name: f"{value:.4f}" for name, value in sorted(version.metrics.items())},
        **{name: value for name, value in sorted(version.tags.items()) if not name.startswith(_SHOWN_ELSEWHERE)},
    }
    for name, value in rows.items():
        table.add_row(escape(name), escape(value))
    Console().print(table)


def audit(entries: Sequence["Promotion"]) -> None:
    """Who moved which alias, when and why."""
    table = _table("Promotions")
    for name in ("when (UTC)", "alias", "was", "who"):
        table.add_column(name, no_wrap=True)
    table.add_column("why", overflow="fold", ratio=1)
    for entry in entries:
        was = str(entry.previous) if entry.previous is not None else "-"
        notes = [entry.why, *(f"required: {text}" for text in entry.conditions)]
        notes += ["forced"] if entry.forced else []
        notes += [f"refused: {entry.refused}"] if entry.refused else []
        style = "dim" if entry.refused else ""
        table.add_row(
            _minute(entry.when), escape(entry.alias), was, escape(entry.who), escape("\n".join(notes)), style=style
        )
    Console().print(table)


def comparison(found: "SideBySide", model: str) -> None:
    """Settings that differ, metrics, and scores with intervals and tests."""
    console, headings = Console(), [f"version {version.number}" for version in found.versions]
    console.print(
        _side_by_side(f"{model}: settings that differ", headings, found.settings)
        if found.settings
        else f"{escape(model)}: all settings are equal"
    )
    metrics = {
        name: [number(value) for value in values]
        for name, values in found.metrics.items()
        if not found.scores or name.count("/") < 2 or name.endswith(_OF_HEALTHY)
    }
    console.print(_side_by_side("metrics", headings, metrics))
    if found.scores:
        console.print(_scores(found, headings))
        console.print(
            f"[dim]Mean over {found.split} subjects, 95 % bootstrap interval (BCa). Difference to {headings[0]}; p: two-sided "
            "paired permutation test over subjects, after Holm's correction for all tests of this table.[/]",
            highlight=False,
        )
    for note in found.notes:
        console.print(f"[yellow]{escape(note)}[/]", highlight=False)


def tree(steps: Sequence["Ancestor"], title: str) -> None:
    """The steps from the data to the version, each below what it was made from."""
    root: Tree | None = None
    branches: dict[str, Tree] = {}
    for step in steps:
        parents = [kind for kind in step.made_from if kind in branches]
        trunk = branches[parents[-1] if step.kind != "reconstruction" else "checkpoint"] if parents else None
        label = _label(step)
        if trunk is None:
            root = branches[step.kind] = Tree(label, guide_style="dim")
        else:
            branches[step.kind] = trunk.add(label)
    console = Console()
    console.print(f"[bold]{escape(title)}[/]", highlight=False)
    if root is not None:
        console.print(root, highlight=False)


def checks(rows: Sequence[tuple["Version", str | None]], title: str) -> None:
    """Which packages are whole."""
    table = _table(title)
    table.add_column("version", justify="right")
    table.add_column("trial", overflow="fold")
    table.add_column("package", no_wrap=True)
    table.add_column("state", overflow="fold")
    for version, fault in rows:
        state = "[green]whole[/]" if fault is None else f"[bold red]{escape(fault)}[/]"
        table.add_row(str(version.number), escape(version.trial_name or version.run_id), version.fingerprint, state)
    Console().print(table)


def number(value: float | None) -> str:
    """With four decimals, or a dash."""
    return "-" if value is None else f"{value:.4f}"


def _label(step: "Ancestor") -> str:
    name = (
        f" [bold]{escape(step.fingerprint)}[/]"
        if step.fingerprint
        else " [yellow]not told[/]"
        if step.kind == "store"
        else ""
    )
    here = f"\n[dim]{escape(_near(step.path))}[/]" if step.path else ""
    found = "".join(f"\n{escape(key)}: {escape(value)}" for key, value in step.facts.items())
    return f"[cyan]{step.kind}[/]{name}{found}{here}"


def _near(path: Path) -> str:
    """``path`` as seen from here."""
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


def _side_by_side(title: str, headings: Sequence[str], rows: Mapping[str, Sequence[str | None]]) -> Table:
    table = _table(title)
    table.add_column("", style="cyan", overflow="fold")
    for heading in headings:
        table.add_column(heading, justify="right", overflow="fold")
    for name, values in rows.items():
        table.add_row(escape(name), *("-" if value is None else escape(value) for value in values))
    return table


def _scores(found: "SideBySide", headings: Sequence[str]) -> Table:
    table = _table(f"per subject, {found.split}")
    table.add_column("", style="cyan", overflow="fold")
    for heading in headings:
        table.add_column(heading, justify="right")
    for score in found.scores:
        cells = [
            _interval(interval) + ("" if test is None else f"\n{_test(test)}")
            for interval, test in zip(score.intervals, score.against_first, strict=True)
        ]
        table.add_row(
            escape(f"{score.dataset} {score.measure}\n{max(i.subjects for i in score.intervals)} subjects"), *cells
        )
    return table


def _interval(interval: "Interval") -> str:
    if interval.mean is None:
        return "-"
    bounds = "" if interval.low is None or interval.high is None else f"\n\\[{interval.low:.3f}, {interval.high:.3f}]"
    return f"{interval.mean:.3f}{bounds}"


def _test(test: "Comparison") -> str:
    if test.difference is None:
        return escape(test.note)
    p = test.adjusted if test.adjusted is not None else test.p
    return f"{test.difference:+.3f}, " + (escape(test.note) if p is None else f"p = {p:.3f}")


def _table(title: str, show_header: bool = True) -> Table:
    return Table(
        title=escape(title), title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, show_header=show_header
    )


def _minute(when: str) -> str:
    return when[:16].replace("T", " ")
