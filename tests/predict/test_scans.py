"""Which scans a folder or a table asks for, and where their results go."""

import errno
import os
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cddpm.errors import DataError
from cddpm.predict.scans import Job, asked_for, collect, is_many, stem

OUT = Path("out")


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def found(folder: Path, out: Path = OUT) -> dict[str, str]:
    """Scan -> folder of results, both relative."""
    return {str(job.scan.relative_to(folder)): str(job.folder.relative_to(out)) for job in collect([folder], out).jobs}


def test_names_without_endings() -> None:
    assert [stem(Path(n)) for n in ("x/a.b.nii.gz", "a.nii", "a", "T2W.NII.GZ", "b.Nii")] == [
        "a.b",
        "a",
        "a",
        "T2W",
        "b",
    ]


def test_a_file_is_one_job(tmp_path: Path) -> None:
    (job,) = collect([tmp_path / "p1.nii.gz"], OUT, "Brats21").jobs
    assert job == Job(tmp_path / "p1.nii.gz", OUT / "p1", None, None, "Brats21")
    assert job.key == "p1"


def test_a_folder_gives_every_scan_below_it_in_order(tmp_path: Path) -> None:
    touch(tmp_path, "b.nii.gz", "a.nii", "deep/er/c_t2.nii.gz", "notes.txt", "c.nii.txt", "x.mgz")
    assert found(tmp_path) == {"a.nii": "a", "b.nii.gz": "b", "deep/er/c_t2.nii.gz": "deep/er/c_t2"}
    assert list(found(tmp_path)) == ["a.nii", "b.nii.gz", "deep/er/c_t2.nii.gz"]


@pytest.mark.parametrize(
    "name",
    [
        *("p1_mask.nii.gz", "p1-seg.nii", "BraTS_00001_SEG.nii.gz", "consensus_gt.nii.gz", "T2LesionMask2.nii"),
        *("sub-01_label-lesion.nii.gz", "brainmask.nii", "BRAINmask.nii", "p1_dseg.NII", "deep/p1.gt.nii.gz"),
        *("anomaly_map.nii.gz", "p1/reconstruction.nii.gz", "p1/segmentation.nii.gz"),
        *(".hidden.nii.gz", "p1.mgz", "p1.hdr", "p1.IMG"),
    ],
)
def test_what_is_no_scan_by_its_own_name_is_left_out_and_told(tmp_path: Path, name: str) -> None:
    touch(tmp_path, name, "p1_t2.nii.gz")
    assert list(found(tmp_path)) == ["p1_t2.nii.gz"]
    (left,) = collect([tmp_path], OUT).left_out
    assert (left.path, left.files) == (tmp_path / name, 1)
    assert left.reason


@pytest.mark.parametrize(
    "name",
    [
        *("unmasked.nii.gz", "p1_masked_t2.nii", "segmental.nii", "labeled.nii", "sub-lesion01_ses-gt_T2w.nii.gz"),
        *("mask/p1.nii.gz", "lesion-group/p1.nii", "Segmentations/deep/p1.nii", "T2W.NII.GZ", "t2w.Nii"),
    ],
)
def test_only_whole_words_of_the_file_itself_count(tmp_path: Path, name: str) -> None:
    touch(tmp_path, name)
    assert list(found(tmp_path)) == [name]


def test_hidden_folders_and_results_within_are_counted(tmp_path: Path) -> None:
    touch(tmp_path, "p1.nii.gz", "results/old/odd_name.nii.gz", ".git/a.nii", ".git/b/c.nii", ".cache/notes.txt")
    asked = collect([tmp_path], tmp_path / "results")
    assert [job.scan.name for job in asked.jobs] == ["p1.nii.gz"]
    assert [(left.path.name, left.reason, left.files) for left in asked.left_out] == [
        (".git", "hidden", 2),
        ("results", "the folder of results", 1),
    ]


NAMES = st.sampled_from(
    ["p1", "P2_T2w", "p3_mask", "LesionT2", "anomaly_map", ".p4", "consensus_gt", "p5 ü", "p\udce46"]
)
ENDINGS = st.sampled_from([".nii", ".nii.gz", ".NII.GZ", ".Nii", ".mgz", ".txt", ""])
FOLDERS = st.sampled_from(["", "deep", "deep/er", "lesion-group", ".hidden", "seg", "OUT", "deep/er/x.nii"])
LINKS = st.tuples(
    FOLDERS, st.sampled_from(["link", "other link", ".link"]), st.sampled_from(["..", "deep", "far", "none"])
)


def volume_files(place: Path) -> int:
    """In all folders that can be reached, each counted once."""
    seen, ahead, count = set[str](), [str(place)], 0
    while ahead:
        here = os.path.realpath(ahead.pop())
        if here not in seen:
            seen.add(here)
            ahead += [one.path for one in os.scandir(here) if one.is_dir()]
            names = [one.name.lower() for one in os.scandir(here) if not one.is_dir()]
            count += sum(name.endswith((".nii", ".nii.gz", ".mgz")) for name in names)
    return count


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(FOLDERS, NAMES, ENDINGS), min_size=1, max_size=12), st.lists(LINKS, max_size=4), st.booleans()
)
def test_jobs_and_what_is_left_out_are_all_volume_files(
    files: list[tuple[str, str, str]], links: list[tuple[str, str, str]], linked_file: bool
) -> None:
    """Through links, without running in circles, in letters of any case; each file once by its true place."""
    with tempfile.TemporaryDirectory() as home:
        place, far = Path(home) / "place", Path(home) / "far"
        touch(place, *(str(Path(folder, name + ending)) for folder, name, ending in files), "always.nii")
        touch(far, "one.nii", "two.NII.GZ", "deep/three_seg.nii", "notes.txt")
        if linked_file:
            (place / "linked.nii.gz").symlink_to(far / "one.nii")
        for folder, name, target in links:
            at = place / folder / name
            at.parent.mkdir(parents=True, exist_ok=True)
            if not at.is_symlink():
                at.symlink_to({"..": place, "deep": place / "deep", "far": far, "none": far / "gone"}[target])
        asked = asked_for([place], place / "OUT")
        assert len(asked.jobs) + sum(left.files for left in asked.left_out) == volume_files(place)
        assert len({job.scan for job in asked.jobs}) == len(asked.jobs)
        assert all(left.reason for left in asked.left_out)
        assert all(str(job.key).encode() for job in asked.jobs)


def test_a_link_is_followed_once(tmp_path: Path) -> None:
    touch(tmp_path / "place", "p1.nii.gz", "deep/p2.nii")
    touch(tmp_path / "far", "p3.NII", "back/p4.nii")
    (tmp_path / "place" / "round").symlink_to(tmp_path / "place")
    (tmp_path / "place" / "a link").symlink_to(tmp_path / "place" / "deep")
    (tmp_path / "place" / "to far").symlink_to(tmp_path / "far")
    (tmp_path / "far" / "back" / "again").symlink_to(tmp_path / "place")
    (tmp_path / "place" / "p5.nii").symlink_to(tmp_path / "far" / "p3.NII")
    assert found(tmp_path / "place") == {
        "deep/p2.nii": "deep/p2",
        "p1.nii.gz": "p1",
        "p5.nii": "p5",
        "to far/back/p4.nii": "to far/back/p4",
        "to far/p3.NII": "to far/p3",
    }


def test_a_folder_that_cannot_be_looked_into_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path, "p1.nii.gz", "locked/p2.nii")
    look = os.scandir

    def refuse(path: str) -> Any:
        if str(path).endswith("locked"):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return look(path)

    monkeypatch.setattr("os.scandir", refuse)
    with pytest.raises(DataError, match=r"locked: cannot be looked into \(Permission denied\); make it readable"):
        collect([tmp_path], OUT)


def test_a_folder_without_scans_is_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no scan \(\.nii, \.nii\.gz\) in this folder or below\. Give"):
        collect([tmp_path], OUT)
    touch(tmp_path, "a_mask.nii", "b_seg.nii")
    with pytest.raises(DataError, match=r"; 2 left out, the first .*a_mask\.nii: no scan by its name \('mask'\)"):
        collect([tmp_path], OUT)


def table(folder: Path, text: str, name: str = "scans.csv") -> Path:
    (folder / name).write_text(text, encoding="utf-8")
    return folder / name


def test_a_table_says_everything_of_a_scan(tmp_path: Path) -> None:
    text = "\ufeffscan,mask,volume_id,dataset,name\na.nii.gz,m/a.nii,Brats21/a,Brats21,deep/one\n/abs/b.nii,,,,\n"
    place = table(tmp_path, text)
    one, two = collect([place], OUT, "all").jobs
    assert one == Job(
        tmp_path / "a.nii.gz", OUT / "deep/one", tmp_path / "m/a.nii", "Brats21/a", "Brats21", f"{place}:2"
    )
    assert two == Job(Path("/abs/b.nii"), OUT / "b", None, None, "all", f"{place}:3")
    assert is_many(place)
    assert is_many(tmp_path)
    assert not is_many(tmp_path / "a.nii")


def test_all_faults_of_a_table_are_told_at_once(tmp_path: Path) -> None:
    place = table(tmp_path, "scan,name\n,x\na.nii,../up\nb.nii,/abs\nc.nii\nd.nii,x,y\n")
    with pytest.raises(DataError) as caught:
        collect([place], OUT)
    lines = str(caught.value).splitlines()
    assert [line.removeprefix(f"{place}:")[:2] for line in lines] == ["2:", "3:", "4:", "5:", "6:"]
    assert "column 'scan' is empty" in lines[0]
    assert "no folder below that of the results" in lines[1]
    assert "no folder below that of the results" in lines[2]
    assert "fewer fields" in lines[3]
    assert "more fields" in lines[4]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no column 'scan' .there are nothing"),
        ("Scan;mask\na.nii;m.nii\n", "no column 'scan' .there are 'Scan', 'mask'"),
        ("scan,volumeid\na.nii,x\n", "unknown column 'volumeid'.*did you mean 'volume_id'"),
        ("scan,scan\na.nii,b.nii\n", "column 'scan' is there twice"),
        ("scan\n", "no rows"),
        ("scan\n\x00\udcff\n", "cannot be read"),
    ],
)
def test_a_table_of_another_form_is_refused(tmp_path: Path, text: str, message: str) -> None:
    place = tmp_path / "scans.csv"
    place.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(DataError, match=message):
        collect([place], OUT)


def test_a_missing_table_is_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"scans\.csv: cannot be read"):
        collect([tmp_path / "scans.csv"], OUT)


def test_two_scans_never_share_a_folder_of_results(tmp_path: Path) -> None:
    touch(tmp_path, "a.nii", "a.nii.gz")
    with pytest.raises(DataError, match=r"a\.nii and .*a\.nii\.gz: both would go to out/a"):
        collect([tmp_path], OUT)
    same = table(tmp_path, "scan,name\nx/a.nii,one\ny/a.nii,two\n")
    assert [job.folder for job in collect([same], OUT).jobs] == [OUT / "one", OUT / "two"]
