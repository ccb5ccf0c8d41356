"""``cddpm data``: a phantom is made, checked, and its faults are told by exit code and report."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from cddpm.cli import app
from cddpm.data.volume import read_mask, write_volume
from cddpm.errors import ConfigError, DataError

FEW = "--subjects=2 --healthy-val=1 --healthy-test=1 --unhealthy-val=1 --unhealthy-test=1 --seed=5 --size=small --processes=1"


def run(*arguments: object) -> Result:
    """Run ``cddpm data``; an error of this program is raised."""
    done = CliRunner().invoke(app, ["data", *map(str, arguments)], env={"COLUMNS": None})
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done


@pytest.fixture(scope="module")
def phantom(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "phantom"
    done = run("phantom", path, *FEW.split())
    assert done.exit_code == 0
    assert f"{path}: " in done.stdout
    assert "small phantom, seed 5" in done.stdout
    return path


@pytest.mark.slow
def test_options_are_the_phantoms_settings(phantom: Path) -> None:
    label = json.loads((phantom / "phantom.json").read_text())
    assert label["config"] == {
        "size": "small",
        "seed": 5,
        "healthy_train": 2,
        "healthy_val": 1,
        "healthy_test": 1,
        "unhealthy_val": 1,
        "unhealthy_test": 1,
    }
    assert run("phantom", phantom, *FEW.split()).exit_code == 0  # the same one is kept
    with pytest.raises(DataError, match=r"seed: there 5, asked 0"):
        run("phantom", phantom, *FEW.replace("--seed=5", "--seed=0").split())
    assert run("phantom", phantom, "--subjects", "0").exit_code == 2


@pytest.mark.slow
def test_a_sound_folder_passes(phantom: Path) -> None:
    for modality in ("t1", "t2"):
        done = run("check", phantom, "--modality", modality)
        assert done.exit_code == 0, done.stdout
        assert "0 errors" in done.stdout.splitlines()[-1]
    report = json.loads(run("check", phantom, "--json", "--unhealthy", "Brats21").stdout)
    assert report["errors"] == 0
    assert 0 < report["volumes"] < json.loads(run("check", phantom, "--json").stdout)["volumes"]


@pytest.mark.slow
def test_each_fault_is_told_with_file_found_and_allowed(phantom: Path) -> None:
    file = sorted((phantom / "Test/Brats21/mask").iterdir())[0]
    before = file.read_bytes()
    mask = read_mask(file)
    write_volume(file, mask.data[:-1], mask.affine)
    try:
        done, data = run("check", phantom), run("check", phantom, "--json")
    finally:
        file.write_bytes(before)
    assert (done.exit_code, data.exit_code) == (1, 1)
    line = next(line for line in done.stdout.splitlines() if str(file) in line)
    assert line.startswith("error: ")
    assert "shape 95x112x58" in line
    assert "both must lie on one grid" in line
    finding = next(f for f in json.loads(data.stdout)["findings"] if f["file"] == str(file))
    assert finding["severity"] == "error"
    assert "resample this file" in finding["allowed"]


@pytest.mark.slow
def test_settings_come_from_a_file_and_options_win(phantom: Path, tmp_path: Path) -> None:
    file = tmp_path / "experiment.yaml"
    file.write_text("name: x\ndata: {unhealthy: [Nowhere], modality: t2}\n")
    done = run("check", phantom, "--config", file)
    assert done.exit_code == 1
    assert "Nowhere_val.csv" in done.stdout
    assert run("check", phantom, "--config", file, "--unhealthy", "MSLUB").exit_code == 0


def test_faults_of_the_call(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such folder"):
        run("check", tmp_path / "absent")
    with pytest.raises(ConfigError, match=r"options: data\.modality"):
        run("check", tmp_path, "--modality", "../t2")
    assert run("check", tmp_path, "--splits", "dirty").exit_code == 2
    with pytest.raises(ConfigError, match="no such configuration file"):
        run("build", tmp_path, "--config", tmp_path / "absent.yaml")


@pytest.mark.slow
def test_splits_are_told_and_clean_ones_written(phantom: Path, tmp_path: Path) -> None:
    train, test = (phantom / "splits" / f"IXI_{name}.csv" for name in ("train_fold0", "test"))
    before = train.read_text()
    train.write_text(before + before.splitlines()[1] + "\n" + test.read_text().splitlines()[1] + "\n")
    try:
        told, data = run("splits", phantom), json.loads(run("splits", phantom, "--json", "--modality", "t2").stdout)
        assert run("splits", phantom, "--write", tmp_path / "out").exit_code == 0
    finally:
        train.write_text(before)
    assert told.exit_code == 0
    assert told.stdout.startswith("As they are: 1 rows repeat a scan, 1 times a subject is in two splits\n")
    assert "1 in IXI_test.csv" in next(line for line in told.stdout.splitlines() if "IXI_train_fold0.csv" in line)
    assert {s["dataset"] for s in data["clean"]["splits"]} == {"IXI", "Brats21", "MSLUB", "ATLAS_v2", "WMH"}
    assert (tmp_path / "out/splits/IXI_train_fold0.csv").read_text() == before
    again = json.loads(run("splits", tmp_path / "out", "--json").stdout)
    assert again["published"] == again["clean"]
    assert again["scans_there"] == 0
    used = tmp_path / "used"
    (used / "splits").mkdir(parents=True)
    (used / "splits/IXI_test.csv").write_text("mine\n")
    with pytest.raises(DataError, match="name a new folder"):
        run("splits", phantom, "--write", used)


@pytest.mark.slow
def test_scans_of_a_table_are_checked(phantom: Path, tmp_path: Path) -> None:
    table = tmp_path / "sets.yaml"
    table.write_text(
        "datasets:\n"
        "  Controls: {image: 'Train/ixi/{modality}/{subject}_{modality}.nii.gz', "
        "mask: 'Train/ixi/mask/{subject}_mask.nii.gz', split: {train: 0.4, val: 0.3, test: 0.3}}\n"
        "  Strokes: {image: 'Test/ATLAS_v2/{modality}/{subject}_{modality}.nii.gz', "
        "mask: 'Test/ATLAS_v2/mask/{subject}_mask.nii.gz', segmentation: 'Test/ATLAS_v2/seg/{subject}_seg.nii.gz', "
        "split: {val: 0.5, test: 0.5}}\n"
    )
    names = ["--table", table, "--healthy", "Controls", "--unhealthy", "Strokes", "--modality", "t1"]
    done = run("check", phantom, *names)
    assert done.exit_code == 0, done.stdout
    assert done.stdout.splitlines()[-1].startswith("7 volumes read: 0 errors, ")
    assert "voxels of 2.00 x 2.00 x 2.00 mm were resampled to 1.00 x 1.00 x 1.00 mm" in done.stdout
    assert run("splits", phantom, *names).stdout.startswith("As they are: 0 rows repeat a scan, 0 times")
    with pytest.raises(DataError, match=r"data\.data_dir: not set"):
        run("check")
    done = run("check", phantom, *names[:2])
    assert done.exit_code == 1
    assert "no data set 'IXI' (data.healthy); there are Controls, Strokes" in done.stdout


@pytest.mark.ray
@pytest.mark.slow
def test_a_store_is_built_once(shared_ray: str, phantom: Path, tmp_path: Path) -> None:
    file = tmp_path / "experiment.yaml"
    file.write_text(
        "name: x\ndata: {unhealthy: [Brats21], voxel_size_mm: 2.0, volume_shape: [96, 96, 50]}\n"
        "encoder: {max_pool: false}\npretraining: {enabled: false}\n"
    )
    done = [run("build", phantom, "--config", file, "--output-dir", tmp_path / "out") for _ in range(2)]
    assert [one.exit_code for one in done] == [0, 0]
    lines = [one.stdout for one in done]
    assert lines[0] == lines[1]
    assert "slices of 48x48" in lines[0]
    assert len([p for p in (tmp_path / "out/artifacts/store").iterdir() if p.is_dir()]) == 1
