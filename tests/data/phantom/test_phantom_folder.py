import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from cddpm.artifact import file_digest
from cddpm.config import PhantomConfig
from cddpm.data.phantom import folder
from cddpm.data.phantom.folder import make_phantom
from cddpm.data.phantom.subject import Subject, draw
from cddpm.data.volume import read_image, read_mask, read_segmentation
from cddpm.errors import DataError

pytestmark = pytest.mark.slow

CONFIG = PhantomConfig(healthy_train=2, healthy_val=1, healthy_test=1, unhealthy_val=1, unhealthy_test=1)


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory) -> Path:
    return make_phantom(tmp_path_factory.mktemp("phantom") / "data", CONFIG, parallel=1)


def digests(root: Path) -> dict[str, str]:
    return {str(p.relative_to(root)): file_digest(p) for p in sorted(root.rglob("*")) if p.is_file()}


def test_every_listed_file_is_there_and_no_other(data_dir):
    listed: set[str] = set()
    available = set(pd.read_csv(data_dir / "splits" / "avail_t2.csv")["0"])
    for file in (data_dir / "splits").glob("[!a]*.csv"):  # all but avail_t2.csv
        for row in pd.read_csv(file, dtype=str, keep_default_na=False).to_dict("records"):
            listed |= {row["img_path"], row["mask_path"], row["seg_path"]} - {""}
            t2 = row["img_path"].replace("t1", "t2")
            if Path(t2).name in available or "Brats21" in t2 or "MSLUB" in t2:
                listed.add(t2)
    found = {f"/{p.relative_to(data_dir)}" for p in data_dir.rglob("*.nii.gz")}
    assert found == listed


def test_same_seed_same_bytes_whatever_the_number_of_processes(data_dir, tmp_path):
    again = make_phantom(tmp_path / "again", CONFIG, parallel=2)

    assert digests(again) == digests(data_dir)


def test_files_hold_what_was_drawn(data_dir):
    subject = Subject(0, "MSLUB", 1, 2.0)
    drawing = draw(subject)
    home = data_dir / "Test" / "MSLUB"

    image = read_image(home / "t2" / "patient02_t2.nii.gz")

    np.testing.assert_array_equal(image.data, drawing.scans["t2"])
    np.testing.assert_allclose(image.affine, subject.affine)
    np.testing.assert_array_equal(read_mask(home / "mask" / "patient02_mask.nii.gz").data, drawing.mask)
    np.testing.assert_array_equal(read_segmentation(home / "seg" / "patient02_seg.nii.gz").data, drawing.segmentation)


def test_a_complete_phantom_is_left_as_it_is(data_dir, monkeypatch):
    monkeypatch.setattr(folder, "_make", lambda *_: pytest.fail("made again"))

    assert make_phantom(data_dir, CONFIG) == data_dir


def test_another_configuration_is_refused_and_named(data_dir):
    with pytest.raises(DataError, match=r"another phantom.*seed: there 0, asked 5.*new folder"):
        make_phantom(data_dir, CONFIG.model_copy(update={"seed": 5}))
    with pytest.raises(DataError, match="modalities: there"):
        make_phantom(data_dir, CONFIG, modalities=("t2",))


def test_a_folder_of_something_else_is_not_touched(tmp_path):
    (tmp_path / "thesis.txt").write_text("my only copy")

    with pytest.raises(DataError, match="not a phantom"):
        make_phantom(tmp_path, CONFIG)

    assert [p.name for p in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_phantom_with_a_file_missing_is_refused_by_name(tmp_path, monkeypatch):
    monkeypatch.setattr(folder, "write", lambda *_: None)  # every subject's files are missing
    out = make_phantom(tmp_path / "data", CONFIG, parallel=1)

    with pytest.raises(DataError, match=r"IXI001-Guys-0700_t1\.nii\.gz: missing"):
        make_phantom(out, CONFIG)


def test_an_interruption_leaves_nothing_behind(tmp_path, monkeypatch):
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(folder, "write", lambda *_: None)
    monkeypatch.setattr(folder, "write_splits", interrupted)

    with pytest.raises(KeyboardInterrupt):
        make_phantom(tmp_path / "data", CONFIG, parallel=1)

    assert [p.name for p in tmp_path.iterdir() if not p.name.endswith(".lock")] == []


def test_the_label_says_what_was_made(data_dir):
    label = json.loads((data_dir / "phantom.json").read_text())

    assert label["config"] == CONFIG.model_dump(mode="json")
    assert label["generator_version"] == folder.GENERATOR_VERSION
    assert label["modalities"] == ["t1", "t2"]


@pytest.mark.parametrize("modalities", [("flair",), ()])
def test_an_unknown_modality_is_refused(tmp_path, modalities):
    with pytest.raises(DataError, match="allowed are t1, t2"):
        make_phantom(tmp_path / "data", CONFIG, modalities=modalities)


def test_a_number_of_processes_below_one_is_refused(tmp_path):
    with pytest.raises(DataError, match="0 processes"):
        make_phantom(tmp_path / "data", CONFIG, parallel=0)
