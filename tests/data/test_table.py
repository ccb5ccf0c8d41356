"""Tables of own data sets, row by row: every fault told, one table for every modality, a foreign layout from end to end."""

import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from tiny_data import AFFINE, TinyData, ball

from cddpm.config import DataConfig
from cddpm.data.check import check
from cddpm.data.layout import Layout, read_layout, root_of, scan_layout
from cddpm.data.split_report import report_splits, write_clean
from cddpm.data.store import SliceStore, build_store
from cddpm.data.volume import write_volume
from cddpm.errors import DataError

HEADER = "dataset,subject,split,image,mask,segmentation,fold,label,age,modality\n"
ROWS = (
    "Own,a,train,h/a_{modality}.nii,h/a_m.nii,,0,,34.5,\n"
    "Own,b,val,h/b_{modality}.nii,h/b_m.nii,,0,,,\n"
    "Own,b,train,h/b_{modality}.nii,h/b_m.nii,,1,,,\n"
    "Own,a,val,h/a_{modality}.nii,h/a_m.nii,,1,,34.5,\n"
    "Own,c,test,/abs/c_{modality}.nii,h/c_m.nii,,,0,,\n"
    "Sick,d,val,s/d.nii,s/d_m.nii,s/d_s.nii,,,,t2\n"
    "Sick,d,val,s/d-t1.nii,s/d_m.nii,s/d_s.nii,,,,t1\n"
    "Sick,e,test,s/e.nii,s/e_m.nii,s/e_s.nii,,1,,t2\n"
    "Sick,f,test,s/f.nii,s/f_m.nii,,,0,,t1\n"
    "Else,z,test,x.nii,x_m.nii,,,,,\n"
)


def settings(tmp_path: Path, text: str, **changes: object) -> DataConfig:
    path = tmp_path / "scans.csv"
    path.write_text(text)
    fields = {"table": path, "healthy": "Own", "unhealthy": ("Sick",), **changes}
    return DataConfig.model_validate(fields)


def scan(tmp_path: Path, text: str, **changes: object) -> Layout:
    data = settings(tmp_path, text, **changes)
    return scan_layout(data, root_of(data))


def told(layout: Layout) -> list[str]:
    return [f"{f.file.rpartition('/')[2]}: {f.found}" for f in layout.findings]


def test_rows_by_hand(tmp_path: Path) -> None:
    layout = scan(tmp_path, HEADER + ROWS)
    assert layout.findings == ()
    assert [(r.dataset, r.subject, r.split, r.fold, r.label, r.age) for r in layout.rows] == [
        ("Own", "a", "train", 0, 0, 34.5),
        ("Own", "b", "train", 1, 0, None),
        ("Own", "b", "val", 0, 0, None),
        ("Own", "a", "val", 1, 0, 34.5),
        ("Own", "c", "test", None, 0, None),
        ("Sick", "d", "val", None, 1, None),
        ("Sick", "e", "test", None, 1, None),
    ]
    first, *_, c, d, _ = layout.rows
    assert first.image == tmp_path / "h/a_t2.nii"
    assert first.source == f"{tmp_path / 'scans.csv'}:2"
    assert c.image == Path("/abs/c_t2.nii")
    assert (d.image, d.mask, d.segmentation) == tuple(tmp_path / n for n in ("s/d.nii", "s/d_m.nii", "s/d_s.nii"))


def test_one_table_serves_another_modality(tmp_path: Path) -> None:
    layout = scan(tmp_path, HEADER + ROWS, modality="t1")
    assert [r.image.name for r in layout.rows if r.subject in "ad"] == ["a_t1.nii", "a_t1.nii", "d-t1.nii"]
    assert [(r.subject, r.label) for r in layout.rows if r.dataset == "Sick"] == [("d", 1), ("f", 0)]
    assert scan(tmp_path, HEADER + ROWS, modality="dwi-b1000").rows[0].image.name == "a_dwi-b1000.nii"


def test_columns_that_say_nothing_may_be_left_out(tmp_path: Path) -> None:
    text = "dataset,subject,split,image,mask\n" + "".join(
        f"{d},{d}-{s},{s},i.nii,m.nii\n" for d, s in [("Own", "train"), ("Own", "val"), ("Own", "test")]
    )
    layout = scan(tmp_path, text, unhealthy=())
    assert {(r.fold, r.label, r.age, r.segmentation) for r in layout.rows} == {(None, 0, None, None)}


def test_paths_begin_at_data_dir_if_there_is_one(tmp_path: Path) -> None:
    (tmp_path / "scans").mkdir()
    layout = scan(tmp_path, HEADER + ROWS, data_dir=tmp_path / "scans")
    assert layout.rows[0].image == tmp_path / "scans/h/a_t2.nii"
    with pytest.raises(DataError, match=r"no such folder; paths in scans\.csv are relative to data\.data_dir"):
        root_of(settings(tmp_path, HEADER, data_dir=tmp_path / "gone"))
    with pytest.raises(DataError, match=r"data\.data_dir: not set"):
        root_of(DataConfig())


def test_every_bad_row_is_told_and_none_hides_another(tmp_path: Path) -> None:
    bad = (
        "Own,../x,train,i.nii,m.nii,,0,,,\n"
        "Own,g,tarin,i.nii,,,first,7,old,\n"
        ",h,test,i.nii,m.nii,,,,,\n"
        "Own,i,test\n"
        "Own,j,test,i.nii,m.nii,,,,,,,\n"
    )
    layout = scan(tmp_path, HEADER + ROWS + bad)
    assert told(layout) == [
        "scans.csv:12: subject '../x'",
        "scans.csv:13: 'mask' is empty",
        "scans.csv:13: split 'tarin'",
        "scans.csv:13: fold 'first'",
        "scans.csv:13: label '7'",
        "scans.csv:13: age 'old'",
        "scans.csv:14: 'dataset' is empty",
        "scans.csv:15: fewer fields than the header names",
        "scans.csv:16: more fields than the header names",
    ]
    assert "did you mean 'train'?" in layout.findings[2].allowed
    assert len(layout.rows) == 7


def test_columns_are_closed(tmp_path: Path) -> None:
    layout = scan(tmp_path, ",dataset,subject,split,img,mask,segmentaton,mask\n0,a,b,train,c,d,e,d\n")
    assert [f.found for f in layout.findings] == [
        "no column 'image' (there are 'dataset', 'subject', 'split', 'img', 'mask', 'segmentaton', 'mask', separated by commas)",
        "unknown column 'img'",
        "column 'mask' is there twice",
        "unknown column 'segmentaton'",
        "column 'mask' is there twice",
    ]
    assert "did you mean 'segmentation'?" in layout.findings[3].allowed


def test_data_set_that_is_not_there(tmp_path: Path) -> None:
    layout = scan(tmp_path, HEADER + ROWS, healthy="own", unhealthy=("Sick", "Brats21"))
    assert told(layout) == [
        "scans.csv: no data set 'own' (data.healthy)",
        "scans.csv: no data set 'Brats21' (data.unhealthy)",
    ]
    assert layout.findings[0].allowed == "there are Else, Own, Sick; did you mean 'Own'?"


def test_splits_without_a_scan_are_named(tmp_path: Path) -> None:
    layout = scan(tmp_path, HEADER + ROWS, fold=4, modality="pd")
    assert told(layout) == [
        "scans.csv: Own train fold 4: no usable scan (modality pd)",
        "scans.csv: Own val fold 4: no usable scan (modality pd)",
        "scans.csv: Sick val: no usable scan (modality pd)",
        "scans.csv: Sick test: no usable scan (modality pd)",
    ]


def test_anomalies_do_not_train(tmp_path: Path) -> None:
    more = "Sick,t,train,s/t.nii,s/t_m.nii,s/t_s.nii,,,,\nOwn,u,test,h/u.nii,h/u_m.nii,h/u_s.nii,,,,\n"
    layout = scan(tmp_path, HEADER + ROWS + more)
    assert told(layout) == [
        "scans.csv:12: 1 rows of Sick are for training",
        "scans.csv:13: label 1 (u) in the healthy data set Own",
    ]
    nothing = "Sick,t,test,s/t.nii,s/t_m.nii,,,1,,\n"
    assert told(scan(tmp_path, HEADER + ROWS + nothing)) == ["scans.csv:12: no segmentation for t with label 1"]


def test_folds_are_for_all_rows_of_a_split_or_none(tmp_path: Path) -> None:
    layout = scan(tmp_path, HEADER + ROWS + "Own,k,train,h/k.nii,h/k_m.nii,,,,,\n")
    assert told(layout) == ["scans.csv: Own train: some rows name a fold and some do not"]


LEAKY = "Own,c,train,/abs/c_{modality}.nii,h/c_m.nii,,0,,,\nOwn,a,train,h/a_{modality}.nii,h/a_m.nii,,0,,34.5,\n"


def test_leaks_and_repeats_are_treated_as_in_split_files(tmp_path: Path) -> None:
    clean = scan(tmp_path, HEADER + ROWS + LEAKY)
    assert told(clean) == [
        "scans.csv: Own train fold 0: 1 rows repeat a scan (a)",
        "scans.csv: Own train fold 0: 1 subjects are also in Own test (c)",
    ]
    assert [r.subject for r in clean.rows if (r.split, r.fold) == ("train", 0)] == ["a"]
    published = scan(tmp_path, HEADER + ROWS + LEAKY, splits="published")
    assert [r.subject for r in published.rows if (r.split, r.fold) == ("train", 0)] == ["a", "c", "a"]
    data = settings(tmp_path, HEADER + ROWS + LEAKY, splits="strict")
    with pytest.raises(DataError, match="1 subjects are also in Own test"):
        read_layout(data, root_of(data))


def test_leaks_of_a_table_are_reported_but_not_written(tmp_path: Path) -> None:
    data = settings(tmp_path, HEADER + ROWS + LEAKY)
    state = report_splits(data, root_of(data)).published
    assert (state.repeats, state.leaks) == (1, 1)
    assert state.splits[0].leaked == {"Own test": ("c",)}
    with pytest.raises(DataError, match="correct the table itself"):
        write_clean(data, root_of(data), tmp_path / "out")


@pytest.mark.parametrize(("name", "found"), [("t.xlsx", "a table of kind '.xlsx'"), ("gone.csv", "cannot be read")])
def test_table_that_is_none(tmp_path: Path, name: str, found: str) -> None:
    (tmp_path / "t.xlsx").touch()
    data = DataConfig(table=tmp_path / name)
    with pytest.raises(DataError, match=found):
        read_layout(data, root_of(data))


@pytest.fixture
def foreign(tiny: TinyData, tmp_path: Path) -> DataConfig:
    """The tiny data in another layout: a folder per subject, with a table instead of split files."""
    home, lines = tmp_path / "study", [HEADER]
    for layout_row in read_layout(tiny.config, tiny.root).rows:
        name, healthy = layout_row.subject, layout_row.dataset == "IXI"
        folder = Path("people") / f"id {name}"
        for kind, path in (
            ("image_t2", layout_row.image),
            ("brain", layout_row.mask),
            ("tumour", layout_row.segmentation),
        ):
            if path:
                target = home / folder / f"{kind}.nii.gz"
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(path, target)
        fold = "" if layout_row.fold is None else layout_row.fold
        anomaly = "" if healthy else folder / "tumour.nii.gz"
        dataset = "Controls" if healthy else "Patients"
        image, mask = folder / "image_{modality}.nii.gz", folder / "brain.nii.gz"
        lines.append(f"{dataset},{name},{layout_row.split},{image},{mask},{anomaly},{fold},,,\n")
    (home / "study.csv").write_text("".join(lines))
    fields = {"table": home / "study.csv", "healthy": "Controls", "unhealthy": ("Patients",)}
    return tiny.config.model_copy(update=fields)


def stored(data: DataConfig, out: Path) -> SliceStore:
    root = root_of(data)
    return SliceStore.open(build_store(data, root, read_layout(data, root).rows, out, map))


@pytest.mark.slow
def test_foreign_layout_from_end_to_end(foreign: DataConfig, tiny: TinyData, tmp_path: Path) -> None:
    report = check(foreign, root_of(foreign))
    assert (report.findings, report.volumes) == ((), 9)
    own = stored(foreign, tmp_path / "a")
    same = SliceStore.open(build_store(tiny.config, tiny.root, read_layout(tiny.config, tiny.root).rows, tmp_path, map))
    names = {v.subject: v.index for v in same.volumes}
    for volume in own.volumes:
        np.testing.assert_array_equal(own.image(volume.index), same.image(names[volume.subject]))
        np.testing.assert_array_equal(own.segmentation(volume.index), same.segmentation(names[volume.subject]))
    assert Counter(v.dataset for v in own.volumes) == {"Controls": 6, "Patients": 3}
    for fold in (0, 1):
        subjects = [own.volumes[v].subject for v in own.cohort("Controls", "train", fold)]
        assert subjects == [same.volumes[v].subject for v in same.cohort("IXI", "train", fold)]


def test_faults_of_files_are_told_by_the_check(foreign: DataConfig) -> None:
    folder = root_of(foreign) / "people" / "id IXI001-HH-1"
    (folder / "image_t2.nii.gz").unlink()
    write_volume(folder / "brain.nii.gz", ball(0)[1][:-1], AFFINE)
    assert {f.code for f in check(foreign, root_of(foreign)).errors} == {"missing"}
    other = foreign.model_copy(update={"modality": "t1"})
    assert len(check(other, root_of(other)).errors) == 9


@pytest.mark.slow
def test_the_store_depends_on_what_the_table_says_not_on_where_it_is(foreign: DataConfig, tmp_path: Path) -> None:
    assert foreign.table is not None
    first = stored(foreign, tmp_path / "a").fingerprint
    shutil.copytree(foreign.table.parent, tmp_path / "moved")
    moved = foreign.model_copy(update={"table": tmp_path / "moved" / "study.csv"})
    assert stored(moved, tmp_path / "b").fingerprint == first
    text = foreign.table.read_text()
    lines = text.splitlines(keepends=True)
    one_less = [line for line in lines if not line.startswith("Controls,IXI003-HH-3,train")]
    foreign.table.write_text("".join(one_less))
    second = stored(foreign, tmp_path / "a").fingerprint
    foreign.table.write_text(text.replace("brain.nii.gz,,0,,,", "brain.nii.gz,,0,,44,", 1))
    assert len({first, second, stored(foreign, tmp_path / "a").fingerprint}) == 3
