"""Registration: a model package becomes a logged model of its run and a version of the registered model, through MLflow."""

import json
import logging
import math
from collections.abc import Mapping
from pathlib import Path

from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from cddpm.tracking import connection, logged_model, names

logger = logging.getLogger(__name__)

_MODEL_TYPE = "cddpm"
_FILTERED = (names.SWEEP, names.TRIAL, names.AIM, names.DATA, names.VERSION, names.COMMIT, names.METRICS)
"""What stays a tag of its own on a version's page; all else is in one."""


class Registration:
    """Makes versions of one registered model. Every method raises ``TrackingError`` if MLflow refuses."""

    def __init__(self, client: MlflowClient, uri: str, name: str) -> None:
        self._client, self.uri, self.name = client, uri, name

    def register(
        self,
        run_id: str,
        package_dir: Path,
        fingerprint: str,
        metrics: Mapping[str, float],
        tags: Mapping[str, str],
        label: str,
    ) -> int:
        """Upload a package of this fingerprint and make a version of it; returns its number.

        ``label``: Markdown on top of the version's page; a link to the run's files is added.

        What an earlier attempt left unfinished is finished.
        """
        with connection.told(f"registering {package_dir} as '{self.name}'"):
            model_id = self._logged_model(run_id, package_dir, fingerprint)
            labels = _labels(fingerprint, metrics)
            return self._new_version(run_id, model_id, {**logged_model.tags(package_dir), **tags, **labels}, label)

    def _logged_model(self, run_id: str, package_dir: Path, name: str) -> str:
        """MLflow's model id of the package, uploaded; one that an earlier attempt left unfinished is used again."""
        experiment_id = self._client.get_run(run_id).info.experiment_id
        mine = self._client.search_logged_models([experiment_id], filter_string=f"source_run_id = '{run_id}'")
        model = next((m for m in mine if m.tags.get(names.FINGERPRINT_PACKAGE) == name), None)
        if model is None:
            model = self._client.create_logged_model(
                experiment_id,
                name=f"{self.name}-{name}",
                source_run_id=run_id,
                tags={names.FINGERPRINT_PACKAGE: name},
                model_type=_MODEL_TYPE,
            )
        if model.status != "READY":
            with logged_model.built(package_dir, run_id, model.model_id) as folder:
                self._client.log_model_artifacts(model.model_id, str(folder))
            self._client.finalize_logged_model(model.model_id, "READY")
        return str(model.model_id)

    def _new_version(self, run_id: str, model_id: str, tags: dict[str, str], label: str) -> int:
        try:
            self._client.create_registered_model(self.name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        run = self._client.get_run(run_id)
        identity = _identity(run.data.tags)
        files = f"#/experiments/{run.info.experiment_id}/runs/{run_id}/artifacts"
        with connection.as_global(self.uri):
            version = self._client.create_model_version(
                self.name,
                f"models:/{model_id}",
                run_id,
                _packed({**tags, **identity}),
                description=f"{label}[Pictures and tables of its volumes]({files})\n",
                await_creation_for=60,
                model_id=model_id,
            )
        return int(version.version)


def _labels(name: str, metrics: Mapping[str, float]) -> dict[str, str]:
    finite = {key: float(value) for key, value in metrics.items() if math.isfinite(value)}
    for key in sorted(metrics.keys() - finite.keys()):
        logger.warning("metric %s of package %s is %s and left out", key, name, metrics[key])
    return {names.FINGERPRINT_PACKAGE: name, names.METRICS: json.dumps(finite, sort_keys=True)}


def _packed(tags: Mapping[str, str]) -> dict[str, str]:
    shown = {name: value for name, value in tags.items() if name in _FILTERED}
    return {**shown, names.RECORD: json.dumps({n: v for n, v in tags.items() if n not in shown}, sort_keys=True)}


def _identity(tags: Mapping[str, str]) -> dict[str, str]:
    return {name: tags[name] for name in (names.SWEEP, names.TRIAL, names.KIND) if name in tags}
