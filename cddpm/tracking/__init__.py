"""The lab book (MLflow runs), the model package and the registry.

This file runs before any import of MLflow, whose settings are read from the environment. A setting that the user made stays.
"""

import os

_SETTINGS = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    # Retries are ours: MLflow would repeat a "create run" whose answer was lost, and make two.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
}

for _name, _value in _SETTINGS.items():
    os.environ.setdefault(_name, _value)
