"""Rows of one split file."""

from pathlib import Path

import pytest

from cddpm.data.finding import Finding
from cddpm.data.split import ScanRow, SplitFile, available_names, read_split, rewrite_modality, subject_name

HEADER = ",img_name,age,label,img_path,mask_path,seg_path\n"


def read(tmp_path: Path, text: str, modality: str = "t2") -> list[ScanRow | Finding]:
    path = tmp_path / "IXI_test.csv"
    path.write_bytes(text.encode())
    return list(read_split(SplitFile(path, "IXI", "test", None), tmp_path, modality))


@pytest.mark.parametrize(
    ("written", "modality", "expected"),
    [
        ("/Train/ixi/t1/IXI105-HH-1471_t1.nii.gz", "t2", "/Train/ixi/t2/IXI105-HH-1471_t2.nii.gz"),
        ("/Train/ixi/t1/IXI105-HH-1471_t1.nii.gz", "t1", "/Train/ixi/t1/IXI105-HH-1471_t1.nii.gz"),
        ("/Train/ixi/t2/IXI105-HH-1471_t2.nii.gz", "flair", "/Train/ixi/flair/IXI105-HH-1471_flair.nii.gz"),
        ("/Test/Brats21/t1/BraTS2021_t1_00538_t1.nii", "t2", "/Test/Brats21/t2/BraTS2021_t1_00538_t2.nii"),
        ("/Test/mine/scan_t1.nii.gz", "t2", "/Test/mine/scan_t2.nii.gz"),
        ("/Test/mine/scan.nii.gz", "t2", "/Test/mine/scan.nii.gz"),
    ],
)
def test_paths_are_rewritten_for_the_modality(written: str, modality: str, expected: str) -> None:
    assert rewrite_modality(written, modality) == expected


@pytest.mark.parametrize(
    "name", ["IXI105-HH-1471_t1.nii.gz", "IXI105-HH-1471_t2.nii", "IXI105-HH-1471", " IXI105-HH-1471 "]
)
def test_subject_is_the_name_without_modality_and_suffix(name: str) -> None:
    assert subject_name(name) == "IXI105-HH-1471"


def test_row_of_the_published_form(tmp_path: Path) -> None:
    line = "90,IXI105-HH-1471_t1.nii.gz,38.9,0,/Train/ixi/t1/IXI105-HH-1471_t1.nii.gz,/Train/ixi/mask/IXI105_mask.nii.gz,\n"
    (row,) = read(tmp_path, HEADER + line)
    assert row == ScanRow(
        dataset="IXI",
        subject="IXI105-HH-1471",
        split="test",
        fold=None,
        label=0,
        age=38.9,
        image=tmp_path / "Train/ixi/t2/IXI105-HH-1471_t2.nii.gz",
        mask=tmp_path / "Train/ixi/mask/IXI105_mask.nii.gz",
        segmentation=None,
        source=f"{tmp_path}/IXI_test.csv:2",
    )


def test_byte_order_mark_windows_lines_and_other_numbers(tmp_path: Path) -> None:
    text = "\ufeff" + HEADER.replace("\n", "\r\n") + "0,a,nan,1.0,/a_t1.nii,/m.nii,/s.nii\r\n"
    (row,) = read(tmp_path, text)
    assert isinstance(row, ScanRow)
    assert (row.label, row.age, row.segmentation) == (1, None, tmp_path / "s.nii")


def test_twin_with_other_compression_is_taken(tmp_path: Path) -> None:
    (tmp_path / "a_t2.nii").touch()
    (tmp_path / "m.nii.gz").touch()
    (row,) = read(tmp_path, HEADER + "0,a,,0,/a_t1.nii.gz,/m.nii,\n")
    assert isinstance(row, ScanRow)
    assert (row.image.name, row.mask.name) == ("a_t2.nii", "m.nii.gz")


def test_every_bad_row_is_told_and_good_ones_stay(tmp_path: Path) -> None:
    found = read(
        tmp_path,
        HEADER
        + "0,good,,0,/a_t1.nii,/m.nii,\n"
        + "1,x,old,7,/../etc/passwd,,\n"
        + "2,short,,0\n"
        + "3,long,,0,/a.nii,/m.nii,,,,\n"
        + "4,also good,12,1,/b_t1.nii,/m.nii,/s.nii\n",
    )
    assert [f.subject for f in found if isinstance(f, ScanRow)] == ["good", "also good"]
    told = [f"{f.file.rpartition(':')[2]}: {f.found}" for f in found if isinstance(f, Finding)]
    assert told == [
        "3: 'mask_path' is empty",
        "3: img_path '/../etc/passwd' leaves the data folder",
        "3: label '7'",
        "3: age 'old'",
        "4: fewer fields than the header names",
        "5: more fields than the header names",
    ]


def test_missing_columns_name_the_nearest(tmp_path: Path) -> None:
    (finding,) = read(tmp_path, HEADER.replace("img_path", "image_path") + "0,a,,0,/a_t1.nii,/m.nii,\n")
    assert isinstance(finding, Finding)
    assert finding.code == "columns"
    assert finding.found.startswith("no column 'img_path'")
    assert "did you mean 'image_path'?" in finding.allowed


@pytest.mark.parametrize("text", ["", "img_name;age;label\na;1;0\n"])
def test_table_of_another_kind(tmp_path: Path, text: str) -> None:
    found = read(tmp_path, text)
    assert {f.code for f in found if isinstance(f, Finding)} == {"columns"}


def test_table_that_is_no_text(tmp_path: Path) -> None:
    path = tmp_path / "IXI_test.csv"
    path.write_bytes(b"a,b\n\xe4")
    (finding,) = read_split(SplitFile(path, "IXI", "test", None), tmp_path, "t2")
    assert isinstance(finding, Finding)
    assert "save it as CSV in UTF-8" in finding.allowed


def test_list_of_available_scans(tmp_path: Path) -> None:
    (tmp_path / "avail_t2.csv").write_text(",0\n0,IXI002-Guys-0828_t2.nii.gz\n1,IXI012-HH-1211_t2.nii.gz\n")
    assert available_names(tmp_path / "avail_t2.csv") == {"IXI002-Guys-0828", "IXI012-HH-1211"}
