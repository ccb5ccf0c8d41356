"""The files of an evaluation, and what a person reads in the terminal before and after it."""

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.markup import escape

from cddpm import artifact
from cddpm.config import DataConfig
from cddpm.data.phantom.folder import LABEL
from cddpm.evaluation import markdown, table, terminal
from cddpm.evaluation.fold import Outcome, all_results
from cddpm.evaluation.plan import Plan
from cddpm.evaluation.table import ResultTable
from cddpm.text import Console
from cddpm.text.numbers import fine_score
from cddpm.tracking import provenance
from cddpm.tracking.address import to_publish

SHIFT_COLUMNS = ("dice", "oracle_dice", "auprc", "l1_ratio", "jensen_shannon", "wasserstein")
"""Of domain shifts, in the Markdown; the CSV has all."""


@dataclass(frozen=True)
class Files:
    """What ``write`` made."""

    table: ResultTable
    markdown: Path
    all: list[Path]


def write(plan: Plan, outcomes: Sequence[Outcome]) -> Files:
    """The tables as Markdown and CSV, one CSV line per volume, and domain shifts if there were any."""
    results = all_results(outcomes)
    first = plan.first
    where = provenance.here(_data(first.data), _is_real(first.data))
    against = plan.compared_with if len(plan.methods) > 1 else None
    made = table.build_table(results, first.evaluation, where, against, list(plan.methods), seed=first.seed)
    shifts = [
        {"method": o.method, "fold": o.fold, "trained_on": o.modality, **row} for o in outcomes for row in o.shifts
    ]
    text = markdown.document(made, f"{plan.kind.capitalize()} '{plan.name}'") + _shift_section(shifts)
    contents = {
        f"{plan.kind}.md": text,
        f"{plan.kind}.csv": table.csv_text(made),
        "volumes.csv": _csv({"method": r.method, "fold": r.fold, **row} for r in results for row in r.rows),
        **({"shifts.csv": _csv(shifts)} if shifts else {}),
    }
    for name, content in contents.items():
        artifact.write_text(plan.folder / name, content)
    return Files(made, plan.folder / f"{plan.kind}.md", [plan.folder / name for name in contents])


def _is_real(data: DataConfig) -> bool:
    """Whether the scans are not a phantom of ours, made here or by ``cddpm data phantom``."""
    folders = [data.data_dir] if data.data_dir else [data.table.parent] if data.table else []
    return bool(folders) and not any((folder / LABEL).exists() for folder in folders)


def _data(data: DataConfig) -> str:
    if data.table is not None:
        return f"{data.table.name} ({data.splits} splits)"
    if data.data_dir is not None:
        return f"{data.data_dir.name} ({data.splits} splits)"
    made = data.phantom
    voxel = "voxel size as stored" if data.voxel_size_mm is None else f"{data.voxel_size_mm:g} mm voxels"
    shape = "x".join(map(str, data.working_shape))
    return (
        f"{made.size} phantom, seed {made.seed} ({voxel}, {shape} after rescaling; {made.healthy_train} healthy "
        f"training scans, {made.unhealthy_val} validation and {made.unhealthy_test} test scans per unhealthy data set)"
    )


def _csv(rows: Iterable[Mapping[str, Any]]) -> str:
    """Rows under all their columns, in the order in which these appear."""
    listed = list(rows)
    columns = list(dict.fromkeys(name for row in listed for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(listed)
    return text.getvalue()


def _shift_section(shifts: Sequence[Mapping[str, Any]]) -> str:
    """Mean over folds per method, data set and shift."""
    if not shifts:
        return ""
    places = list(dict.fromkeys((s["method"], s["dataset"], s["shift"]) for s in shifts))
    lines = [
        "| method | data set | shift | " + " | ".join(SHIFT_COLUMNS) + " |",
        "|---|---|---|" + "---:|" * len(SHIFT_COLUMNS),
    ]
    for place in places:
        rows = [s for s in shifts if (s["method"], s["dataset"], s["shift"]) == place]
        lines.append("| " + " | ".join([*place, *(_mean(rows, name) for name in SHIFT_COLUMNS)]) + " |")
    return (
        "\n## Domain shift\n\nThe same models on shifted test scans, at the thresholds of unshifted validation; means over "
        "folds. Jensen-Shannon (nats) and Wasserstein (intensity) tell how far the reconstruction's histogram is from the "
        "input's, inside the brain.\n\n" + "\n".join(lines) + "\n"
    )


def _mean(rows: Sequence[Mapping[str, Any]], name: str) -> str:
    values = [row[name] for row in rows if row.get(name) is not None]
    return fine_score(sum(values) / len(values) if values else None)


def opening(plan: Plan, console: Console) -> None:
    """What will be done."""
    modalities = ", ".join(
        f"{config.data.modality} ({', '.join(config.data.unhealthy)})" for config in next(iter(plan.methods.values()))
    )
    trained = sum(config.method == "diffusion" for configs in plan.methods.values() for config in configs)
    console.print(
        f"[bold]{plan.kind} '{plan.name}'[/]: {', '.join(plan.methods)}; folds {', '.join(map(str, plan.folds))}; "
        f"{modalities}: {trained * len(plan.folds)} trainings"
    )


def closing(plan: Plan, files: Files, undelivered: int, console: Console) -> None:
    """The headline, and where the rest is."""
    terminal.show(files.table, console)
    if undelivered:
        console.print(escape(to_publish(undelivered, plan.first.output_dir)), style="yellow")
    console.print(f"all measures, per data set: {console.path(files.markdown)}")
    console.print(f"per volume and as CSV:      {console.path(files.markdown.parent)}")
