"""Tables of ``cddpm registry``."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from rich.markup import escape

from cddpm.text import Console, Table, Tree, name, path, whole
from cddpm.text.numbers import fine_score
from cddpm.tracking import names

if TYPE_CHECKING:
    from cddpm.scoring.statistics import Comparison, Interval
    from cddpm.tracking.catalogue import Version
    from cddpm.tracking.lineage import Ancestor
    from cddpm.tracking.promotion import Promotion
    from cddpm.tracking.version_comparison import SideBySide

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
    table = Table(escape(title))
    table.add_column("version", justify="right")
    table.add_column("trial")
    for heading in metrics.values():
        table.add_column(escape(heading), justify="right")
    table.add_column("aliases", style="green")
    if dated:
        table.add_column("created", no_wrap=True)
    for version in found:
        values = [fine_score(version.metrics.get(key)) for key in metrics]
        marks = [*version.aliases, *(["(archived)"] if version.archived else [])]
        when = [version.created[:10]] if dated else []
        trial = whole(version.trial_name or version.run_id)
        table.add_row(str(version.number), trial, *values, "\n".join(map(whole, marks)), *when)
    console.print(table)


def facts(version: "Version", model: str) -> None:
    """All that the registry says of one version."""
    table = Table(escape(f"{model}, version {version.number}"), show_header=False)
    table.add_column(style="cyan")
    table.add_column()
    rows = {
        "aliases": ", ".join(version.aliases) or "-",
        "trial": version.trial_name or "-",
        "run": version.run_id,
        "created": _minute(version.created) + " UTC",
        "package": version.fingerprint,
        **{key: f"{value:.4f}" for key, value in sorted(version.metrics.items())},
        **{key: value for key, value in sorted(version.tags.items()) if not key.startswith(_SHOWN_ELSEWHERE)},
    }
    for key, value in rows.items():
        table.add_row(name(key), escape(value))
    Console().print(table)


def audit(entries: Sequence["Promotion"]) -> None:
    """Who moved which alias, when and why."""
    table = Table("Promotions")
    for heading in ("when (UTC)", "alias", "was", "who"):
        table.add_column(heading, no_wrap=True)
    table.add_column("why")
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
        key: [fine_score(value) for value in values]
        for key, values in found.metrics.items()
        if not found.scores or key.count("/") < 2 or key.endswith(_OF_HEALTHY)
    }
    console.print(_side_by_side("metrics", headings, metrics))
    if found.scores:
        console.print(_scores(found, headings))
        console.print(
            f"[dim]Mean over {found.split} subjects, 95 % bootstrap interval (BCa). Difference to {headings[0]}; p: two-sided "
            "paired permutation test over subjects, after Holm's correction for all tests of this table.[/]",
            hang=0,
        )
    for note in found.notes:
        console.print(f"[yellow]{escape(note)}[/]")


def tree(steps: Sequence["Ancestor"], title: str) -> None:
    """The steps from the data to the version, each below what it was made from."""
    root: Tree | None = None
    branches: dict[str, Tree] = {}
    for step in steps:
        parents = [kind for kind in step.made_from if kind in branches]
        trunk = branches[parents[-1] if step.kind != "reconstruction" else "checkpoint"] if parents else None
        label = _label(step)
        if trunk is None:
            root = branches[step.kind] = Tree(label)
        else:
            branches[step.kind] = trunk.add(label)
    console = Console()
    console.print(f"[bold]{escape(title)}[/]")
    if root is not None:
        console.print(root)


def checks(rows: Sequence[tuple["Version", str | None]], title: str) -> None:
    """Which packages are whole."""
    table = Table(escape(title))
    table.add_column("version", justify="right")
    for heading in ("trial", "package", "state"):
        table.add_column(heading)
    for version, fault in rows:
        state = "[green]whole[/]" if fault is None else f"[bold red]{escape(fault)}[/]"
        table.add_row(str(version.number), whole(version.trial_name or version.run_id), version.fingerprint, state)
    Console().print(table)


def _label(step: "Ancestor") -> str:
    called = (
        f" [bold]{escape(step.fingerprint)}[/]"
        if step.fingerprint
        else " [yellow]not told[/]"
        if step.kind == "store"
        else ""
    )
    here = f"\n[dim]{path(step.path)}[/]" if step.path else ""
    found = "".join(f"\n{escape(key)}: {escape(value)}" for key, value in step.facts.items())
    return f"[cyan]{step.kind}[/]{called}{found}{here}"


def _side_by_side(title: str, headings: Sequence[str], rows: Mapping[str, Sequence[str | None]]) -> Table:
    table = Table(escape(title))
    table.add_column(style="cyan")
    for heading in headings:
        table.add_column(heading, justify="right")
    for key, values in rows.items():
        table.add_row(name(key), *("-" if value is None else escape(value) for value in values))
    return table


def _scores(found: "SideBySide", headings: Sequence[str]) -> Table:
    table = Table(f"per subject, {found.split}")
    table.add_column(style="cyan")
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
    if interval.low is None or interval.high is None:
        return f"{interval.mean:.3f}"
    return f"{interval.mean:.3f}\n" + whole(f"[{interval.low:.3f}, {interval.high:.3f}]")


def _test(test: "Comparison") -> str:
    if test.difference is None:
        return escape(test.note)
    p = test.adjusted if test.adjusted is not None else test.p
    return f"{test.difference:+.3f}, " + (escape(test.note) if p is None else whole(f"p = {p:.3f}"))


def _minute(when: str) -> str:
    return when[:16].replace("T", " ")
