"""``cddpm predict``: files in, files out, one bad scan does not hide the others."""

import json
import pickle
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from matplotlib import image as picture
from registered import register
from tiny_package import Scan, turned
from typer.testing import CliRunner, Result

from cddpm.cli import app
from cddpm.cli.shell import guarded_app
from cddpm.data.volume import describe, read_image, read_segmentation, write_volume
from cddpm.errors import ArtifactError, ConfigError, DataError, TrackingError
from cddpm.predict.predictor import Prediction
from cddpm.tracking.address import default_uri
from cddpm.tracking.package import Package
from cddpm.tracking.registry import Registry

FILES = {
    *(f"{name}.nii.gz" for name in ("anomaly_map", "reconstruction", "segmentation", "coverage")),
    "overview.png",
    "result.json",
}


def run(*arguments: object) -> Result:
    """Run the command; an error of this program is raised."""
    done = CliRunner().invoke(app, ["predict", *map(str, arguments)])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done


@pytest.fixture(scope="session")
def written(package: Package, scan: Scan, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    """One run over a good scan, one that is cut, and one that is missing; over older results. Of the package's window."""
    folder = tmp_path_factory.mktemp("predict")
    cut = folder / "cut.nii.gz"
    cut.write_bytes(scan.image.path.read_bytes()[:5000])
    old = folder / "out" / "patient"
    old.mkdir(parents=True)
    (old / "result.json").write_text("old")
    masks = [item for _ in range(3) for item in ("--mask", scan.mask.path)]
    keys = [item for key in ("a", "b", "Brats21/patient") for item in ("--volume-id", key)]
    scans = [cut, folder / "absent.nii", scan.image.path]
    places = ("--out", folder / "out", "--model", package.directory)
    return folder, run(*scans, *masks, *keys, *places, "--window", "package")


@pytest.mark.slow
def test_a_broken_scan_is_told_and_the_others_go_on(written: tuple[Path, Result]) -> None:
    folder, done = written
    assert done.exit_code == 1
    assert "2 of 3 scans failed" in done.stderr
    assert f"{folder}/cut.nii.gz: gzip stream cut" in done.stderr
    assert f"{folder}/absent.nii: no such file" in done.stderr
    assert [line.split(":")[0] for line in done.stdout.splitlines()] == ["patient.nii.gz"]
    assert [path.name for path in (folder / "out").iterdir()] == ["patient"]
    assert {path.name for path in (folder / "out" / "patient").iterdir()} == FILES


@pytest.mark.slow
def test_files_hold_the_prediction_in_the_scans_grid(
    written: tuple[Path, Result], scan: Scan, prediction: Prediction
) -> None:
    out = written[0] / "out" / "patient"
    expected = describe(scan.image.path)
    for name in FILES - {"overview.png", "result.json"}:
        found = describe(out / name)
        assert (found.shape, found.voxel_size_mm, found.orientation) == (
            expected.shape,
            expected.voxel_size_mm,
            expected.orientation,
        )
        np.testing.assert_array_equal(read_image(out / name).affine, scan.image.affine)
    np.testing.assert_array_equal(read_image(out / "anomaly_map.nii.gz").data, prediction.anomaly_map)
    np.testing.assert_array_equal(read_image(out / "reconstruction.nii.gz").data, prediction.reconstruction)
    np.testing.assert_array_equal(read_segmentation(out / "segmentation.nii.gz").data, prediction.segmentation)
    assert describe(out / "segmentation.nii.gz").dtype == "uint8"


@pytest.mark.slow
def test_the_result_says_where_it_comes_from(written: tuple[Path, Result], package: Package, scan: Scan) -> None:
    result = json.loads((written[0] / "out" / "patient" / "result.json").read_text())
    assert result["scan"] == str(scan.image.path)
    assert result["mask"] == str(scan.mask.path)
    assert result["volume_id"] == "Brats21/patient"
    assert (result["threshold"], result["dataset"]) == (0.33, "all")
    assert result["model"]["fingerprint"] == package.fingerprint
    assert (result["model"]["sweep"], result["model"]["trial"]) == ("tiny-sweep", 7)
    assert result["settings"]["scoring"]["guidance_scale"] == 1.5
    assert result["grid"]["shape"] == list(scan.image.data.shape)
    assert result["intensities"]["at_0"] < result["intensities"]["at_1"]
    assert any("field of view" in warning for warning in result["warnings"])


@pytest.mark.slow
def test_the_picture_is_one(written: tuple[Path, Result]) -> None:
    pixels = picture.imread(written[0] / "out" / "patient" / "overview.png")
    assert pixels.shape[0] > 600
    assert pixels.shape[1] > 800
    assert pixels[..., :3].std() > 0.1


@pytest.mark.slow
def test_a_header_is_kept_but_for_its_texts(package: Package, scan: Scan, tmp_path: Path) -> None:
    header = scan.image.header.copy()
    header["descrip"] = b"study 7"
    header["qform_code"], header["sform_code"] = 1, 4
    write_volume(tmp_path / "a.nii", scan.image.data[..., None], scan.image.affine, header=header)  # 4-D of one volume
    assert run(tmp_path / "a.nii", "--out", tmp_path, "--model", package.directory).exit_code == 0
    result = read_image(tmp_path / "a" / "anomaly_map.nii.gz")
    assert not bytes(result.header["descrip"]).strip(b"\0")
    assert (int(result.header["qform_code"]), int(result.header["sform_code"])) == (1, 4)
    assert result.data.shape == scan.image.data.shape
    assert json.loads((tmp_path / "a" / "result.json").read_text())["mask"] == "estimated"


@pytest.mark.slow
def test_two_scans_of_one_name_are_refused(package: Package, scan: Scan, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="both would go to"):
        run(scan.image.path, tmp_path / "patient.nii", "--out", tmp_path, "--model", package.directory)
    assert not list(tmp_path.iterdir())


def test_masks_are_counted(package: Package, scan: Scan, tmp_path: Path) -> None:
    done = run(scan.image.path, tmp_path / "b.nii", "--mask", scan.mask.path, "--out", tmp_path)
    assert done.exit_code == 2
    assert "1 given for 2 scans" in " ".join(done.stderr.split())


def test_faults_of_the_call_come_before_any_work(package: Package, scan: Scan, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    good = (scan.image.path, "--out", tmp_path / "out")
    with pytest.raises(ConfigError, match="there are Brats21, all"):
        run(*good, "--model", package.directory, "--dataset", "IXI")
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(ConfigError, match="no CUDA device"):
        run(*good, "--model", package.directory, "--device", "cuda")
    with pytest.raises(ArtifactError, match=r"/no/such: no folder with a model package"):
        run(*good, "--model", "/no/such")
    with pytest.raises(ArtifactError, match=r"is a|no folder"):
        run(*good, "--model", scan.image.path)
    with pytest.raises(TrackingError, match="no lab book here"):
        run(*good, "--model", "champion")
    assert not (tmp_path / "out").exists()


@pytest.fixture(scope="session")
def cohort(scan: Scan, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two scans of one subject, their masks, and a file that is cut."""
    folder = tmp_path_factory.mktemp("cohort")
    for name in ("p1_t2", "deep/p2_t2"):
        (folder / name).parent.mkdir(exist_ok=True)
        shutil.copyfile(scan.image.path, folder / f"{name}.nii.gz")
        shutil.copyfile(scan.mask.path, folder / f"{name}_mask.nii.gz")
    (folder / "deep" / "cut.nii.gz").write_bytes(scan.image.path.read_bytes()[:5000])
    return folder


def times(out: Path) -> dict[str, int]:
    """When each file of results was written."""
    return {str(path.relative_to(out)): path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()}


@pytest.mark.slow
def test_a_folder_is_gone_through_and_resumed(cohort: Path, package: Package, tmp_path: Path) -> None:
    arguments = (cohort, "--out", tmp_path, "--model", package.directory)
    done = run(*arguments)
    assert done.exit_code == 1
    assert "1 of 3 scans failed" in done.stderr
    assert "deep/cut.nii.gz: gzip stream cut" in done.stderr
    assert done.stderr.count("no brain mask given") == 2
    assert {str(path.parent.relative_to(tmp_path)) for path in tmp_path.rglob("result.json")} == {"p1_t2", "deep/p2_t2"}

    before = times(tmp_path)
    (tmp_path / "p1_t2" / "segmentation.nii.gz").write_bytes(b"")
    again = run(*arguments, "--resume")
    assert again.exit_code == 1
    assert [line.split(" -> ")[0] for line in again.stdout.splitlines() if "kept" in line] == [
        "p2_t2.nii.gz: was there already, kept"
    ]
    after = times(tmp_path)
    assert after.keys() == before.keys()
    assert {name for name in after if after[name] != before[name]} == {f"p1_t2/{name}" for name in FILES}


def test_results_of_another_model_are_not_mixed(cohort: Path, package: Package, tmp_path: Path) -> None:
    (tmp_path / "p1_t2").mkdir()
    identity = {"model": "another", "dataset": "all", "volume_id": "p1_t2"}
    (tmp_path / "p1_t2" / "result.json").write_text(json.dumps({"identity": identity, "digests": {}}))
    with pytest.raises(ArtifactError, match=r"p1_t2: holds a result of model 'another', not '[0-9a-f]{16}'"):
        run(cohort, "--out", tmp_path, "--model", package.directory, "--resume")
    assert [path.name for path in tmp_path.rglob("*")] == ["p1_t2", "result.json"]  # before anything was done


@pytest.mark.slow
def test_a_table_gives_masks_ids_and_data_sets(cohort: Path, package: Package, prediction: Prediction, tmp_path: Path):
    table = cohort / "scans.csv"
    table.write_text(
        "scan,mask,volume_id,dataset,name\n"
        "p1_t2.nii.gz,p1_t2_mask.nii.gz,Brats21/patient,,one\n"
        "p1_t2.nii.gz,p1_t2_mask.nii.gz,Brats21/patient,Brats21,two\n"
    )
    done = run(table, "--out", tmp_path, "--model", package.directory, "--window", "package")
    assert (done.exit_code, "no brain mask" in done.stderr) == (0, False)
    assert done.stdout.splitlines()[-1] == "2 scans: 2 done, 0 kept"
    np.testing.assert_array_equal(read_image(tmp_path / "one/anomaly_map.nii.gz").data, prediction.anomaly_map)
    thresholds = [json.loads((tmp_path / name / "result.json").read_text())["threshold"] for name in ("one", "two")]
    assert thresholds == [0.33, 0.36]
    table.write_text("scan,dataset\np1_t2.nii.gz,IXI\n")
    with pytest.raises(ConfigError, match=r"scans\.csv:2: data set 'IXI'.*there are Brats21, all"):
        run(table, "--out", tmp_path / "none", "--model", package.directory)
    assert not (tmp_path / "none").exists()


def lay_out_odd_scans(scan: Scan, folder: Path) -> None:
    """Six files that are no usable scan, and two that are, though they lie otherwise."""
    data, affine = scan.image.data, scan.image.affine
    holes = data.copy()
    holes[40:42, 50, 20] = np.nan
    sheared = affine.copy()
    sheared[0, 2] = affine[2, 2]
    write_volume(folder / "nan.nii.gz", holes, affine)
    write_volume(folder / "sheared.nii.gz", data, sheared)
    write_volume(folder / "four.nii.gz", np.stack([data, data], -1), affine)
    write_volume(folder / "two.nii.gz", data[:, :, 20], affine)
    (folder / "empty.nii.gz").touch()
    (folder / "cut.nii.gz").write_bytes(scan.image.path.read_bytes()[:-100])
    whole = turned(scan.image, (1, 2, 0), (0, 2))
    write_volume(folder / "long.nii", np.rint(whole.data), whole.affine, np.int64)
    odd = turned(scan.image, (2, 0, 1), (1,))
    write_volume(folder / "odd.nii.gz", odd.data, odd.affine)


@pytest.mark.slow
def test_every_odd_scan_of_a_folder_is_used_or_told_in_one_line(scan: Scan, package: Package, tmp_path: Path) -> None:
    lay_out_odd_scans(scan, tmp_path / "scans")
    done = run(tmp_path / "scans", "--out", tmp_path / "out", "--model", package.directory)
    errors = [line.removeprefix("error ") for line in done.stderr.splitlines() if line.startswith("error")]
    told = {Path(line.split(": ")[0]).name: line.split(": ", 1)[1] for line in errors}
    assert (done.exit_code, len(errors)) == (1, 6)
    assert told["four.nii.gz"].endswith("(4-D); one 3-D volume with at least 2 voxels along each axis is needed")
    assert "(2-D); one 3-D volume" in told["two.nii.gz"]
    assert told["nan.nii.gz"].startswith("2 voxels inside of the brain are NaN or infinite")
    assert told["sheared.nii.gz"].startswith("sheared axes, 45 degrees off the right angle")
    assert told["empty.nii.gz"].startswith("0 bytes")
    assert told["cut.nii.gz"].startswith("gzip stream cut or damaged")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"long", "odd"}
    for name, source in (("long", "long.nii"), ("odd", "odd.nii.gz")):
        result, asked = describe(tmp_path / "out" / name / "anomaly_map.nii.gz"), describe(tmp_path / "scans" / source)
        assert (result.shape, result.orientation) == (asked.shape, asked.orientation)
        assert result.dtype == "float32"


def test_masks_of_single_files_do_not_go_with_a_folder(cohort: Path, scan: Scan, tmp_path: Path) -> None:
    done = run(cohort, "--mask", scan.mask.path, "--out", tmp_path)
    assert done.exit_code == 2
    assert "for many scans give" in " ".join(done.stderr.split())


class _Trap:
    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self):
        return Path.touch, (self.file,)


def test_a_pickle_in_the_package_is_never_loaded(package: Package, scan: Scan, tmp_path: Path) -> None:
    bad = tmp_path / "bad"
    shutil.copytree(package.directory, bad)
    (bad / "model.safetensors").write_bytes(pickle.dumps(_Trap(tmp_path / "sprung")))
    with pytest.raises(ArtifactError, match=r"model\.safetensors"):
        run(scan.image.path, "--out", tmp_path / "out", "--model", bad)
    assert not (tmp_path / "sprung").exists()


@pytest.mark.slow
def test_a_registered_model_by_alias(
    written: tuple[Path, Result], package: Package, scan: Scan, database: Path, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    outputs = tmp_path / "outputs"
    outputs.mkdir()
    shutil.copyfile(database, outputs / "mlflow.db")
    number = register(outputs, package.directory, "tiny-sweep/0007", metrics={"val/dice": 0.5})
    Registry.open(default_uri(outputs)).promote(str(number), "champion", "a test")
    arguments = (scan.image.path, "--mask", scan.mask.path, "--volume-id", "Brats21/patient", "--out", tmp_path / "out")
    assert run(*arguments, "--window", "package").exit_code == 0
    result = json.loads((tmp_path / "out" / "patient" / "result.json").read_text())
    assert (result["model"]["reference"], result["model"]["version"]) == ("champion", 1)
    assert result["model"]["fingerprint"] == package.fingerprint
    for name in FILES - {"overview.png", "result.json"}:  # the same bytes as from the folder
        assert (tmp_path / "out" / "patient" / name).read_bytes() == (written[0] / "out/patient" / name).read_bytes()


@pytest.mark.slow
def test_exit_codes(package: Package, scan: Scan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def code(*arguments: object) -> object:
        monkeypatch.setattr(sys, "argv", ["cddpm", "predict", *map(str, arguments), "--out", str(tmp_path)])
        with pytest.raises(SystemExit) as end:
            guarded_app(app)
        return end.value.code

    assert code(scan.image.path, "--model", "/no/such") == 4
    assert code(tmp_path / "absent.nii", "--model", package.directory) == 1
