"""A registered model as MLflow's generic one: in a process of its own, from a real registry, without unpickling anything."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from readme_pages import ROOT, read
from registered import register
from tiny_package import Scan

from cddpm.data.volume import read_image
from cddpm.errors import ArtifactError, ConfigError, DataError
from cddpm.predict.predictor import Prediction, Predictor
from cddpm.predict.pyfunc import ScanTable, _load_pyfunc, _records
from cddpm.predict.scans import COLUMNS
from cddpm.tracking import logged_model
from cddpm.tracking.address import default_uri
from cddpm.tracking.package import Package
from cddpm.tracking.registry import Registry

pytestmark = pytest.mark.slow

ELSEWHERE = """
import json, os, sys
import mlflow, pandas
given = dict(os.environ)
import cddpm.predict.pyfunc  # Numba reads its own cache of compiled functions
unpickled = []
sys.addaudithook(lambda event, arguments: unpickled.append(arguments) if event == "pickle.find_class" else None)
uri, table, out = sys.argv[1:]
mlflow.set_tracking_uri(uri)
model = mlflow.pyfunc.load_model("models:/cddpm@champion", model_config={"window": "package"})
at_load = list(unpickled)
scores = model.predict(pandas.DataFrame(json.loads(table)), params={"out": out})
example = model.predict(model.input_example)
print(json.dumps({
    "scores": scores.to_dict("records"), "unpickled": at_load, "example": example.to_dict("records"),
    "signature": model.metadata.get_input_schema().input_names(), "flavours": list(model.metadata.flavors),
    "raw": type(model.get_raw_model()).__name__,
    "made": {name: value for name, value in os.environ.items() if given.get(name) != value},
}))
"""


@pytest.fixture(scope="module")
def registry(package: Package, database: Path, tmp_path_factory: pytest.TempPathFactory) -> Registry:
    outputs = tmp_path_factory.mktemp("outputs")
    shutil.copyfile(database, outputs / "mlflow.db")
    tags = {"cddpm.setting.x": "1"}
    number = register(outputs, package.directory, "tiny-sweep/0007", metrics={"val/dice": 0.5}, tags=tags)
    found = Registry.open(default_uri(outputs))
    found.promote(str(number), "champion", "a test")
    return found


@pytest.fixture(scope="module")
def elsewhere(registry: Registry, scan: Scan, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    """What another process finds, and the folder of its results: of a good scan, and of one that is not there."""
    folder = tmp_path_factory.mktemp("elsewhere")
    good = {"scan": str(scan.image.path), "mask": str(scan.mask.path), "volume_id": "Brats21/patient"}
    table = json.dumps([good, {"scan": "absent.nii", "mask": None, "volume_id": None}])
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}
    chosen = {"MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    environment = {**inherited, **chosen, "HOME": str(folder)}
    command = [sys.executable, "-c", ELSEWHERE, registry.uri, table, str(folder / "out")]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=110, check=False, cwd=folder, env=environment
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1]), folder


def test_another_process_predicts_what_the_predictor_does(
    elsewhere: tuple[dict[str, Any], Path], prediction: Prediction, scan: Scan
) -> None:
    found, folder = elsewhere
    good, absent = found["scores"]
    assert {name: good[name] for name in prediction.scores} == pytest.approx(prediction.scores, rel=1e-12)
    assert (good["threshold"], good["volume_id"], good["error"]) == (0.33, "Brats21/patient", "")
    assert good["warnings"] == list(prediction.warnings)
    assert good["folder"] == str(folder / "out" / "patient")
    written = read_image(Path(good["folder"]) / "anomaly_map.nii.gz")
    np.testing.assert_array_equal(written.data, prediction.anomaly_map)
    np.testing.assert_array_equal(written.affine, scan.image.affine)
    assert absent["error"] == "absent.nii: no such file; correct the path where it is named, or restore the file"
    assert np.isnan(absent["components"])
    assert absent["folder"] == ""


@pytest.mark.slow
def test_the_readmes_lines_run(registry: Registry, scan: Scan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (code,) = read(ROOT / "cddpm" / "predict" / "README.md").blocks("python")
    monkeypatch.chdir(tmp_path)
    shutil.copy(scan.image.path, "scan_t2.nii.gz")
    shutil.copy(scan.mask.path, "scan_mask.nii.gz")
    found: dict[str, Any] = {}
    try:
        exec(code.replace("sqlite:///outputs/mlflow.db", registry.uri), found)
    finally:
        found["mlflow"].set_tracking_uri(None)
    assert found["scores"].error.tolist() == [""]
    assert (tmp_path / "predictions" / "scan_t2" / "anomaly_map.nii.gz").exists()


def test_nothing_is_unpickled_to_load_it_and_the_description_holds(elsewhere: tuple[dict[str, Any], Path]) -> None:
    found, _ = elsewhere
    assert found["unpickled"] == []
    assert found["flavours"] == ["python_function"]
    assert found["signature"] == list(COLUMNS)
    assert "no such file" in found["example"][0]["error"]  # it fits the signature
    assert found["raw"] == "Predictor"


def test_to_load_it_changes_no_setting_of_that_process(elsewhere: tuple[dict[str, Any], Path]) -> None:
    """Its retries, its pickles, its progress bars are its own; MLflow notes the URI that was set, and no more."""
    assert set(elsewhere[0]["made"]) <= {"MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI"}


def test_an_altered_package_is_not_loaded(package: Package, tmp_path: Path) -> None:
    shutil.copytree(package.directory, tmp_path / "package")
    weights = tmp_path / "package" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"?")
    with pytest.raises(ArtifactError, match=r"model\.safetensors: altered"):
        _load_pyfunc(str(tmp_path / "package"))


def test_a_version_says_what_it_is_made_of(registry: Registry, package: Package) -> None:
    version = registry.find("champion")
    assert version.tags["cddpm.setting.x"] == "1"
    assert version.tags["cddpm.data"] == "t2 of IXI, fold 0; Brats21; phantom (small)"
    config = json.loads((package.directory / "config.json").read_text())
    assert version.tags["cddpm.fingerprint.config"] == logged_model.artifact.fingerprint(config)
    assert (version.sweep, version.trial, version.metrics) == ("tiny-sweep", 7, {"val/dice": 0.5})


@pytest.fixture(scope="module")
def table(predictor: Predictor) -> ScanTable:
    return ScanTable(predictor)


def test_a_table_without_files_writes_none(table: ScanTable, scan: Scan, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    found = table.predict(pd.DataFrame({"scan": [scan.image.path], "dataset": ["Brats21"], "mask": [np.nan]}))
    assert list(found.columns) == list(logged_model.OUTPUTS)
    assert found.threshold.tolist() == [0.36]
    assert any("no brain mask given" in warning for warning in found.warnings[0])
    assert not list(tmp_path.iterdir())


@given(st.lists(st.one_of(st.none(), st.integers(0, 10**12)), min_size=1))
@example([7, None])
def test_numbers_as_ids_are_those_of_a_csv_file(ids: list[int | None]) -> None:
    """With gaps or without; a seed comes from the id's text."""
    expected = ["" if number is None else str(number) for number in ids]
    for kind in (None, object, "Int64", "float64"):
        rows = _records(pd.DataFrame({"volume_id": pd.Series(ids, dtype=kind)}))
        assert [values["volume_id"] for _, values in rows] == expected


def test_faults_of_a_table_come_before_any_work(table: ScanTable, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"unknown column 'scans'.*did you mean 'scan'"):
        table.predict(pd.DataFrame({"scans": ["a.nii"]}))
    with pytest.raises(DataError, match="row 1: column 'scan' is empty"):
        table.predict(pd.DataFrame({"scan": ["a.nii", None]}))
    with pytest.raises(ConfigError, match="'IXI': this model has no threshold"):
        table.predict(pd.DataFrame({"scan": ["a.nii"]}), {"dataset": "IXI"})
    with pytest.raises(DataError, match="both would go to"):
        table.predict(pd.DataFrame({"scan": ["a.nii", "b/a.nii"]}), {"out": str(tmp_path)})


def test_the_device_is_chosen_when_it_is_loaded(package: Package, monkeypatch: pytest.MonkeyPatch) -> None:
    assert _load_pyfunc(str(package.directory), {"device": "cpu"}).get_raw_model().device.type == "cpu"
    with pytest.raises(ConfigError, match="device 'tpu'"):
        _load_pyfunc(str(package.directory), {"device": "tpu"})
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(ConfigError, match="no CUDA device"):
        _load_pyfunc(str(package.directory), {"device": "cuda"})
