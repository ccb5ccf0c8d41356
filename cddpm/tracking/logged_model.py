"""A package as MLflow keeps it: a logged model that ``mlflow.pyfunc`` loads, with the package whole inside.

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
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import requires, version
from pathlib import Path
from typing import Any

from cddpm import artifact
from cddpm.errors import ArtifactError
from cddpm.tracking import names
from cddpm.tracking.package_files import CONFIG, PIPELINE, listed_files, verify_package

KIND = "logged model"
PACKAGE = Path("data", "package")
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
DEVICE = {"device": "auto"}
EXAMPLE = {"scan": "scan_t2.nii.gz", "mask": "scan_mask.nii.gz"}

_REQUIREMENT = re.compile(r"(?P<name>[\w.-]+)(?P<extras>\[[^\]]*\])?")
_TAGS = {
    "store": names.FINGERPRINT_STORE,
    "encoder": names.FINGERPRINT_ENCODER,
    "guide": names.FINGERPRINT_GUIDE,
    "checkpoint": names.FINGERPRINT_CHECKPOINT,
    "reconstruction": names.FINGERPRINT_RECONSTRUCTION,
}


@contextmanager
def built(package_dir: Path, run_id: str, model_id: str) -> Iterator[Path]:
    """The folder of the logged model ``model_id`` for a package that verifies; it is gone when the block ends."""
    import mlflow.pyfunc
    import pandas as pd
    from mlflow.models import Model

    with tempfile.TemporaryDirectory(prefix="cddpm-") as place:
        folder, named = Path(place, "model"), Path(place, PACKAGE.name)
        named.symlink_to(package_dir.resolve())  # MLflow copies it under its name
        mlflow.pyfunc.save_model(
            folder,
            loader_module=LOADER,
            data_path=str(named),
            mlflow_model=Model(run_id=run_id, model_id=model_id),
            signature=_signature(),
            input_example=(pd.DataFrame([EXAMPLE]), dict(PARAMS)),
            pip_requirements=requirements(),
            model_config=dict(DEVICE),
            metadata={"cddpm": version("cddpm")},
        )
        artifact.seal(folder, KIND, verify_package(folder / PACKAGE).fingerprint, {})
        yield folder


def verify(folder: Path) -> Path:
    """The package inside of a logged model, after every file was read once and compared. Raises ``ArtifactError``."""
    package, found = folder / PACKAGE, artifact.verify(folder, KIND).files
    for name, digest in listed_files(package).files.items():
        if found.get(str(PACKAGE / name)) != digest:
            raise ArtifactError(f"{package / name}: altered or damaged since it was written (its SHA-256 is another)")
    return package


def requirements() -> list[str]:
    """What this program depends on, pinned to the versions that are installed; local builds (``+cpu``) by their version."""
    found = [_REQUIREMENT.match(text) for text in requires("cddpm") or () if "extra ==" not in text]
    return sorted(f"{m['name']}{m['extras'] or ''}=={version(m['name']).split('+')[0]}" for m in found if m)


def tags(package_dir: Path) -> dict[str, str]:
    """What a version says of its origin, read from its package: fingerprints, data, digest of the settings."""
    config = json.loads((package_dir / CONFIG).read_text())
    pipeline = json.loads((package_dir / PIPELINE).read_text())
    fingerprints = {_TAGS[k]: v for k, v in pipeline["fingerprints"].items() if k in _TAGS}
    return {
        **fingerprints,
        names.FINGERPRINT_CONFIG: artifact.fingerprint(config),
        names.DATA: _data(config["data"]),
    }


def _data(data: dict[str, Any]) -> str:
    place = data.get("table") or data.get("data_dir") or f"phantom ({data['phantom']['size']})"
    return f"{data['modality']} of {data['healthy']}, fold {data['fold']}; {', '.join(data['unhealthy'])}; {place}"


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
