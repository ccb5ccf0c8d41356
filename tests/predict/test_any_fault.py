"""Whatever a scan does to us costs one line that names it; half a result is none; any name can be told."""

import errno
import os
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_package import QUICK, SCORING, THRESHOLDS, Scan

from cddpm.errors import ConfigError, StorageError, VolumeError
from cddpm.predict import batch, result
from cddpm.predict.predictor import Prediction
from cddpm.predict.scans import Job
from cddpm.predict.threshold_calibration import measure
from cddpm.tracking.package import Package, Pipeline

ERRORS = [
    *(MemoryError(), torch.OutOfMemoryError("CUDA"), zlib.error("Error -3"), EOFError("ended"), OverflowError("far")),
    *(UnicodeDecodeError("utf-8", b"\xe4", 0, 1, "bad"), UnicodeEncodeError("utf-8", "\udce4", 0, 1, "bad")),
    *(OSError(errno.EIO, "Input/output error"), KeyError("a"), RecursionError(), ValueError("two\nlines")),
    *(RuntimeError("in C++"), ZeroDivisionError(), VolumeError("no such thing"), AssertionError(), TypeError("x")),
]
PACKAGE = Package(Path("none"), "fingerprint", {}, QUICK, Pipeline(scoring=SCORING, thresholds=THRESHOLDS))


def predictor(fails: Callable[[], None], prediction: Prediction) -> Any:
    """One that calls ``fails`` first."""

    def predict_scan(*_: object) -> Prediction:
        fails()
        return prediction

    def brain_scores(*_: object) -> Any:
        fails()

    parts = {"package": PACKAGE, "settings": {}, "device": "cpu", "predict_scan": predict_scan}
    return SimpleNamespace(**parts, brain_scores=brain_scores)


@pytest.mark.slow
@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_any_error_is_one_line_of_that_scan(
    error: Exception, scan: Scan, prediction: Prediction, tmp_path: Path
) -> None:
    def fails() -> None:
        raise error

    job = Job(scan.image.path, tmp_path / "out", scan.mask.path)
    failing = predictor(fails, prediction)
    outcome = batch.work_on(failing, batch.Work(PACKAGE, {}), job)
    (measured,) = measure(failing, [job])
    for told in (outcome.error, measured.error):
        assert told is not None
        assert "\n" not in told
        assert str(scan.image.path) in told
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.parametrize("error", [StorageError("full"), ConfigError("no such data set")])
def test_what_concerns_all_scans_is_raised(
    error: Exception, scan: Scan, prediction: Prediction, tmp_path: Path
) -> None:
    def fails() -> None:
        raise error

    with pytest.raises(type(error)):
        batch.work_on(predictor(fails, prediction), batch.Work(PACKAGE, {}), Job(scan.image.path, tmp_path))


@pytest.mark.slow
@pytest.mark.parametrize("part", ["write_volume", "_draw", "_result"])
def test_half_a_result_is_removed(
    part: str, scan: Scan, prediction: Prediction, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job, work = Job(scan.image.path, tmp_path / "out", scan.mask.path), batch.Work(PACKAGE, {})
    whole = predictor(lambda: None, prediction)
    assert batch.work_on(whole, work, job).error is None
    (job.folder / "notes.txt").touch()

    def fails(*_: object, **__: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(result, part, fails)
    assert "Input/output error" in str(batch.work_on(whole, work, job).error)
    assert [path.name for path in job.folder.iterdir()] == ["notes.txt"]
    other = replace(job, folder=tmp_path / "other")
    assert batch.work_on(whole, work, other).error is not None
    assert not other.folder.exists()


@pytest.mark.slow
@given(st.text(st.characters(exclude_characters="/\0"), min_size=1, max_size=40) | st.binary(max_size=40).map(repr))
@settings(deadline=None)
def test_a_key_can_be_written_anywhere(name: str) -> None:
    key = Job(Path(f"{name}\udce4.nii"), Path("out")).key
    assert key.encode().decode().isprintable() or not name.isprintable()
    assert "\n" not in key
    assert Job(Path("x.nii"), Path("out"), volume_id="Brats21/patient").key == "Brats21/patient"


@pytest.mark.parametrize("number", sorted(errno.errorcode))
def test_what_the_host_refuses_names_scan_place_and_remedy(number: int, tmp_path: Path) -> None:
    job = Job(tmp_path / "scan.nii.gz", tmp_path / "out" / "scan", None)
    told = batch.told(job, OSError(number, os.strerror(number), str(job.folder)))
    place, remedy = told.split(f"{os.strerror(number)}; ", 1)
    assert place == f"{job.scan}: {job.folder}: "
    assert remedy
    assert "\n" not in told


def test_a_file_in_the_way_of_the_results_is_told(scan: Scan, prediction: Prediction, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("mine")
    job = Job(scan.image.path, tmp_path / "out" / "patient", scan.mask.path)
    outcome = batch.work_on(predictor(lambda: None, prediction), batch.Work(PACKAGE, {}), job)
    assert outcome.error is not None
    assert "a part of this path is a file; choose a folder" in outcome.error
    assert (tmp_path / "out").read_text() == "mine"
