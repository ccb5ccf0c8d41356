"""When a folder of results counts as done, and when it is somebody else's."""

import dataclasses
import json
from pathlib import Path

import pytest
from tiny_package import Scan

from cddpm.errors import ArtifactError
from cddpm.predict.predictor import Prediction
from cddpm.predict.result import FILES, RESULT, Identity, check_same, is_done, write
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
