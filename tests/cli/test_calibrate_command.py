"""``cddpm registry calibrate`` and ``cddpm predict --threshold-from``: from healthy scans to a threshold that is used."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from registered import register
from tiny_package import EXPERIMENT, Scan
from typer.testing import CliRunner, Result

from cddpm.cli import app
from cddpm.cli.shell import guarded_app
from cddpm.config import with_values
from cddpm.data.volume import read_segmentation
from cddpm.errors import ArtifactError, CddpmError, ConfigError, DataError, TrackingError
from cddpm.predict import threshold_calibration
from cddpm.predict.predictor import Predictor
from cddpm.predict.scans import Job
from cddpm.tracking.address import default_uri
from cddpm.tracking.package import Package, write_package
from cddpm.tracking.registry import Registry

pytestmark = pytest.mark.slow


def run(*arguments: object, columns: int = 80) -> Result:
    """Run a command; an error of this program is raised."""
    done = CliRunner().invoke(app, [str(argument) for argument in arguments], env={"COLUMNS": str(columns)})
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of its own without a lab book."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def lab_book(quick_package: Package, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The URI of a lab book in which the package is the champion."""
    outputs = tmp_path_factory.mktemp("lab") / "outputs"
    number = register(outputs, quick_package.directory, "tiny-sweep/0007", metrics={"val/dice": 0.5})
    uri = default_uri(outputs)
    Registry.open(uri).promote(str(number), "champion", "a test")
    return uri


@pytest.fixture(scope="module")
def table(healthy: list[Scan], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CSV table of the healthy scans with their masks."""
    file = tmp_path_factory.mktemp("table") / "scans.csv"
    file.write_text("scan,mask\n" + "".join(f"{scan.image.path},{scan.mask.path}\n" for scan in healthy))
    return file


@pytest.fixture(scope="module")
def made(lab_book: str, table: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A calibration of the champion, and what ``--json`` printed."""
    out = tmp_path_factory.mktemp("made") / "calibration.json"
    arguments = ("--healthy", table, "--fpr", 0.02, "--tracking-uri", lab_book, "--out", out, "--json")
    done = run("registry", "calibrate", "champion", *arguments)
    assert (done.exit_code, done.stderr.count("error")) == (0, 0)
    return out, json.loads(done.stdout)


def test_it_writes_what_it_prints_and_what_the_operating_point_is(
    made: tuple[Path, dict[str, Any]], quick_package: Package, healthy: list[Scan], lab_book: str
) -> None:
    out, printed = made
    assert printed == {**json.loads(out.read_text()), "file": str(out)}
    jobs = [Job(scan.image.path, Path(), scan.mask.path) for scan in healthy]
    measured = list(threshold_calibration.measure(Predictor(quick_package), jobs))
    expected = threshold_calibration.calibrate(quick_package, measured, 0.02, {}, "cpu")
    found = threshold_calibration.read(out)
    assert (found.threshold, found.scans, found.brain_voxels) == (
        expected.threshold,
        expected.scans,
        expected.brain_voxels,
    )
    assert found.healthy_false_positive_rate == 0.02
    assert found.model.package == quick_package.fingerprint
    assert (found.model.found["reference"], found.model.found["version"]) == ("champion", 1)
    assert Registry.open(lab_book).verify(Registry.open(lab_book).find("champion")) is None  # as it was registered


def test_predict_takes_the_threshold(
    made: tuple[Path, dict[str, Any]], lab_book: str, healthy: list[Scan], quick_package: Package, here: Path
) -> None:
    out, printed = made
    scan, expected = healthy[1], printed["scans"][1]
    arguments = ("predict", scan.image.path, "--mask", scan.mask.path, "--out", "results", "--tracking-uri", lab_book)
    done = run(*arguments, "--threshold-from", out)
    assert (done.exit_code, f"above {printed['threshold']:.4g}" in done.stdout) == (0, True)
    folder = here / "results" / expected["volume_id"]
    result = json.loads((folder / "result.json").read_text())
    assert result["threshold"] == printed["threshold"]
    assert result["model"]["threshold_from"]["file"] == str(out)
    assert result["model"]["threshold_from"]["healthy_false_positive_rate"] == 0.02
    assert result["model"]["threshold_from"]["package_fingerprint"] == quick_package.fingerprint
    assert result["model"]["fingerprint"] != quick_package.fingerprint  # never taken for a result at its own threshold
    segmented = read_segmentation(folder / "segmentation.nii.gz").data
    assert 0 < np.count_nonzero(segmented) < np.count_nonzero(scan.mask.data) / 10

    assert "kept" in run(*arguments, "--threshold-from", out, "--resume").stdout
    with pytest.raises(ArtifactError, match="holds a result of model"):
        run(*arguments, "--resume")


def test_a_folder_with_a_package_can_be_calibrated_too(
    quick_package: Package, healthy: list[Scan], made: tuple[Path, dict[str, Any]], here: Path
) -> None:
    files = [item for scan in healthy for item in ("--healthy", scan.image.path, "--mask", scan.mask.path)]
    done = run("registry", "calibrate", quick_package.directory, *files, "--fpr", 0.02)
    assert done.exit_code == 0
    assert all(len(line) <= 80 for line in done.stdout.splitlines() if str(quick_package.directory) not in line)
    found = threshold_calibration.read(here / "calibration.json")
    assert found.threshold == made[1]["threshold"]
    assert f"{found.threshold:.4g}" in done.stdout
    assert "2 % asked for" in done.stdout
    assert f"{found.brain_voxels:,}" in done.stdout
    command = " ".join(done.stdout.replace("\\\n", " ").split())
    assert command.endswith(f"--model {quick_package.directory} --threshold-from calibration.json")


def test_a_bad_scan_among_good_ones_is_told_and_the_others_go_on(
    quick_package: Package, healthy: list[Scan], here: Path
) -> None:
    for name, size in (("good", None), ("deep/good", None), ("cut", 5000)):
        scan = healthy[name == "deep/good"].image.path.read_bytes()
        (here / "scans" / name).parent.mkdir(parents=True, exist_ok=True)
        (here / "scans" / f"{name}.nii.gz").write_bytes(scan[:size])
    done = run("registry", "calibrate", quick_package.directory, "--healthy", here / "scans")
    assert done.exit_code == 1
    assert "scans/cut.nii.gz: gzip stream cut" in " ".join(done.stderr.split())
    assert "1 of 3 scans failed" in done.stderr
    assert " ".join(done.stderr.split()).count("no brain mask given") == 2
    found = threshold_calibration.read(here / "calibration.json")
    assert sorted(Path(scan.scan).relative_to(here / "scans").as_posix() for scan in found.scans) == [
        "deep/good.nii.gz",
        "good.nii.gz",
    ]
    assert [scan.mask_sha256 for scan in found.scans] == [None, None]
    assert len(found.unused) == 1
    assert found.healthy_false_positive_rate == 0.01  # what is asked for without --fpr


def refused(error: type[CddpmError], match: str, *arguments: object) -> None:
    with pytest.raises(error, match=match):
        run(*arguments)
    assert not Path("calibration.json").exists()


def test_faults_of_the_call(quick_package: Package, healthy: list[Scan], table: Path, here: Path) -> None:
    model, scans = quick_package.directory, ("--healthy", healthy[0].image.path)
    calibrate = ("registry", "calibrate")
    for rate in (0, 1, 1.5, "nan"):
        refused(ConfigError, "--fpr .*: allowed is more than 0", *calibrate, model, *scans, "--fpr", rate)
    (here / "empty").mkdir()
    refused(DataError, r"empty: no scan", *calibrate, model, "--healthy", here / "empty")
    refused(DataError, r"t\.csv: cannot be read", *calibrate, model, "--healthy", here / "t.csv")
    refused(DataError, "none of 1 healthy scans", *calibrate, model, "--healthy", here / "absent.nii")
    refused(DataError, r"--fpr 1e-06 of \d+ brain voxels", *calibrate, model, *scans, "--fpr", 1e-6)
    refused(TrackingError, "no lab book here", *calibrate, "champion", *scans)
    refused(ArtifactError, "no folder with a model package", *calibrate, "/no/such", *scans)
    assert run(*calibrate, model, "--healthy", table, "--mask", healthy[0].mask.path).exit_code == 2
    assert run(*calibrate, model).exit_code == 2  # no scans at all
    (here / "notes.json").write_text("{}")
    refused(ConfigError, r"notes\.json is not replaced", *calibrate, model, *scans, "--out", here / "notes.json")
    assert (here / "notes.json").read_text() == "{}"


def test_a_threshold_of_another_model_is_refused(
    made: tuple[Path, dict[str, Any]], quick_package: Package, healthy: list[Scan], here: Path
) -> None:
    pipeline, weights = quick_package.pipeline, quick_package.weights
    write_package(
        here / "other", {n: w + 1 if w.is_floating_point() else w for n, w in weights.items()}, EXPERIMENT, pipeline
    )
    good = ("predict", healthy[0].image.path, "--out", "results", "--threshold-from", made[0])
    with pytest.raises(ConfigError, match=r"--threshold-from .*calibration\.json: was made for other weights"):
        run(*good, "--model", here / "other")
    other = with_values(EXPERIMENT, {"reconstruction.batch_size": 7}, "test")
    write_package(here / "rounded", weights, other, pipeline)
    with pytest.raises(ConfigError, match=r"with other settings of the model \(reconstruction\.batch_size"):
        run(*good, "--model", here / "rounded")
    with pytest.raises(ConfigError, match="--threshold and --threshold-from: each is a threshold"):
        run(*good, "--model", quick_package.directory, "--threshold", 0.3)
    with pytest.raises(ConfigError, match="data set 'Brats21' has no say beside --threshold-from"):
        run(*good, "--model", quick_package.directory, "--dataset", "Brats21")
    with pytest.raises(ArtifactError, match=r"absent\.json: missing; .*registry calibrate"):
        run(*good[:-1], here / "absent.json", "--model", quick_package.directory)
    assert not (here / "results").exists()


def test_exit_codes(quick_package: Package, healthy: list[Scan], here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def code(*arguments: object) -> object:
        monkeypatch.setattr(sys, "argv", ["cddpm", "registry", "calibrate", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            guarded_app(app)
        return end.value.code

    scans = ("--healthy", healthy[0].image.path)
    assert code(quick_package.directory, *scans, "--healthy", here / "absent.nii") == 1
    assert code(quick_package.directory, "--healthy", here) == 3
