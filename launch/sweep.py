"""Run a sweep on Ray: data check, slice store, training trials, champion, registry.

python launch/sweep.py --config tune_configs/quickstart.yaml [--data-dir DIR] [--resume [--force] | --extend 100 | --dry-run]
    [--set training.images=5000 ...] [--slurm [--dry-run]]
"""

import os
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from cddpm.cli.shell import Address, DataDir, OutputDir, Resume, Settings, Storage, TrackingUri, guarded, overrides
from cddpm.config import ExperimentConfig, load
from cddpm.errors import ConfigError, SearchError
from cddpm.text import Console, command, path
from cddpm.text.numbers import counted


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
    slurm: Annotated[
        bool,
        typer.Option(
            "--slurm",
            help="Submit it to SLURM (section slurm of the file); with --dry-run only write the job's script.",
        ),
    ] = False,
    requeued: Annotated[
        bool,
        typer.Option("--requeued", help="Begin, or continue what was begun: how a job that is queued again starts."),
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

    from cddpm.search import plan, preparation, report, sweep  # with torch and Optuna: a wrong setting is told at once
    from cddpm.search.display import Display

    if slurm:
        with_job = ("--extend", extend != 0), ("--address", address is not None), ("--requeued", requeued)
        _to_slurm(asked, resume, force, dry_run, [name for name, given in with_job if given], console)
        return
    resume = resume or (requeued and sweep.is_begun(asked))
    extended = sweep.extended(asked, extend)
    if dry_run:
        with console.status("measuring a few steps"):
            made = plan.make(extended, preparation.probed(extended, address))
        report.show_plan(made, console)
        if made.faults:
            raise SearchError("; ".join(made.faults))
        return
    report.opening(extended, console)
    summary = sweep.run(asked, resume, address, Display(console), extend, force)
    report.closing(extended, summary, console)


def _to_slurm(
    config: ExperimentConfig, resume: bool, force: bool, dry_run: bool, others: list[str], console: Console
) -> None:
    """Write the job of a sweep and submit it, or with ``dry_run`` say how; the same start as here, but later and elsewhere."""
    from cddpm.cluster import slurm
    from cddpm.search.sweep import folder_of, is_begun

    if others:
        raise ConfigError(
            f"{', '.join(others)}: not with --slurm: a job starts its own Ray, and anew whenever it is queued again"
        )
    if is_begun(config) != resume:
        exists = f"exists; --resume goes on with it, --name begins another ({folder_of(config)})"
        raise SearchError(
            f"sweep '{config.name}' {'does not exist; leave out --resume' if resume else exists}",
        )
    job = slurm.write(config, Path(__file__).resolve().parent, force)
    asked = config.slurm
    gpus = f" and {counted(asked.gpus_per_node, 'GPU')}" if asked.gpus_per_node else ""
    console.print(
        f"[bold]job of sweep '{escape(config.name)}'[/]: {counted(asked.nodes, 'node')} with "
        f"{counted(slurm.cpus_per_node(config), 'CPU')}{gpus}{' each' if asked.nodes > 1 else ''}; "
        f"time limit of a run: {asked.time or 'that of the partition'}"
    )
    console.print(f"configuration: {path(job.config)}")
    console.print(f"script: {path(job.script)}")
    if dry_run:
        if slurm.installed():
            console.print(f"SLURM says: {escape(slurm.submit(job, only_test=True))}")
        console.print("submit it (nothing was submitted):")
        console.command(command(*slurm.command(job)[:-1], job.script))
        return
    number = slurm.submit(job)
    console.print(f"submitted: job {number}; its log: {path(str(job.log).replace('%j', number).replace('%A', number))}")
    console.print("have it save and end, to be continued by --resume:")
    console.command(command("scancel", "--batch", "--signal=TERM", number))


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    guarded(main)
