"""Fixtures of the command line's tests."""

import pytest
import torch
from tiny_package import Scan, make_package, make_scan

from cddpm.predict import Prediction, Predictor
from cddpm.tracking.package import Package


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def package(tmp_path_factory: pytest.TempPathFactory) -> Package:
    return make_package(tmp_path_factory.mktemp("model") / "package")


@pytest.fixture(scope="session")
def scan(tmp_path_factory: pytest.TempPathFactory) -> Scan:
    return make_scan(tmp_path_factory.mktemp("scan"))


@pytest.fixture(scope="session")
def predictor(package: Package) -> Predictor:
    return Predictor(package)


@pytest.fixture(scope="session")
def prediction(predictor: Predictor, scan: Scan) -> Prediction:
    return predictor.predict_scan(scan.image, scan.mask, "Brats21/patient")
