"""A package maps intensities as its slice store did, whichever way they were harmonised."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage
from tiny_package import QUICK, SCORING, Scan, make_healthy, make_package

from cddpm.config import with_values
from cddpm.data.layout import ScanRow
from cddpm.data.store import SliceStore, build_store, with_landmarks
from cddpm.predict.predictor import Predictor
from cddpm.reconstruct.cohort import Cohort
from cddpm.reconstruct.predict import Networks
from cddpm.tracking.package import read_package

pytestmark = pytest.mark.slow

KEY = "Brats21/patient"


@pytest.mark.parametrize("option", ["percentiles", "landmarks", "white-stripe", "z-score"])
def test_predict_of_a_stored_volume_equals_the_scorers_map(option: str, scan: Scan, tmp_path: Path) -> None:
    config = with_values(QUICK, {"data.intensities": option})
    healthy = make_healthy(tmp_path / "healthy", 2)
    rows = [
        ScanRow("IXI", f"{i}", "train", 0, 0, None, one.image.path, one.mask.path, None, "here:1")
        for i, one in enumerate(healthy)
    ]
    files = (scan.image.path, scan.mask.path, scan.segmentation)
    rows.append(ScanRow("Brats21", "patient", "test", None, 1, None, *files, "here:2"))
    path = build_store(config.data, tmp_path, rows, tmp_path / "artifacts", map)
    config = config.model_copy(update={"data": with_landmarks(config.data, path)})
    make_package(tmp_path / "package", config)
    own = read_package(tmp_path / "package")  # all that the training knew, from its files alone
    predictor = Predictor(own, window="package")

    store = SliceStore.open(path)
    cohort = Cohort(store, {"Brats21": [store.cohort("Brats21", "test")[0]]})
    scorer = cohort.scorer(cohort.reconstruct(Networks(predictor.config, predictor._model), SCORING))
    found = predictor.predict_scan(scan.image, scan.mask, KEY)
    volume = cohort.volumes[0]
    assert found.working.anomaly_map.any()
    np.testing.assert_array_equal(found.working.image, store.image(volume))
    np.testing.assert_array_equal(found.working.anomaly_map, scorer.anomaly_map(volume, SCORING))

    if option == "percentiles":
        return
    _, prepared = predictor._prepared(scan.image, scan.mask)
    inside = (
        found.reconstruction != 0
    )  # a reconstruction in intensities of the scan, seen again, is what the network said
    said = ndimage.gaussian_filter(prepared.mapping(found.reconstruction), 1)[inside]
    assert 0 < said.mean() < 1
    assert dataclasses.replace(found).intensities == prepared.intensities
