"""Every method on every data set and fold, in one table beside the published numbers.

python launch/benchmark.py --config tune_configs/benchmark.yaml [--data-dir DIR] [--folds 0,1] [--resume] [--set a.b=c ...]
"""

import os
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from cddpm.shell import guarded, overrides, whole_numbers


def main(
    config: Annotated[Path, typer.Option(help="Benchmark file (YAML).")] = Path("tune_configs/benchmark.yaml"),
    data_dir: Annotated[
        Path | None, typer.Option(help="DATA_DIR in the published layout; else a phantom.", envvar="DATA_DIR")
    ] = None,
    output_dir: Annotated[Path | None, typer.Option(help="Where everything is kept.")] = None,
    folds: Annotated[str | None, typer.Option(help="Folds, separated by commas, instead of the file's.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue one that was stopped or killed.")] = False,
    tracking_uri: Annotated[str | None, typer.Option(help="MLflow server.", envvar="MLFLOW_TRACKING_URI")] = None,
    address: Annotated[str | None, typer.Option(help="Ray cluster (or RAY_ADDRESS); else one is started here.")] = None,
    setting: Annotated[
        list[str] | None, typer.Option("--set", help="Any setting of all methods: dotted.path=value (YAML).")
    ] = None,
) -> None:
    """Train (or find) and measure all methods of a benchmark file."""
    given = {
        "data.data_dir": data_dir,
        "output_dir": output_dir,
        "evaluation.folds": whole_numbers("--folds", folds),
        "tracking.uri": tracking_uri,
    }
    _benchmark(config, overrides(given, setting or []), resume, address, Console())


def _benchmark(config: Path, values: dict[str, Any], resume: bool, address: str | None, console: Console) -> None:
    from cddpm.evaluation import driver, plan, report
    from cddpm.search.display import Display

    asked = plan.benchmark(config, values)
    report.opening(asked, console)
    summary = driver.run(asked, resume, address, Display(console, "run"))
    report.closing(asked, summary.files, summary.undelivered, console)


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    guarded(main)
