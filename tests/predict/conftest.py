"""Fixtures of predictions."""

import pytest
import torch
from tiny_package import package, prediction, predictor, scan

__all__ = ["package", "prediction", "predictor", "scan"]


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)
