"""A package as MLflow keeps it: a logged model that ``mlflow.pyfunc`` loads, with the package whole inside, and its version.

=======================================  ===============================================================================
MLmodel                                  loader module (``cddpm.predict.pyfunc``), signature, where the package lies
input_example.json, serving_input_...    a call as an example
requirements.txt, conda.yaml, python_... the versions that were installed where the model was registered
data/package/                            the package (``cddpm.tracking.package``), as ``cddpm registry pull`` gives it
manifest.json                            digests of all of these (``cddpm.artifact``)
=======================================  ===============================================================================

Nothing in it is pickled and it brings no code: the loader module is this program's own.
"""

import json
import logging
import math
import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import requires, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cddpm import artifact
from cddpm.tracking import names
from cddpm.tracking.package_files import CONFIG, INSIDE, LOGGED_MODEL, PIPELINE, listed_files, verify_package

if TYPE_CHECKING:  # over two seconds to import, and who only loads a model of ours does not need it
    from mlflow import MlflowClient

logger = logging.getLogger(__name__)

LOADER = "cddpm.predict.pyfunc"

INPUTS = {"scan": True, "mask": False, "volume_id": False, "dataset": False, "name": False}
"""Columns of the table that is asked with, all texts -> whether a table needs it."""
OUTPUTS = {
    "scan": "string",
    "volume_id": "string",
    "threshold": "double",
    "segmented_ml": "double",
    "segmented_fraction_of_brain": "double",
    "components": "double",
    "brain_ml": "double",
    "anomaly_mean": "double",
    "anomaly_99th_percentile": "double",
    "anomaly_maximum": "double",
    "warnings": "strings",
    "error": "string",
    "folder": "string",
}
"""Columns of the table that comes back -> their types."""
PARAMS = {"out": "", "dataset": "all"}
"""Folder for the files of ``cddpm predict`` (empty: none are written), and the data set whose threshold is used."""
MODEL_CONFIG = {"device": "auto", "window": "whole"}
"""Where the network runs, and what of a brain is looked at; as the options of ``cddpm predict``."""
EXAMPLE = {"scan": "scan_t2.nii.gz", "mask": "scan_mask.nii.gz"}

_REQUIREMENT = re.compile(r"(?P<name>[\w.-]+)(?P<extras>\[[^\]]*\])?")
_MODEL_TYPE = "cddpm"
_FILTERED = (names.SWEEP, names.TRIAL, names.AIM, names.DATA, names.VERSION, names.COMMIT, names.METRICS)
"""What stays a tag of its own on a version's page; all else is in one."""


def register(
    client: "MlflowClient",
    uri: str,
    name: str,
    run_id: str,
    package_dir: Path,
    metrics: Mapping[str, float],
    tags: Mapping[str, str],
    label: str,
) -> int:
    """Upload a package, once verified, for a run and make it a version of the registered model ``name``; returns its number.

    What an earlier attempt left unfinished is finished. ``label``: Markdown on top of the version's page; a link to the run's
    files is added. Raises ``TrackingError`` if MLflow refuses.
    """
    from cddpm.tracking import connection

    fingerprint = listed_files(package_dir).fingerprint  # whoever calls has compared the digests
    finite = {key: float(value) for key, value in metrics.items() if math.isfinite(value)}
    for key in sorted(metrics.keys() - finite.keys()):
        logger.warning("metric %s of package %s is %s and left out", key, fingerprint, metrics[key])
    with connection.told(f"registering {package_dir} as '{name}'"):
        run = client.get_run(run_id)
        model_id = _uploaded(client, run.info, name, package_dir, fingerprint)
        _make_model(client, name)
        identity = (names.SWEEP, names.TRIAL, names.KIND)
        told = {
            **_origin(package_dir),
            **tags,
            names.FINGERPRINT_PACKAGE: fingerprint,
            names.METRICS: json.dumps(finite, sort_keys=True),
            **{tag: run.data.tags[tag] for tag in identity if tag in run.data.tags},
        }
        shown = {tag: value for tag, value in told.items() if tag in _FILTERED}
        hidden = {tag: value for tag, value in told.items() if tag not in shown}
        files = f"#/experiments/{run.info.experiment_id}/runs/{run_id}/artifacts"
        with connection.as_global(uri):
            made = client.create_model_version(
                name,
                f"models:/{model_id}",
                run_id,
                {**shown, names.RECORD: json.dumps(hidden, sort_keys=True)},
                description=f"{label}[Pictures and tables of its volumes]({files})\n",
                await_creation_for=60,
                model_id=model_id,
            )
    return int(made.version)


def _uploaded(client: "MlflowClient", run: Any, name: str, package_dir: Path, fingerprint: str) -> str:
    """MLflow's model id of the package, uploaded; one that an earlier attempt left unfinished is used again."""
    mine = client.search_logged_models([run.experiment_id], filter_string=f"source_run_id = '{run.run_id}'")
    model = next((m for m in mine if m.tags.get(names.FINGERPRINT_PACKAGE) == fingerprint), None)
    if model is None:
        model = client.create_logged_model(
            run.experiment_id,
            name=f"{name}-{fingerprint}",
            source_run_id=run.run_id,
            tags={names.FINGERPRINT_PACKAGE: fingerprint},
            model_type=_MODEL_TYPE,
        )
    if model.status != "READY":
        with built(package_dir, run.run_id, model.model_id) as folder:
            client.log_model_artifacts(model.model_id, str(folder))
        client.finalize_logged_model(model.model_id, "READY")
    return str(model.model_id)


def _make_model(client: "MlflowClient", name: str) -> None:
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


@contextmanager
def built(package_dir: Path, run_id: str, model_id: str) -> Iterator[Path]:
    """The folder of the logged model ``model_id`` for a package that verifies; it is gone when the block ends."""
    import mlflow.pyfunc
    import pandas as pd
    from mlflow.models import Model

    with tempfile.TemporaryDirectory(prefix="cddpm-") as place:
        folder, named = Path(place, "model"), Path(place, INSIDE.name)
        named.symlink_to(package_dir.resolve())  # MLflow copies it under its name
        mlflow.pyfunc.save_model(
            folder,
            loader_module=LOADER,
            data_path=str(named),
            mlflow_model=Model(run_id=run_id, model_id=model_id),
            signature=_signature(),
            input_example=(pd.DataFrame([EXAMPLE]), dict(PARAMS)),
            pip_requirements=requirements(),
            model_config=dict(MODEL_CONFIG),
            metadata={"cddpm": version("cddpm")},
        )
        artifact.seal(folder, LOGGED_MODEL, verify_package(folder / INSIDE).fingerprint, {})
        yield folder


def requirements() -> list[str]:
    """What this program depends on, pinned to the versions that are installed; local builds (``+cpu``) by their version."""
    found = [_REQUIREMENT.match(text) for text in requires("cddpm") or () if "extra ==" not in text]
    return sorted(f"{m['name']}{m['extras'] or ''}=={version(m['name']).split('+')[0]}" for m in found if m)


def _origin(package_dir: Path) -> dict[str, str]:
    """What a version says of its origin, read from its package: fingerprints, data, digest of the settings."""
    config = json.loads((package_dir / CONFIG).read_text())
    pipeline = json.loads((package_dir / PIPELINE).read_text())
    data = config["data"]
    place = data.get("table") or data.get("data_dir") or f"phantom ({data['phantom']['size']})"
    told = f"{data['modality']} of {data['healthy']}, fold {data['fold']}; {', '.join(data['unhealthy'])}; {place}"
    fingerprints = {
        tag: pipeline["fingerprints"][stage]
        for stage, tag in names.FINGERPRINTS.items()
        if stage in pipeline["fingerprints"]
    }
    return {**fingerprints, names.FINGERPRINT_CONFIG: artifact.fingerprint(config), names.DATA: told}


def _signature() -> Any:
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema
    from mlflow.types.schema import Array

    kinds: dict[str, Any] = {"string": DataType.string, "double": DataType.double, "strings": Array(DataType.string)}
    return ModelSignature(
        Schema([ColSpec(DataType.string, name, required) for name, required in INPUTS.items()]),
        Schema([ColSpec(kinds[kind], name) for name, kind in OUTPUTS.items()]),
        ParamSchema([ParamSpec(name, DataType.string, default) for name, default in PARAMS.items()]),
    )
