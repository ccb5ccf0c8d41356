"""Names: codes are kept, what may be a person's or a date gets an id, and who is who lies in one file for one reader."""

import json
import stat
from datetime import date
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cddpm.data.raw.names import Names, Veil, is_plain
from cddpm.errors import DataError


@pytest.mark.parametrize(
    "name",
    [
        *("IXI012-HH-1211", "IXI002-Guys-0828-T1.nii.gz", "IXI-T1", "BraTS2021_00621", "BraTS2021_01122_seg.nii.gz"),
        *("patient01_consensus_gt.nii.gz", "sub-r009s085", "sub-r001s001_ses-1_space-MNI152NLin2009aSym_T1w.nii.gz"),
        *("sub-r001s001_ses-1_space-MNI152NLin2009aSym_label-L_desc-T1lesion_mask.nii.gz", "Utrecht", "GE3T", "pre"),
        *(
            "Philips_VU .PETMR_01.",
            "case 12",
            "P001",
            "sub-01_acq-3d_FLAIR.nii.gz",
            "wmh.nii.gz",
            "S3",
            "IXI012-HH-1985",
            "IXI012-HH-2012-T1.nii.gz",
            "0049",
            "derivatives",
        ),
    ],
)
def test_codes_are_kept(name: str) -> None:
    assert is_plain(name)


@pytest.mark.parametrize(
    "name",
    [
        *("Mueller_Hans", "Müller", "HansMueller_T1.nii.gz", "sub-Erika", "Li_Wei", "O'Neil", "patient_Schmidt_01"),
        *("1961-04-17", "17.04.1961", "19610417", "610417", "sub-20190823_T1w.nii.gz", "scan_2019_08_23", "23-8-19"),
        *("pat_1985-3-12", "2019-03", "03-1958", "sub-01_1958", "1985 3 12", "0312_1985", "2019_3_7 t1.nii.gz"),
        *(
            "IXI012-HH-1211_1985",
            "BraTS2021_00621_1985-3-2",
            "sub-01_ses-1985_T1w",
            "MRN7788990011",
            "sub-1234567",
            "Max1",
            "Jan 1972",
            "JD1972",
            "李伟",
            "case_Ä",
        ),
    ],
)
def test_names_and_dates_are_not(name: str) -> None:
    assert not is_plain(name)


@given(
    st.dates(date(1900, 1, 1), date(2099, 12, 31)),
    st.sampled_from(
        [
            *("%Y%m%d", "%Y-%m-%d", "%d.%m.%Y", "%d%m%Y", "%y%m%d", "%Y_%m_%d", "%d-%m-%y"),
            *("%Y-%-m-%-d", "%Y %-m %-d", "%Y_%-m", "%m-%Y", "%d%m_%Y", "%Y"),
        ]
    ),
    st.booleans(),
)
def test_no_date_is_kept(day: date, form: str, inside: bool) -> None:
    written = f"{day:{form}}"
    assert not is_plain(f"sub-{written}_T1w.nii.gz" if inside else written)


@given(st.text(min_size=1, max_size=12))
def test_a_kept_name_is_made_of_known_words_and_short_numbers(name: str) -> None:
    if is_plain(name):
        assert not any(character.isalnum() and not character.isascii() for character in name)


def test_ids_follow_from_the_key_and_the_file_tells_them_back(tmp_path: Path) -> None:
    file = tmp_path / "names.json"
    names = Names.open(file, tmp_path / "DATA")
    first = names.subject("Clinic", "Mueller_Hans")
    assert first.startswith("sub-")
    assert names.subject("Clinic", "P001") == "P001"
    assert names.subject("Other", "Mueller_Hans") != first
    assert names.path(tmp_path / "raw" / "Mueller_Hans" / "T1_17.04.1961.nii.gz", tmp_path / "raw").count("x-") == 2
    names.write()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert json.loads(file.read_text())["names"][first] == "Clinic/Mueller_Hans"
    before = file.read_bytes()
    again = Names.open(file, tmp_path / "DATA")
    assert again.subject("Clinic", "Mueller_Hans") == first
    again.write()
    assert file.read_bytes() == before
    assert Names.open(tmp_path / "other.json", None).subject("Clinic", "Mueller_Hans") != first


def test_nothing_is_written_where_nothing_was_replaced(tmp_path: Path) -> None:
    names = Names.open(tmp_path / "names.json", None)
    assert names.subject("IXI", "IXI012-HH-1211") == "IXI012-HH-1211"
    kept = Names.open(tmp_path / "names.json", None, keep=True)
    assert kept.subject("Clinic", "Mueller_Hans") == "Mueller_Hans"
    names.write()
    kept.write()
    assert not list(tmp_path.iterdir())


def test_a_file_within_data_dir_or_of_something_else_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"lies in DATA_DIR, which is to hold no name"):
        Names.open(tmp_path / "DATA" / "x" / "names.json", tmp_path / "DATA")
    (tmp_path / "names.json").write_text("{}")
    with pytest.raises(DataError, match=r"not a file of names"):
        Names.open(tmp_path / "names.json", None)


@given(st.lists(st.text("abcXYZ äß1_", min_size=3, max_size=8), min_size=1, max_size=4))
def test_a_veil_hides_every_name_in_a_path(parts: list[str]) -> None:
    names = Names(Path("names.json"), key=b"k" * 32)
    root = Path("/data/Zz Hospital")
    path = root.joinpath(*parts)
    said = names.veil(root, [path]).over(f"{path}: no such file; restore {path.name}")
    shown = names.path(path, root)
    assert said == f"{shown}: no such file; restore {names.part(path.name)}"
    assert "Zz Hospital" not in said


def test_a_name_within_another_word_stays() -> None:
    assert Veil("", (("Li", "x-1"),)).over("Lists of Li, Li_2") == "Lists of x-1, x-1_2"
