"""The published layout: which scans, in which split of which fold."""

import shutil
from collections import Counter
from pathlib import Path

import pytest
from plain_tables import PlainTables
from tiny_data import TinyData, row

from cddpm.config import DataConfig
from cddpm.data.layout import Layout, find_root, read_layout, scan_layout
from cddpm.errors import DataError


def with_splits(tiny: TinyData, policy: str) -> DataConfig:
    return tiny.config.model_copy(update={"splits": policy})


def subjects(layout: Layout, split: str, fold: int | None = None, dataset: str = "IXI") -> list[str]:
    return [r.subject for r in layout.rows if (r.dataset, r.split, r.fold) == (dataset, split, fold)]


def codes(layout: Layout) -> Counter[tuple[str, str]]:
    return Counter((f.severity, f.code) for f in layout.findings)


def test_root_with_and_without_the_extra_level(tmp_path: Path) -> None:
    (tmp_path / "a" / "splits").mkdir(parents=True)
    (tmp_path / "b" / "Data" / "splits").mkdir(parents=True)
    assert find_root(tmp_path / "a") == tmp_path / "a"
    assert find_root(tmp_path / "b") == tmp_path / "b" / "Data"


def test_root_that_is_none_says_what_was_looked_for(tmp_path: Path) -> None:
    (tmp_path / "Train").mkdir()
    with pytest.raises(DataError, match=r"looked for splits/ and Data/splits/, found Train"):
        find_root(tmp_path)
    with pytest.raises(DataError, match="no such folder"):
        find_root(tmp_path / "gone")


def test_clean_folder_is_read_whole(tiny: TinyData) -> None:
    layout = read_layout(tiny.config, tiny.root)
    assert layout.findings == ()
    assert subjects(layout, "train", 0) == ["IXI001-HH-1", "IXI002-HH-2", "IXI003-HH-3"]
    assert subjects(layout, "val", 1) == ["IXI001-HH-1"]
    assert subjects(layout, "test", None, "Brats21") == ["BraTS2021_00002", "BraTS2021_00003"]
    assert len(layout.volumes()) == len({r.subject for r in layout.rows}) == 9
    assert all(r.image.exists() and r.mask.exists() for r in layout.rows)


def test_missing_split_file_lists_what_there_is(tiny: TinyData) -> None:
    config = tiny.config.model_copy(update={"unhealthy": ("Brats2",), "fold": 3})
    with pytest.raises(DataError) as caught:
        read_layout(config, tiny.root)
    message = str(caught.value)
    assert "Brats2_val.csv: no such split file; there are Brats21_test.csv, Brats21_val.csv, IXI_test.csv" in message
    assert "did you mean 'Brats21_val.csv'?" in message
    assert "IXI_train_fold3.csv" in message  # all faults at once


def test_scans_without_this_modality_are_left_out(tiny: TinyData) -> None:
    tiny.split("avail_t2").write_text(",0\n0,IXI001-HH-1_t2.nii.gz\n1,IXI004-HH-4_t2.nii.gz\n2,IXI005-HH-5_t2.nii.gz\n")
    layout = read_layout(tiny.config, tiny.root)
    assert subjects(layout, "train", 0) == ["IXI001-HH-1"]
    assert subjects(layout, "test") == ["IXI005-HH-5"]
    t1 = scan_layout(tiny.config.model_copy(update={"modality": "t1"}), tiny.root)
    assert len(subjects(t1, "train", 0)) == 3


def test_empty_split_is_an_error(tiny: TinyData) -> None:
    tiny.write_rows("IXI_test", [])
    with pytest.raises(DataError, match=r"IXI_test\.csv: no usable scan"):
        read_layout(tiny.config, tiny.root)


def test_repeated_rows_are_told_and_read_once(tiny: TinyData) -> None:
    rows = tiny.rows("IXI_test")
    tiny.write_rows("IXI_test", [*rows, {**rows[0], "age": "61.79"}])
    layout = read_layout(tiny.config, tiny.root)
    assert codes(layout) == {("warning", "duplicate-row"): 1}
    assert "1 rows repeat a scan (IXI005-HH-5)" in layout.findings[0].found
    assert subjects(layout, "test") == ["IXI005-HH-5", "IXI006-HH-6"]
    assert next(r.age for r in layout.rows if r.subject == "IXI005-HH-5") == 38.9


def test_published_training_keeps_its_repeated_rows(tiny: TinyData) -> None:
    for name in ("IXI_train_fold0", "IXI_test"):
        rows = tiny.rows(name)
        tiny.write_rows(name, [*rows, rows[0], rows[0]])
    layout = read_layout(with_splits(tiny, "published"), tiny.root)
    assert Counter(subjects(layout, "train", 0)) == {"IXI001-HH-1": 3, "IXI002-HH-2": 1, "IXI003-HH-3": 1}
    assert subjects(layout, "test") == ["IXI005-HH-5", "IXI006-HH-6"]  # scored once
    assert codes(layout) == {("warning", "duplicate-row"): 2}
    assert len(layout.volumes()) == 9


def test_one_subject_with_two_meanings_is_an_error(tiny: TinyData) -> None:
    rows = tiny.rows("IXI_train_fold1")
    rows[0]["mask_path"] = rows[1]["mask_path"]
    tiny.write_rows("IXI_train_fold1", rows)
    layout = scan_layout(tiny.config, tiny.root)
    assert codes(layout) == {("error", "conflicting-rows"): 1}
    assert "IXI002-HH-2 has another label or other paths than in" in layout.findings[0].found


def leaky(tiny: TinyData) -> None:
    """IXI005 (test) also in training and validation of fold 0; IXI004 (validation) also in training of fold 0."""
    tiny.write_rows(
        "IXI_train_fold0", [*tiny.rows("IXI_train_fold0"), row("IXI", "IXI005-HH-5"), row("IXI", "IXI004-HH-4")]
    )
    tiny.write_rows("IXI_val_fold0", [*tiny.rows("IXI_val_fold0"), row("IXI", "IXI005-HH-5")])


def test_clean_splits_drop_leaks_and_tell(tiny: TinyData) -> None:
    leaky(tiny)
    layout = read_layout(tiny.config, tiny.root)
    assert codes(layout) == {("warning", "leak"): 2}
    assert subjects(layout, "train", 0) == ["IXI001-HH-1", "IXI002-HH-2", "IXI003-HH-3"]
    assert subjects(layout, "val", 0) == ["IXI004-HH-4"]
    assert subjects(layout, "test") == ["IXI005-HH-5", "IXI006-HH-6"]
    train = next(f for f in layout.findings if "train" in f.file)
    assert train.found == "2 subjects are also in IXI_test.csv, IXI_val_fold0.csv (IXI005-HH-5, IXI004-HH-4)"


def test_published_splits_keep_leaks_and_tell(tiny: TinyData) -> None:
    leaky(tiny)
    layout = read_layout(with_splits(tiny, "published"), tiny.root)
    assert codes(layout) == {("warning", "leak"): 2}
    assert len(subjects(layout, "train", 0)) == 5


def test_strict_splits_refuse_leaks(tiny: TinyData) -> None:
    leaky(tiny)
    with pytest.raises(DataError, match=r"IXI_train_fold0\.csv: 2 subjects are also in .* set data\.splits: clean"):
        read_layout(with_splits(tiny, "strict"), tiny.root)


def test_validation_of_another_fold_is_no_leak(tiny: TinyData) -> None:
    assert "IXI004-HH-4" in subjects(read_layout(with_splits(tiny, "strict"), tiny.root), "train", 1)


def test_test_image_under_another_name_in_training_is_a_leak(tiny: TinyData) -> None:
    sick = row("Brats21", "BraTS2021_00002")
    tiny.write_rows(
        "IXI_train_fold0", [*tiny.rows("IXI_train_fold0"), {**sick, "img_name": "IXI009_t1.nii.gz", "label": "0"}]
    )
    tiny.split("avail_t2").unlink()
    layout = scan_layout(tiny.config, tiny.root)
    assert [f.found for f in layout.findings if f.code == "leak"] == [
        "1 subjects are also in Brats21_test.csv (IXI009)"
    ]


def test_anomalies_in_the_healthy_set_are_an_error(tiny: TinyData) -> None:
    rows = tiny.rows("IXI_train_fold0")
    rows[1]["label"] = "1"
    tiny.write_rows("IXI_train_fold0", rows)
    faults = [f for f in scan_layout(tiny.config, tiny.root).findings if f.code == "label"]
    assert [f.file.rpartition("/")[2] for f in faults] == ["IXI_train_fold0.csv:3"]


def test_anomaly_without_segmentation_is_an_error(tiny: TinyData) -> None:
    rows = tiny.rows("Brats21_test")
    rows[0]["seg_path"] = ""
    tiny.write_rows("Brats21_test", rows)
    with pytest.raises(DataError, match="no seg_path for BraTS2021_00002 with label 1"):
        read_layout(tiny.config, tiny.root)


def test_paths_that_name_no_modality_are_told(tiny: TinyData) -> None:
    rows = tiny.rows("Brats21_val")
    rows[0]["img_path"] = "/Test/Brats21/scan.nii.gz"
    tiny.write_rows("Brats21_val", rows)
    assert codes(scan_layout(tiny.config, tiny.root)) == {("warning", "modality"): 1}


@pytest.fixture
def published(tmp_path: Path, reference_dir: Path) -> Path:
    """The published split files, without scans."""
    shutil.copytree(reference_dir / "splits", tmp_path / "real" / "splits")
    return tmp_path / "real"


@pytest.mark.slow
@pytest.mark.parity
def test_published_split_files_are_read_and_their_leaks_found(published: Path) -> None:
    layout, plain = read_layout(DataConfig(splits="published", modality="t1"), published), PlainTables(published)
    held = set(plain["IXI_test"])
    assert sorted(subjects(layout, "test")) == sorted(held)
    for fold in range(5):
        train, val = plain[f"IXI_train_fold{fold}"], plain[f"IXI_val_fold{fold}"]
        assert subjects(layout, "train", fold) == train  # as published: with its repeats
        assert held & set(train)
        assert sorted(subjects(layout, "val", fold)) == sorted(set(val))
    repeating = sum(len(set(names)) < len(names) for names in plain.used())
    leaking = sum(bool(set(plain[name]) & held_out) for name, held_out in plain.held_out())
    assert codes(layout) == {("warning", "duplicate-row"): repeating, ("warning", "leak"): leaking}


@pytest.mark.slow
@pytest.mark.parity
def test_published_split_files_offer_clean_splits(published: Path) -> None:
    layout, plain = read_layout(DataConfig(), published), PlainTables(published)
    for fold in range(5):
        parts = [
            set(subjects(layout, "train", fold)),
            set(subjects(layout, "val", fold)),
            set(subjects(layout, "test")),
        ]
        assert len(set.union(*parts)) == sum(len(part) for part in parts)
    there = set(plain["IXI_test"]) & plain.with_t2
    assert 0 < len(there) < len(set(plain["IXI_test"]))  # some have no T2
    assert set(subjects(layout, "test")) == there
    assert not [f for f in scan_layout(DataConfig(splits="strict"), published).findings if f.code == "split-missing"]
