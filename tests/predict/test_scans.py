"""Which scans a folder or a table asks for, and where their results go."""

from pathlib import Path

import pytest

from cddpm.errors import DataError
from cddpm.predict.scans import Job, collect, is_many, stem

OUT = Path("out")


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def found(folder: Path, out: Path = OUT) -> dict[str, str]:
    """Scan -> folder of results, both relative."""
    return {str(job.scan.relative_to(folder)): str(job.folder.relative_to(out)) for job in collect([folder], out)}


def test_names_without_endings() -> None:
    assert [stem(Path(n)) for n in ("x/a.b.nii.gz", "a.nii", "a")] == ["a.b", "a", "a"]


def test_a_file_is_one_job(tmp_path: Path) -> None:
    (job,) = collect([tmp_path / "p1.nii.gz"], OUT, "Brats21")
    assert job == Job(tmp_path / "p1.nii.gz", OUT / "p1", None, None, "Brats21")
    assert job.key == "p1"


def test_a_folder_gives_every_scan_below_it_in_order(tmp_path: Path) -> None:
    touch(tmp_path, "b.nii.gz", "a.nii", "deep/er/c_t2.nii.gz", "notes.txt", "c.nii.txt", "x.mgz")
    assert found(tmp_path) == {"a.nii": "a", "b.nii.gz": "b", "deep/er/c_t2.nii.gz": "deep/er/c_t2"}
    assert list(found(tmp_path)) == ["a.nii", "b.nii.gz", "deep/er/c_t2.nii.gz"]


@pytest.mark.parametrize(
    "name",
    [
        *("p1_mask.nii.gz", "p1-seg.nii", "BraTS_00001_SEG.nii.gz", "mask/p1.nii.gz", "Segmentations/deep/p1.nii"),
        *("sub-01_label-lesion.nii.gz", "brainmask.nii", ".hidden.nii.gz", ".git/p1.nii", "anomaly_map.nii.gz"),
        *("p1/reconstruction.nii.gz", "p1/segmentation.nii.gz"),
    ],
)
def test_what_is_no_scan_by_its_name_is_left_out(tmp_path: Path, name: str) -> None:
    touch(tmp_path, name, "p1_t2.nii.gz")
    assert list(found(tmp_path)) == ["p1_t2.nii.gz"]


@pytest.mark.parametrize("name", ["unmasked.nii.gz", "p1_masked_t2.nii", "segmental/p1.nii", "labeled.nii"])
def test_only_whole_words_count(tmp_path: Path, name: str) -> None:
    touch(tmp_path, name)
    assert list(found(tmp_path)) == [name]


def test_the_name_of_the_folder_itself_does_not_count(tmp_path: Path) -> None:
    touch(tmp_path / "mask", "p1.nii.gz")
    assert list(found(tmp_path / "mask")) == ["p1.nii.gz"]


def test_results_within_the_folder_and_links_that_lead_round_are_no_scans(tmp_path: Path) -> None:
    touch(tmp_path, "p1.nii.gz", "results/old/odd_name.nii.gz")
    (tmp_path / "round").symlink_to(tmp_path)
    assert found(tmp_path, tmp_path / "results") == {"p1.nii.gz": "p1"}


def test_a_folder_without_scans_is_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no scan \(\.nii, \.nii\.gz\) in this folder or below\. Give"):
        collect([tmp_path], OUT)
    touch(tmp_path, "a_mask.nii", "b_seg.nii")
    with pytest.raises(DataError, match="2 NIfTI files are masks, segmentations or results by their names"):
        collect([tmp_path], OUT)


def table(folder: Path, text: str, name: str = "scans.csv") -> Path:
    (folder / name).write_text(text, encoding="utf-8")
    return folder / name


def test_a_table_says_everything_of_a_scan(tmp_path: Path) -> None:
    text = "\ufeffscan,mask,volume_id,dataset,name\na.nii.gz,m/a.nii,Brats21/a,Brats21,deep/one\n/abs/b.nii,,,,\n"
    place = table(tmp_path, text)
    one, two = collect([place], OUT, "all")
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
    assert [job.folder for job in collect([same], OUT)] == [OUT / "one", OUT / "two"]
