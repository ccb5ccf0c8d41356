"""Run a sweep on Ray: data check, slice store, training trials, champion, registry.

python launch/sweep.py --config tune_configs/quickstart.yaml [--data-dir DIR] [--resume] [--set training.images=5000 ...]
"""

import os
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from cddpm.config import ExperimentConfig, load
from cddpm.shell import guarded, overrides


def main(
    config: Annotated[Path, typer.Option(help="Experiment file (YAML).")] = Path("tune_configs/quickstart.yaml"),
    data_dir: Annotated[
        Path | None, typer.Option(help="DATA_DIR in the published layout; else a phantom.", envvar="DATA_DIR")
    ] = None,
    output_dir: Annotated[Path | None, typer.Option(help="Where everything is kept.")] = None,
    name: Annotated[str | None, typer.Option(help="Name of the sweep, instead of the file's.")] = None,
    trials: Annotated[int | None, typer.Option(help="Training trials, instead of the file's.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue a sweep that was stopped or killed.")] = False,
    tracking_uri: Annotated[str | None, typer.Option(help="MLflow server.", envvar="MLFLOW_TRACKING_URI")] = None,
    address: Annotated[str | None, typer.Option(help="Ray cluster (or RAY_ADDRESS); else one is started here.")] = None,
    setting: Annotated[list[str] | None, typer.Option("--set", help="Any setting: dotted.path=value (YAML).")] = None,
) -> None:
    """Search training and scoring settings; register and promote the best by validation."""
    given = {
        "data.data_dir": data_dir,
        "output_dir": output_dir,
        "name": name,
        "search.training.trials": trials,
        "tracking.uri": tracking_uri,
    }
    _sweep(load(config, overrides(given, setting or [])), resume, address, Console())


def _sweep(config: ExperimentConfig, resume: bool, address: str | None, console: Console) -> None:
    from cddpm.search import report, sweep
    from cddpm.search.display import Display

    report.opening(config, console)
    summary = sweep.run(config, resume, address, Display(console))
    report.closing(config, summary, console)


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    guarded(main)
