"""Run a sweep on Ray: data check, slice store, training trials, champion, registry.

python launch/sweep.py --config tune_configs/quickstart.yaml [--data-dir DIR] [--resume] [--set training.images=5000 ...]
"""

import os
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml
from rich.console import Console

from cddpm.config import ExperimentConfig, load
from cddpm.errors import ConfigError
from cddpm.shell import guarded


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
    resolved = load(config, _overrides(data_dir, output_dir, name, trials, tracking_uri, setting or []))
    console = Console()
    _sweep(resolved, resume, address, console)


def _sweep(config: ExperimentConfig, resume: bool, address: str | None, console: Console) -> None:
    from cddpm.search import report, sweep
    from cddpm.search.display import Display

    report.opening(config, console)
    summary = sweep.run(config, resume, address, Display(console))
    report.closing(config, summary, console)


def _overrides(
    data_dir: Path | None,
    output_dir: Path | None,
    name: str | None,
    trials: int | None,
    tracking_uri: str | None,
    settings: list[str],
) -> dict[str, Any]:
    given = {
        "data.data_dir": str(data_dir) if data_dir else None,
        "output_dir": str(output_dir) if output_dir else None,
        "name": name,
        "search.training.trials": trials,
        "tracking.uri": tracking_uri,
    }
    values = {path: value for path, value in given.items() if value is not None}
    for text in settings:
        path, equals, value = text.partition("=")
        if not equals:
            raise ConfigError(f"--set {text}: allowed is dotted.path=value")
        values[path.strip()] = yaml.safe_load(value)
    return values


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    guarded(main)
