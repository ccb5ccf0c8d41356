"""Train (or find) and evaluate one method on every fold: no search over trainings, one table at the end.

python launch/evaluate.py --config tune_configs/ddpm.yaml [--data-dir DIR] [--folds 0,1] [--resume] [--set a.b=c ...]
"""

import os
from pathlib import Path
from typing import Annotated

import typer

from cddpm.cli.shell import (
    Address,
    DataDir,
    Folds,
    OutputDir,
    Resume,
    Settings,
    Storage,
    TrackingUri,
    guarded,
    overrides,
    whole_numbers,
)
from cddpm.text import Console


def main(
    config: Annotated[Path, typer.Option(help="Experiment file (YAML).")],
    data_dir: DataDir = None,
    output_dir: OutputDir = None,
    storage: Storage = None,
    name: Annotated[str | None, typer.Option(help="Name of the evaluation, instead of the file's.")] = None,
    folds: Folds = None,
    resume: Resume = False,
    tracking_uri: TrackingUri = None,
    address: Address = None,
    setting: Settings = None,
) -> None:
    """Measure one method on test, fold by fold, at operating points from validation."""
    given = {
        "data.data_dir": data_dir,
        "output_dir": output_dir,
        "storage": storage,
        "name": name,
        "evaluation.folds": whole_numbers("--folds", folds),
        "tracking.uri": tracking_uri,
    }
    from cddpm.evaluation import plan

    planned = plan.evaluation(config, overrides(given, setting or []))
    from cddpm.evaluation import driver  # with torch: a wrong setting is told at once

    driver.run_in_terminal(planned, resume, address, Console())


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    guarded(main)
