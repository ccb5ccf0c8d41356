from pathlib import Path

import pandas as pd
import pytest

from cddpm.config import PhantomConfig
from cddpm.data.phantom.folder import FOLDS, cohort, write_splits

CONFIG = PhantomConfig(healthy_train=6, healthy_val=2, healthy_test=3, unhealthy_val=2, unhealthy_test=3)


@pytest.fixture(scope="module")
def splits(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("splits")
    write_splits(folder, cohort(CONFIG, ("t1", "t2")))
    return folder


def names(folder: Path, file: str) -> list[str]:
    return list(pd.read_csv(folder / file)["img_name"])


def test_no_subject_is_in_two_splits(splits):
    test = set(names(splits, "IXI_test.csv"))
    for fold in range(FOLDS):
        train, val = (names(splits, f"IXI_{part}_fold{fold}.csv") for part in ("train", "val"))
        together = [*train, *val, *test]
        assert len(set(together)) == len(together)
    for dataset in ("Brats21", "MSLUB", "ATLAS_v2", "WMH"):
        assert not set(names(splits, f"{dataset}_val.csv")) & set(names(splits, f"{dataset}_test.csv"))


def test_the_counts_asked_for_hold_with_t2(splits):
    available = set(pd.read_csv(splits / "avail_t2.csv")["0"])
    for fold in range(FOLDS):
        train, val = (names(splits, f"IXI_{part}_fold{fold}.csv") for part in ("train", "val"))
        assert len([n for n in train if n.replace("_t1", "_t2") in available]) == len(train) - 1 == 6
        assert len([n for n in val if n.replace("_t1", "_t2") in available]) == len(val) == 2
    assert len(names(splits, "IXI_test.csv")) == 3
    assert (len(names(splits, "WMH_val.csv")), len(names(splits, "WMH_test.csv"))) == (2, 3)


def test_validation_subjects_change_with_the_fold(splits):
    validation = [frozenset(names(splits, f"IXI_val_fold{fold}.csv")) for fold in range(FOLDS)]

    assert len(set(validation)) == FOLDS
    assert [len(fold) for fold in validation] == [2] * FOLDS
    assert len(frozenset.union(*validation)) == 8  # everyone is validated on at least once


@pytest.mark.parametrize(("train", "val"), [(24, 4), (4, 1), (3, 2), (1, 4), (8, 2), (40, 30)])
def test_five_folds_differ_whenever_there_are_five_subjects(train: int, val: int) -> None:
    members = cohort(PhantomConfig(healthy_train=train, healthy_val=val), ("t1", "t2"))
    folds = [members.fold(number) for number in range(FOLDS)]
    windows = {frozenset(s.index for s in validation) for _, validation in folds}
    assert len(windows) == FOLDS
    for training, validation in folds:
        assert (len(training), len(validation)) == (train + 1, val)
        assert not {s.index for s in training} & {s.index for s in validation}


def test_validation_of_no_fold_overlaps_while_there_are_enough_subjects() -> None:
    members = cohort(PhantomConfig(), ("t2",))
    assert len({s.index for number in range(FOLDS) for s in members.fold(number)[1]}) == FOLDS * 4


@pytest.mark.parity
def test_columns_and_file_names_are_the_published_ones(splits, reference_dir):
    for real in sorted((reference_dir / "splits").glob("*.csv")):
        with real.open() as one, (splits / real.name).open() as two:
            assert one.readline().strip() == two.readline().strip(), real.name


def test_paths_are_written_for_t1(splits):
    row = pd.read_csv(splits / "IXI_test.csv").iloc[0]
    subject = row["img_name"].removesuffix("_t1.nii.gz")
    assert row["img_path"] == f"/Train/ixi/t1/{subject}_t1.nii.gz"
    assert row["mask_path"] == f"/Train/ixi/mask/{subject}_mask.nii.gz"
    assert pd.isna(row["seg_path"])
    row = pd.read_csv(splits / "MSLUB_val.csv").iloc[0]
    assert (row["img_name"], row["label"]) == ("patient01", 1)
    assert row["seg_path"] == "/Test/MSLUB/seg/patient01_seg.nii.gz"


def test_without_t1_the_t1_only_sets_are_left_out():
    members = cohort(CONFIG, ("t2",))

    assert members.unhealthy == ["Brats21", "MSLUB"]
    assert not members.t1_only
    assert {members.contrasts_of(s) for s in members.subjects} == {("t2",)}
