"""Tracking: MLflow as a mirror of what folders say, and the registry of models.

Here are only MLflow's settings in processes that are ours: our commands, and whoever keeps a lab book. MLflow reads them from
the environment of the whole process. So no import makes them: somebody who only loads a model of ours among other work keeps
their own retries, progress bars and pickles.
"""

import logging
import os

_VARIABLES = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    # Retries are ours: MLflow would repeat a "create run" whose answer was lost, and make two.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
}
_LEVELS = {
    "mlflow": logging.WARNING,
    "mlflow.store.db.utils": logging.CRITICAL,
    "alembic": logging.WARNING,
}


def apply_settings() -> None:
    """Make them, best before MLflow is imported (telemetry starts then). A setting that the user made stays."""
    for name, value in _VARIABLES.items():
        os.environ.setdefault(name, value)


def quieten_mlflow() -> None:
    """Keep MLflow's loggers to what went wrong; it sets their levels itself when it is imported."""
    for name, level in _LEVELS.items():
        logging.getLogger(name).setLevel(level)
