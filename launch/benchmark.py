"""Every method on every data set and fold, in one table beside the published numbers.

python launch/benchmark.py --config tune_configs/benchmark.yaml [--data-dir DIR] [--folds 0,1] [--modality t2] [--resume] \
    [--set a.b=c ...]
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
    config: Annotated[Path, typer.Option(help="Benchmark file (YAML).")] = Path("tune_configs/benchmark.yaml"),
    data_dir: DataDir = None,
    output_dir: OutputDir = None,
    storage: Storage = None,
    folds: Folds = None,
    modality: Annotated[str | None, typer.Option(help="Only the cohorts of this modality.")] = None,
    resume: Resume = False,
    tracking_uri: TrackingUri = None,
    address: Address = None,
    setting: Settings = None,
) -> None:
    """Train (or find) and measure all methods of a benchmark file."""
    given = {
        "data.data_dir": data_dir,
        "output_dir": output_dir,
        "storage": storage,
        "evaluation.folds": whole_numbers("--folds", folds),
        "tracking.uri": tracking_uri,
    }
    from cddpm.evaluation import plan

    planned = plan.benchmark(config, overrides(given, setting or []), modality)
    from cddpm.evaluation import driver  # with torch: a wrong setting is told at once

    driver.run_in_terminal(planned, resume, address, Console())


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    guarded(main)
