"""Fixtures of predictions."""

import pytest
import torch
from tiny_package import healthy, package, prediction, predictor, quick_package, scan

__all__ = ["healthy", "package", "prediction", "predictor", "quick_package", "scan"]


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)
