"""RAW_DIR and DATA_DIR in an object store: scans are fetched where they are read, files are sent whole, the manifest last."""

from pathlib import Path

import numpy as np
import pytest
import raw_trees
from typer.testing import CliRunner

from cddpm import shelf
from cddpm.cli import app
from cddpm.data.raw.depot import Depot
from cddpm.data.volume import read_image
from cddpm.storage import Bucket

pytestmark = pytest.mark.slow
STEPS = ("--steps", "reorient,extract,resample,strip")


@pytest.mark.nightly
def test_the_same_files_from_and_to_a_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(shelf.CACHE, str(tmp_path / "cache"))
    raw = raw_trees.wmh(tmp_path / "raw", {"Utrecht": (0, 1)})
    place, out = f"memory://tests/{tmp_path.name}/raw", f"memory://tests/{tmp_path.name}/data"
    Bucket(place).upload_all((path, path.relative_to(raw).as_posix()) for path in raw.rglob("*") if path.is_file())
    (tmp_path / "steps.yaml").write_text("voxel_size_mm: 5\n")
    words = [
        "--config",
        str(tmp_path / "steps.yaml"),
        *STEPS,
        "--at-once",
        "1",
        "--names",
        str(tmp_path / "names.json"),
    ]
    for state in ("2 prepared, 0 were there", "0 prepared, 2 were there"):
        done = CliRunner().invoke(app, ["data", "prepare", "WMH", place, out, *words], env={"COLUMNS": None})
        assert done.exit_code == 0, done.output
        assert state in done.stdout
        assert str(tmp_path / "cache") not in done.stdout
    CliRunner().invoke(app, ["data", "prepare", "WMH", str(raw), str(tmp_path / "DATA"), *words])
    here = {
        path.relative_to(tmp_path / "DATA").as_posix(): path
        for path in (tmp_path / "DATA").rglob("*")
        if path.is_file()
    }
    assert set(Bucket(out).names()) == set(here)
    for name, path in here.items():
        if "manifests" not in name:
            assert Depot(out).read(name) == path.read_bytes()
    assert np.count_nonzero(read_image(here["Test/WMH/t1/Utrecht_0_t1.nii.gz"]).data)
    Depot(out).delete("Test/WMH/t1/Utrecht_0_t1.nii.gz")
    again = CliRunner().invoke(app, ["data", "prepare", "WMH", place, out, *words])
    assert "1 prepared, 1 were there" in again.stdout
