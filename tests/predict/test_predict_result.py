"""When a folder of results counts as done, and when it is somebody else's."""

import dataclasses
import json
import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_package import Scan

from cddpm.errors import ArtifactError
from cddpm.predict.predictor import Prediction
from cddpm.predict.result import FILES, RESULT, Identity, check_same, is_done, places, scan_of, write
from cddpm.predict.scans import Job

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def job(scan: Scan, tmp_path_factory: pytest.TempPathFactory) -> Job:
    return Job(scan.image.path, tmp_path_factory.mktemp("result") / "patient", scan.mask.path, "Brats21/patient")


@pytest.fixture(scope="module")
def identity(job: Job, scan: Scan, prediction: Prediction) -> Identity:
    """Of results that were written."""
    found = Identity.of("model-1", job)
    write(job.folder, scan.image, prediction, found, {"model": {"fingerprint": "model-1"}})
    return found


def test_what_was_written_is_done(job: Job, identity: Identity) -> None:
    assert is_done(job.folder, identity)
    check_same(job.folder, "model-1", job)
    assert {path.name for path in job.folder.iterdir()} == {*FILES, RESULT}


@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(Identity)])
def test_another_identity_is_not_done(job: Job, identity: Identity, name: str) -> None:
    assert not is_done(job.folder, dataclasses.replace(identity, **{name: "other"}))


@pytest.mark.parametrize("harm", [*FILES, RESULT, "half a result.json"])
def test_what_is_half_written_or_altered_is_done_again(job: Job, identity: Identity, harm: str) -> None:
    file = job.folder / (RESULT if harm.startswith("half") else harm)
    whole = file.read_bytes()
    try:
        file.write_bytes(whole[: len(whole) // 2])
        assert not is_done(job.folder, identity)
        file.unlink()
        assert not is_done(job.folder, identity)
    finally:
        file.write_bytes(whole)
    assert is_done(job.folder, identity)


def test_a_changed_scan_or_mask_is_another_identity(job: Job, scan: Scan, tmp_path: Path) -> None:
    copy = tmp_path / "patient.nii.gz"
    copy.write_bytes(scan.image.path.read_bytes())
    same = Identity.of("m", dataclasses.replace(job, scan=copy))
    assert same == Identity.of("m", job)  # the bytes count, not the place
    copy.write_bytes(copy.read_bytes() + b" ")
    assert Identity.of("m", dataclasses.replace(job, scan=copy)) != same
    assert Identity.of("m", dataclasses.replace(job, mask=None)).mask_sha256 is None


def test_results_of_another_model_or_setting_are_told(job: Job, identity: Identity) -> None:
    with pytest.raises(ArtifactError, match=r"holds a result of model 'model-1', not 'model-2'; give another --out"):
        check_same(job.folder, "model-2", job)
    with pytest.raises(ArtifactError, match="dataset 'all', not 'Brats21'"):
        check_same(job.folder, "model-1", dataclasses.replace(job, dataset="Brats21"))
    with pytest.raises(ArtifactError, match="volume_id 'Brats21/patient', not 'patient'"):
        check_same(job.folder, "model-1", dataclasses.replace(job, volume_id=None))


def test_a_folder_without_a_result_is_nobodys(job: Job, tmp_path: Path) -> None:
    check_same(tmp_path, "model-1", job)
    for text in ("", "[1]", "{}", json.dumps({"identity": None})):
        (tmp_path / RESULT).write_text(text)
        check_same(tmp_path, "model-1", job)


_WAY = st.lists(st.sampled_from(["a", "b", "Study #1 50% ü"]), max_size=3).map(lambda parts: "/".join(parts))


@settings(max_examples=40, deadline=None)
@given(scans=_WAY, results=_WAY, how=st.sampled_from(["mv", "cp", "mv to another depth", "results alone"]))
def test_the_scan_of_a_result_is_found_where_both_went(scans: str, results: str, how: str) -> None:
    """And the old place is looked at only where the file at the new one is missing or another."""
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch).resolve()
        old, new = root / "deep/old", root / ("new" if "depth" in how else "deep/new")
        job = Job(old / scans / "scan.nii", old / results / "out" / "scan")
        for folder in (job.scan.parent, job.folder):
            folder.mkdir(parents=True, exist_ok=True)
        job.scan.write_text("one")
        sha = Identity.of("m", job).scan_sha256
        found = {"scan": str(job.scan), "places": places(job), "identity": {"scan_sha256": sha}}
        if how == "results alone":
            assert scan_of(job.folder.rename(root / "elsewhere"), found) == job.scan
            return
        shutil.copytree(old, new) if how == "cp" else shutil.move(old, new)
        here, folder = new / job.scan.relative_to(old), new / job.folder.relative_to(old)
        assert scan_of(folder, found) == here
        here.write_text("another")
        if how == "cp":
            assert scan_of(folder, found) == job.scan
            job.scan.write_text("another")
        with pytest.raises(ArtifactError, match=r"scan\.nii: not the file that .* was made from"):
            scan_of(folder, found)
        here.unlink()
        job.scan.unlink(missing_ok=True)
        with pytest.raises(ArtifactError, match="its scan is gone") as caught:
            scan_of(folder, found)
        assert str(here) in str(caught.value)


def test_a_result_that_does_not_say_where_its_scan_lies_is_none(tmp_path: Path) -> None:
    (tmp_path / "scan.nii").write_text("one")
    for found in ({}, {"scan": str(tmp_path / "scan.nii")}):
        with pytest.raises(KeyError):
            scan_of(tmp_path / "out", found)
