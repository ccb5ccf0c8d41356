"""Train (or find) and evaluate one method on every fold: no search over trainings, one table at the end.

python launch/evaluate.py --config tune_configs/ddpm.yaml [--data-dir DIR] [--folds 0,1] [--resume] [--set a.b=c ...]
"""

import os
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from cddpm.shell import guarded, overrides, whole_numbers


def main(
    config: Annotated[Path, typer.Option(help="Experiment file (YAML).")],
    data_dir: Annotated[
        Path | None, typer.Option(help="DATA_DIR in the published layout; else a phantom.", envvar="DATA_DIR")
    ] = None,
    output_dir: Annotated[Path | None, typer.Option(help="Where everything is kept.")] = None,
    name: Annotated[str | None, typer.Option(help="Name of the evaluation, instead of the file's.")] = None,
    folds: Annotated[str | None, typer.Option(help="Folds, separated by commas, instead of the file's.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue one that was stopped or killed.")] = False,
    tracking_uri: Annotated[str | None, typer.Option(help="MLflow server.", envvar="MLFLOW_TRACKING_URI")] = None,
    address: Annotated[str | None, typer.Option(help="Ray cluster (or RAY_ADDRESS); else one is started here.")] = None,
    setting: Annotated[list[str] | None, typer.Option("--set", help="Any setting: dotted.path=value (YAML).")] = None,
) -> None:
    """Measure one method on test, fold by fold, at operating points from validation."""
    given = {
        "data.data_dir": data_dir,
        "output_dir": output_dir,
        "name": name,
        "evaluation.folds": whole_numbers("--folds", folds),
        "tracking.uri": tracking_uri,
    }
    _evaluate(config, overrides(given, setting or []), resume, address, Console())


def _evaluate(config: Path, values: dict[str, Any], resume: bool, address: str | None, console: Console) -> None:
    from cddpm.evaluation import driver, plan, report
    from cddpm.search.display import Display

    asked = plan.evaluation(config, values)
    report.opening(asked, console)
    summary = driver.run(asked, resume, address, Display(console, "run"))
    report.closing(asked, summary.files, summary.undelivered, console)


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    guarded(main)
