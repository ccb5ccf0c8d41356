"""Official downloads as they come out of their archives, and with the faults that real ones have."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import raw_trees
from raw_trees import head, lesion, save

from cddpm.data.raw.run import files_of
from cddpm.data.raw.survey import survey
from cddpm.data.raw.tree import Found
from cddpm.errors import ConfigError, DataError

BOTH = ("t1", "t2")


def found(dataset: str, root: Path, *modalities: str) -> Found:
    (one,) = survey(dataset, root, modalities)
    return one


def names(one: Found) -> list[str]:
    return [subject.subject for subject in one.subjects]


def codes(one: Found) -> list[str]:
    return [finding.code for finding in one.findings if finding.code != "ages"]


@pytest.mark.parametrize("flat", [False, True])
def test_ixi_in_folders_or_flat(tmp_path: Path, flat: bool) -> None:
    root = raw_trees.ixi(tmp_path, {"IXI012-HH-1211": BOTH, "IXI002-Guys-0828": BOTH}, flat)
    one = found("ixi", root)
    assert names(one) == ["IXI002-Guys-0828", "IXI012-HH-1211"]
    assert [list(subject.images) for subject in one.subjects] == [["t1", "t2"]] * 2
    assert one.healthy
    assert not codes(one)
    assert all(file.name.endswith("-T2.nii.gz") for file in (subject.images["t2"] for subject in one.subjects))


def test_ages_come_from_the_saved_spreadsheet(tmp_path: Path) -> None:
    root = raw_trees.ixi(tmp_path, {"IXI012-HH-1211": BOTH, "IXI002-Guys-0828": BOTH, "IXI035-IOP-0873": BOTH})
    (root / "IXI.xls").write_bytes(b"\xd0\xcf")
    assert "save IXI.xls as IXI.csv" in str(found("IXI", root).findings[-1])
    (root / "IXI.csv").write_text(
        "IXI_ID;STUDY_DATE;AGE\n12;2005-01-01;38,78\n2;2005-01-01;35,8\n2;2005-01-02;36,1\n35;;\n"
    )
    one = found("IXI", root)
    assert [subject.age for subject in one.subjects] == [35.8, 38.78, None]
    assert [finding.code for finding in one.findings] == ["ages"]  # one of them has two


@pytest.mark.parametrize("labels", [(1, 2, 4), (1, 2, 3)])
def test_brats(tmp_path: Path, labels: tuple[int, ...]) -> None:
    one = found("Brats21", raw_trees.brats(tmp_path / "RSNA", (0, 621), labels))
    assert names(one) == ["BraTS2021_00000", "BraTS2021_00621"]
    assert not one.healthy
    assert not codes(one)
    assert [subject.segmentation.name for subject in one.subjects if subject.segmentation] == [
        "BraTS2021_00000_seg.nii.gz",
        "BraTS2021_00621_seg.nii.gz",
    ]
    assert list(found("Brats21", tmp_path, "flair", "t1ce").subjects[0].images) == ["flair", "t1ce"]


def test_mslub_with_and_without_masks(tmp_path: Path) -> None:
    one = found("MSLUB", raw_trees.mslub(tmp_path / "with", (1, 26)))
    assert names(one) == ["patient01", "patient26"]
    assert all(subject.mask for subject in one.subjects)
    assert not codes(one)
    assert not any(
        subject.mask for subject in found("MSLUB", raw_trees.mslub(tmp_path / "no", (3,), masks=False)).subjects
    )


def test_atlas(tmp_path: Path) -> None:
    one = found("ATLAS_v2", raw_trees.atlas(tmp_path / "Training", ("sub-r001s001", "sub-r009s085")))
    assert names(one) == ["sub-r001s001", "sub-r009s085"]
    assert not codes(one)
    assert all(subject.segmentation for subject in one.subjects)


@pytest.mark.parametrize("folder", ["pre", "orig"])
def test_wmh(tmp_path: Path, folder: str) -> None:
    one = found("WMH", raw_trees.wmh(tmp_path, {"Utrecht": (0, 49), "Amsterdam/GE3T": (100,)}, folder))
    assert names(one) == ["GE3T_100", "Utrecht_0", "Utrecht_49"]
    assert not codes(one)
    assert {subject.images["t1"].parent.name for subject in one.subjects} == {folder}


def test_preprocessed_scans_of_wmh_are_preferred(tmp_path: Path) -> None:
    for folder in ("orig", "pre"):
        raw_trees.wmh(tmp_path, {"Singapore": (50,)}, folder)
    one = found("WMH", tmp_path)
    assert [subject.images["t1"].parent.name for subject in one.subjects] == ["pre"]
    assert not codes(one)


def test_a_healthy_subject_goes_without_a_modality_and_an_ill_one_is_left_out(tmp_path: Path) -> None:
    one = found("IXI", raw_trees.ixi(tmp_path / "ixi", {"IXI012-HH-1211": BOTH, "IXI013-HH-1212": ("t1",)}))
    assert [list(subject.images) for subject in one.subjects] == [["t1", "t2"], ["t1"]]
    assert codes(one) == ["missing"]
    root = raw_trees.brats(tmp_path / "brats", (1, 2, 3))
    (root / "BraTS2021_00001" / "BraTS2021_00001_t2.nii.gz").unlink()
    (root / "BraTS2021_00002" / "BraTS2021_00002_seg.nii.gz").unlink()
    one = found("Brats21", root)
    assert names(one) == ["BraTS2021_00003"]
    assert [finding.found for finding in one.findings] == [
        "BraTS2021_00001: no t2",
        "BraTS2021_00002: no segmentation",
    ]
    assert names(found("Brats21", root, "t1")) == ["BraTS2021_00001", "BraTS2021_00003"]


@pytest.mark.parametrize("end", [".nii.gz.gz", ".nii.nii.gz", ".NII.GZ", ".nii"])
def test_ends_of_names_do_not_matter(tmp_path: Path, end: str) -> None:
    save(tmp_path / "IXI-T1" / f"IXI012-HH-1211-T1{end}", head(0, "t1"))
    assert names(found("IXI", tmp_path, "t1")) == ["IXI012-HH-1211"]


@pytest.mark.parametrize("folder", ["Müllers Daten", "with space", "a (copy) [1]", "ünïcode/…"])
def test_names_of_folders_above_do_not_matter(tmp_path: Path, folder: str) -> None:
    for dataset, root in (
        ("Brats21", raw_trees.brats(tmp_path / "b" / folder, (1,))),
        ("MSLUB", raw_trees.mslub(tmp_path / "m" / folder, (1,))),
        ("ATLAS_v2", raw_trees.atlas(tmp_path / "a" / folder, ("sub-r001s001",))),
        ("WMH", raw_trees.wmh(tmp_path / "w" / folder, {"Utrecht": (0,)})),
    ):
        above = root.parent if "/" not in folder else root.parent.parent
        assert len(found(dataset, above).subjects) == 1


def test_an_empty_file_is_taken_for_missing(tmp_path: Path) -> None:
    root = raw_trees.mslub(tmp_path, (1, 2))
    (root / "patient01" / "patient01_T2W.nii.gz").write_bytes(b"")
    one = found("MSLUB", root)
    assert names(one) == ["patient02"]
    assert codes(one) == ["empty-file", "missing"]


def test_of_two_sessions_the_first_is_taken(tmp_path: Path) -> None:
    raw_trees.atlas(tmp_path, ("sub-r001s001",), "ses-1")
    raw_trees.atlas(tmp_path, ("sub-r001s001",), "ses-2")
    one = found("ATLAS_v2", tmp_path)
    assert names(one) == ["sub-r001s001"]
    assert codes(one) == ["sessions"]
    assert "ses-1" in one.subjects[0].images["t1"].name


def test_time_points_of_one_person_are_one_subject(tmp_path: Path) -> None:
    for name in ("BraTS-GLI-00005-000", "BraTS-GLI-00005-001", "BraTS-GLI-00006-001"):
        for kind in ("t1n", "t2w", "seg"):
            save(tmp_path / name / f"{name}-{kind}.nii.gz", lesion() if kind == "seg" else head(0, "t1"))
    one = found("Brats21", tmp_path)
    assert names(one) == ["BraTS-GLI-00005", "BraTS-GLI-00006"]
    assert codes(one) == ["sessions"]
    assert "BraTS-GLI-00005-000" in one.findings[0].file
    assert {file.parent.name for file in files_of(one.subjects[0]).values()} == {"BraTS-GLI-00005-000"}


def test_folders_of_one_site_that_count_alike_are_told_and_not_mixed(tmp_path: Path) -> None:
    raw_trees.wmh(tmp_path, {"Philips_A": (1,)}, "orig")
    raw_trees.wmh(tmp_path, {"Philips_B": (1,)}, "pre")
    one = found("WMH", tmp_path)
    assert names(one) == ["Philips_1"]
    assert codes(one) == ["sessions"]
    assert "Philips_B" in one.findings[0].others[0]
    assert all("Philips_A" in file.parts for file in files_of(one.subjects[0]).values())


def test_a_file_that_is_there_twice_is_told(tmp_path: Path) -> None:
    root = raw_trees.ixi(tmp_path, {"IXI012-HH-1211": ("t1",)})
    shutil.copytree(root / "IXI-T1", root / "copy")
    one = found("IXI", root, "t1")
    assert names(one) == ["IXI012-HH-1211"]
    assert codes(one) == ["twice"]


def test_strange_names_hidden_ones_and_macs_are_left_out(tmp_path: Path) -> None:
    root = raw_trees.mslub(tmp_path, (1,))
    save(root / "notes" / "template.nii.gz", head(0, "t1"))
    save(root / "patient01" / "._patient01_T1W.nii.gz", head(0, "t1"))
    save(root / "__MACOSX" / "patient02_T1W.nii.gz", head(0, "t1"))
    one = found("MSLUB", root)
    assert names(one) == ["patient01"]
    assert codes(one) == ["strange-name"]


def test_a_folder_of_something_else_is_an_error(tmp_path: Path) -> None:
    one = found("WMH", raw_trees.mslub(tmp_path, (1,)))
    assert [finding.code for finding in one.findings if finding.severity == "error"] == ["no-match"]
    assert "Utrecht/0/pre/T1.nii.gz" in str(one.findings[-1])


def test_what_is_asked_for_wrongly_is_told_with_what_is_allowed(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"DATASET Brats: allowed are .*did you mean"):
        survey("Brats", tmp_path)
    with pytest.raises(ConfigError, match=r"--modality t3: IXI has mra, pd, t1, t2"):
        survey("IXI", tmp_path, ["t3"])
    with pytest.raises(DataError, match=r"RAW_DIR is the folder of the download"):
        survey("IXI", tmp_path / "none")
    with pytest.raises(DataError, match=r"no BIDS folder .* --layout FILE"):
        survey("custom", tmp_path)


def test_the_cartoons_are_what_the_tests_take_them_for() -> None:
    assert np.median(head(0, "t1")[raw_trees.brain() > 0]) > 0
    assert not head(0, "t1")[raw_trees.brain() == 0].any()
