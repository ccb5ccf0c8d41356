"""Sweeps to report on; made once, read only."""

import shutil
from pathlib import Path

import built_sweep
import cohort_folder
import pytest
import torch
from browser import browser, chromium
from tiny_package import Scan, package, scan, turned, turned_array
from typer.testing import CliRunner

from cddpm.cli import app
from cddpm.data.volume import read_segmentation, write_volume
from cddpm.search import record
from cddpm.search.record import SweepRecord
from cddpm.tracking.package import Package

__all__ = ["browser", "chromium", "package", "scan"]
AXES, FLIPS = (2, 0, 1), (0, 2)
"""Of the scan that lies otherwise in its file."""


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> SweepRecord:
    """Two trials, trained and scored on test."""
    return record.read(built_sweep.trained(tmp_path_factory.mktemp("finished")))


@pytest.fixture(scope="session")
def long(tmp_path_factory: pytest.TempPathFactory) -> SweepRecord:
    """Thirty trials, drawn; nothing scored on test yet, no artifacts."""
    return record.read(built_sweep.drawn(tmp_path_factory.mktemp("long"), trials=30, points=40))


@pytest.fixture(scope="session")
def empty(tmp_path_factory: pytest.TempPathFactory) -> SweepRecord:
    """Begun, no trial yet."""
    return record.read(built_sweep.begin(built_sweep.config(tmp_path_factory.mktemp("empty"), "empty")))


@pytest.fixture(scope="session")
def looked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``data``, a cohort with odd scans, and ``looked.yaml``, which fits it."""
    folder = tmp_path_factory.mktemp("cohort")
    (folder / "looked.yaml").write_text(cohort_folder.SETTINGS)
    cohort_folder.make(folder / "data")
    return folder


@pytest.fixture(scope="session")
def predicted(package: Package, scan: Scan, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The scan as it is, and with its axes in another order: ``patient`` and ``turned``, beside their truths."""
    folder = tmp_path_factory.mktemp("predicted")
    other = turned(scan.image, AXES, FLIPS)
    write_volume(folder / "turned.nii.gz", other.data, other.affine)
    write_volume(folder / "turned_mask.nii.gz", turned_array(scan.mask.data, AXES, FLIPS), other.affine)
    truth = read_segmentation(scan.segmentation)
    write_volume(folder / "turned_seg.nii.gz", turned_array(truth.data, AXES, FLIPS), other.affine)
    shutil.copy(scan.segmentation, folder / "patient_seg.nii.gz")
    given = [
        scan.image.path,
        folder / "turned.nii.gz",
        "--mask",
        scan.mask.path,
        "--mask",
        folder / "turned_mask.nii.gz",
    ]
    keys = ["--volume-id", "Brats21/patient", "--volume-id", "Brats21/patient"]
    command = ["predict", *given, *keys, "--out", folder / "out", "--model", package.directory]
    done = CliRunner().invoke(app, [str(part) for part in command], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return folder
