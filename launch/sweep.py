"""Run a sweep on Ray: data check, slice store, training trials, champion, registry.

python launch/sweep.py --config tune_configs/quickstart.yaml [--data-dir DIR] [--resume [--force] | --extend 100 | --dry-run]
    [--set training.images=5000 ...]
"""

import os
from pathlib import Path
from typing import Annotated

import typer

from cddpm.cli.shell import Address, DataDir, OutputDir, Resume, Settings, Storage, TrackingUri, guarded, overrides
from cddpm.config import load
from cddpm.text import Console


def main(
    config: Annotated[Path, typer.Option(help="Experiment file (YAML).")] = Path("tune_configs/quickstart.yaml"),
    data_dir: DataDir = None,
    output_dir: OutputDir = None,
    storage: Storage = None,
    name: Annotated[str | None, typer.Option(help="Name of the sweep, instead of the file's.")] = None,
    trials: Annotated[int | None, typer.Option(help="Training trials, instead of the file's.")] = None,
    resume: Resume = False,
    extend: Annotated[int, typer.Option(help="Add so many trials to a finished sweep.")] = 0,
    force: Annotated[
        bool,
        typer.Option(
            "--force", help="With --resume: go on although configuration, data or versions changed; it is kept."
        ),
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what would be done and what it costs, then end.")
    ] = False,
    tracking_uri: TrackingUri = None,
    address: Address = None,
    setting: Settings = None,
) -> None:
    """Search training and scoring settings; register and promote the best by validation."""
    given = {
        "data.data_dir": data_dir,
        "output_dir": output_dir,
        "storage": storage,
        "name": name,
        "search.training.trials": trials,
        "tracking.uri": tracking_uri,
    }
    asked, console = load(config, overrides(given, setting or [])), Console()

    from cddpm.search import plan, report, sweep  # with torch and Optuna: a wrong setting is told at once
    from cddpm.search.display import Display

    extended = sweep.extended(asked, extend)
    if dry_run:
        report.show_plan(plan.make(extended), console)
        return
    report.opening(extended, console)
    summary = sweep.run(asked, resume, address, Display(console), extend, force)
    report.closing(extended, summary, console)


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    guarded(main)
