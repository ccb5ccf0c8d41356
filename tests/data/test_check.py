"""The check finds every injected fault, all in one report."""

import json
import os
import shutil
from typing import Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_data import AFFINE, SHAPE, TinyData, ball, row

from cddpm.data.check import check
from cddpm.data.finding import MOST_NAMED, Finding, Report, alike
from cddpm.data.many import in_threads
from cddpm.data.volume import write_volume


def test_clean_folder_has_nothing_to_tell(tiny: TinyData) -> None:
    report = check(tiny.config, tiny.root, in_threads(2))
    assert report.findings == ()
    assert report.lines() == [
        "Brats21: 1 validation and 2 test scans: no known splits (published 100 and 1151)",
        "Brats21: 3 of 3 scans have a lesion, 276 ml together; 3 on the working grid, 264 ml; labels 1 (lesion, 3 scans)",
        "9 volumes read: 0 errors, 0 warnings",
    ]


def test_all_faults_at_once(tiny: TinyData) -> None:
    """One fault per file; none hides another, and the number of threads changes nothing."""
    image, mask, segmentation = ball(99)
    train = [tiny.file("IXI", s, "t2") for s in ("IXI001-HH-1", "IXI002-HH-2", "IXI003-HH-3")]
    train[0].write_bytes(train[0].read_bytes()[:-300])
    train[1].unlink()
    image[3, 4, 5] = np.nan
    write_volume(train[2], image, AFFINE)
    write_volume(tiny.file("IXI", "IXI004-HH-4", "mask"), mask * 0, AFFINE)
    write_volume(tiny.file("IXI", "IXI005-HH-5", "mask"), mask[:, :, 1:], AFFINE)
    shifted = AFFINE.copy()
    shifted[2, 3] = 10
    write_volume(tiny.file("IXI", "IXI006-HH-6", "mask"), mask, shifted)
    write_volume(tiny.file("Brats21", "BraTS2021_00001", "seg"), segmentation * 0, AFFINE)
    write_volume(tiny.file("Brats21", "BraTS2021_00002", "seg"), segmentation * 0.37, AFFINE)
    write_volume(tiny.file("Brats21", "BraTS2021_00003", "mask"), ball(0)[0], AFFINE)
    report = check(tiny.config, tiny.root, in_threads(3))
    found = {(f.file.rpartition("/")[2].partition("_t2")[0].removesuffix(".nii.gz"), f.code) for f in report.errors}
    assert found == {
        ("IXI001-HH-1", "truncated"),
        ("IXI002-HH-2", "missing"),
        ("IXI003-HH-3", "non-finite"),
        ("IXI004-HH-4_mask", "empty-mask"),
        ("IXI005-HH-5_mask", "shape"),
        ("IXI006-HH-6_mask", "affine"),
        ("BraTS2021_00001_seg", "empty-segmentation"),
        ("BraTS2021_00002_seg", "not-binary"),
        ("BraTS2021_00003_mask", "not-binary"),
    }
    assert check(tiny.config, tiny.root, in_threads(1)) == report


def test_same_scan_under_two_subjects(tiny: TinyData) -> None:
    original = tiny.file("IXI", "IXI005-HH-5", "t2")
    shutil.copy(original, tiny.file("IXI", "IXI001-HH-1", "t2"))
    (fault,) = check(tiny.config, tiny.root).errors
    assert fault.code == "same-voxels"
    assert "IXI001-HH-1" in fault.found
    assert "IXI005-HH-5" in fault.found


def test_subject_in_two_splits(tiny: TinyData) -> None:
    tiny.write_rows("IXI_train_fold0", [*tiny.rows("IXI_train_fold0"), row("IXI", "IXI005-HH-5")])
    strict = check(tiny.config.model_copy(update={"splits": "strict"}), tiny.root)
    assert [(f.severity, f.code) for f in strict.findings] == [("error", "leak")]
    clean = check(tiny.config, tiny.root)
    assert [(f.severity, f.code) for f in clean.findings] == [("warning", "leak")]


def test_test_labels_in_training(tiny: TinyData) -> None:
    sick = {**row("Brats21", "BraTS2021_00002"), "img_name": "IXI001-HH-1_t1.nii.gz"}
    tiny.write_rows("IXI_train_fold0", [sick, *tiny.rows("IXI_train_fold0")[1:]])
    assert {"label", "conflicting-rows"} <= {f.code for f in check(tiny.config, tiny.root).errors}


def test_healthy_scan_with_segmented_voxels(tiny: TinyData) -> None:
    rows = tiny.rows("Brats21_val")
    tiny.write_rows("Brats21_val", [{**rows[0], "label": "0"}])
    (fault,) = check(tiny.config, tiny.root).errors
    assert "voxels segmented in BraTS2021_00001, which has label 0" in fault.found


def test_faults_of_tables_and_of_files_stand_together(tiny: TinyData) -> None:
    tiny.split("Brats21_val").unlink()
    tiny.split("IXI_val_fold1").write_text("a,b\n1,2\n")
    tiny.file("IXI", "IXI001-HH-1", "t2").write_bytes(b"")
    assert {f.code for f in check(tiny.config, tiny.root).errors} == {
        "split-missing",
        "columns",
        "empty-split",
        "empty-file",
    }


def test_mends_are_warnings(tiny: TinyData) -> None:
    path = tiny.file("IXI", "IXI001-HH-1", "t2")
    affine = AFFINE.copy()
    affine[:2, :2] = 10 * np.array([[-np.cos(0.3), np.sin(0.3)], [-np.sin(0.3), -np.cos(0.3)]])
    write_volume(path, ball(50)[0], affine)
    write_volume(tiny.file("IXI", "IXI001-HH-1", "mask"), ball(50)[1], affine)
    report = check(tiny.config, tiny.root)
    assert report.errors == ()
    assert [f.code for f in report.warnings] == ["mended", "mended"]
    assert "17 degrees oblique" in report.warnings[0].found


def test_segmentation_outside_of_the_brain_is_told(tiny: TinyData) -> None:
    segmentation = np.zeros(SHAPE, np.uint8)
    segmentation[:3, 1:4, :5] = 1
    write_volume(tiny.file("Brats21", "BraTS2021_00001", "seg"), segmentation, AFFINE)
    report = check(tiny.config, tiny.root)
    assert report.findings[0].code == "outside-mask"
    assert report.findings[0].found == "45 of 45 segmented voxels lie outside of the brain mask"


def test_fault_that_nobody_foresaw_hides_nothing(tiny: TinyData, monkeypatch: pytest.MonkeyPatch) -> None:
    from cddpm.data import volume

    plain = volume.read_image

    def crashing(path: object) -> object:
        if "IXI002" in str(path):
            raise MemoryError("too much")
        return plain(path)  # type: ignore[arg-type]

    monkeypatch.setattr(volume, "read_image", crashing)
    tiny.file("IXI", "IXI001-HH-1", "t2").write_bytes(b"")
    assert {f.code for f in check(tiny.config, tiny.root).errors} == {"unreadable", "empty-file"}


@pytest.mark.skipif(os.geteuid() == 0, reason="needs a user who is not root: root may read everything")
def test_file_without_permission(tiny: TinyData) -> None:
    tiny.file("IXI", "IXI001-HH-1", "t2").chmod(0)
    (fault,) = check(tiny.config, tiny.root).errors
    assert "Permission denied" in fault.found


def test_report_as_lines_and_as_json(tiny: TinyData) -> None:
    path = tiny.file("IXI", "IXI001-HH-1", "t2")
    path.write_bytes(b"")
    report = check(tiny.config, tiny.root)
    assert report.lines() == [
        f"error: {path}: 0 bytes; copy the file again from its source [empty-file]",
        "Brats21: 1 validation and 2 test scans: no known splits (published 100 and 1151)",
        "Brats21: 3 of 3 scans have a lesion, 276 ml together; 3 on the working grid, 264 ml; labels 1 (lesion, 3 scans)",
        "9 volumes read: 1 errors, 0 warnings",
    ]
    plain = json.loads(json.dumps(report.to_dict()))
    assert (plain["volumes"], plain["errors"], plain["warnings"]) == (9, 1, 0)
    assert plain["findings"][0]["file"] == str(path)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["error", "warning"]), st.integers(0, 3)), max_size=40))
def test_no_file_of_a_warning_is_lost_where_many_have_it(drawn: list[tuple[Literal["error", "warning"], int]]) -> None:
    files = [f"/data/scan_{n:02d}_t2.nii.gz" for n in range(len(drawn))]
    all_of_them = [
        Finding(kind, "x", file, f"odd {what}", "look") for file, (kind, what) in zip(files, drawn, strict=True)
    ]
    report = Report(tuple(alike(all_of_them)), len(files))
    lines = [json.dumps(one) for one in report.to_dict()["findings"]]
    for (kind, what), file in zip(drawn, files, strict=True):
        assert sum(file in line and f"odd {what}" in line and kind in line for line in lines) == 1
    for told in report.findings:
        assert str(told).startswith(f"{told.severity}: {told.file}: odd ")
        assert len(told.others) > MOST_NAMED or all(file.rpartition("/")[2] in str(told) for file in told.others)
    assert {told.others for told in report.errors} <= {()}
