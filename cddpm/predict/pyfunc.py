"""A registered model in MLflow's generic form: ``mlflow.pyfunc.load_model("models:/cddpm@champion")``.

MLflow imports this module by its name, which the model's ``MLmodel`` file holds; the model brings no code of its own, and
nothing in it is unpickled.
"""

from pathlib import Path
from typing import Any, get_args

import numpy as np
import pandas as pd
import torch

from cddpm.errors import ConfigError
from cddpm.place import local
from cddpm.predict import batch, scans
from cddpm.predict.coverage import Window
from cddpm.predict.predictor import Predictor, threshold_of
from cddpm.tracking.logged_model import MODEL_CONFIG, OUTPUTS, PARAMS
from cddpm.tracking.package import read_package


def _load_pyfunc(path: str, model_config: dict[str, Any] | None = None) -> "ScanTable":
    """Called by MLflow with the folder of the package. Raises ``ArtifactError`` if a digest differs."""
    chosen = {**MODEL_CONFIG, **(model_config or {})}
    wanted, window = chosen["device"], chosen["window"]
    there = torch.cuda.is_available()
    if wanted not in ("auto", "cpu", "cuda") or (wanted == "cuda" and not there):
        found = (
            "PyTorch sees no CUDA device here; allowed are auto and cpu"
            if wanted == "cuda"
            else "allowed are auto, cpu, cuda"
        )
        raise ConfigError(f"model_config: device '{wanted}': {found}")
    if window not in get_args(Window):
        raise ConfigError(f"model_config: window '{window}': allowed are {', '.join(get_args(Window))}")
    return ScanTable(Predictor(read_package(Path(path)), "cuda" if there and wanted != "cpu" else "cpu", window))


class ScanTable:
    """A table of scans in, a table of scores out: what ``cddpm predict`` does with a CSV table."""

    def __init__(self, predictor: Predictor) -> None:
        self._predictor = predictor

    def get_raw_model(self) -> Predictor:
        """What MLflow's ``get_raw_model()`` gives: ``predict_scan`` of it returns arrays."""
        return self._predictor

    def predict(self, data: pd.DataFrame, params: dict[str, Any] | None = None) -> pd.DataFrame:
        """One row with the columns ``OUTPUTS`` per row of ``data``, whose columns are ``scans.COLUMNS``.

        Relative paths start at the working directory. With ``params={"out": folder}`` the files of ``cddpm predict`` are
        written too; ``params={"dataset": name}`` chooses the threshold of rows that do not say one. A scan that cannot be
        used has its reason in ``error`` and NaN as scores. Raises ``DataError`` for a faulty table, ``ConfigError`` for a
        data set without a threshold.
        """
        given = {**PARAMS, **(params or {})}
        out, package = local(Path(given["out"]), "params: out"), self._predictor.package
        jobs = scans.of_rows("table of scans", list(data.columns), _records(data), Path(), out, given["dataset"])
        work = batch.Work(
            package, {"package": str(package.directory)}, write=bool(given["out"]), window=self._predictor.window
        )
        if work.write:
            scans.check_apart(jobs)
        for name in {job.dataset for job in jobs}:
            threshold_of(package, name)
        rows = [_row(batch.work_on(self._predictor, work, job), work.write) for job in jobs]
        return pd.DataFrame(rows, columns=list(OUTPUTS))


def _records(data: pd.DataFrame) -> list[tuple[str, dict[str, str | None]]]:
    """(where it stands, text by column) of each row; empty where a value is missing."""
    cells = data.astype(object).where(data.notna(), "").map(_text)
    columns = [str(column) for column in data.columns]
    return [
        (f"row {label}", dict(zip(columns, values, strict=True)))
        for label, values in zip(data.index, cells.to_numpy().tolist(), strict=True)
    ]


def _text(cell: Any) -> str:
    """As a CSV file would hold it: a column of whole numbers with a gap is one of floats to pandas."""
    whole = isinstance(cell, float | np.floating) and cell.is_integer()
    return str(int(cell)) if whole else str(cell)


def _row(outcome: batch.Outcome, written: bool) -> dict[str, Any]:
    job, failed = outcome.job, outcome.error is not None
    return {
        "scan": str(job.scan),
        "volume_id": job.key,
        **(outcome.scores or {}),
        "warnings": list(outcome.warnings),
        "error": outcome.error or "",
        "folder": str(job.folder) if written and not failed else "",
    }
