"""Every cohort of the phantom can be evaluated: all of them in T1, and those with T2 in both."""

from pathlib import Path

import numpy as np
import pytest

from cddpm.config import DataConfig, PhantomConfig
from cddpm.data.layout import read_layout
from cddpm.data.phantom.folder import FOLDS, cohort, make_phantom, write_splits
from cddpm.data.store import SliceStore, build_store

pytestmark = pytest.mark.slow

CONFIG = PhantomConfig(healthy_train=1, healthy_val=1, healthy_test=1, unhealthy_val=1, unhealthy_test=1)
WORKING = {"voxel_size_mm": 2.0, "volume_shape": (96, 96, 50), "smoothing_iterations": 0}
ALL = ("Brats21", "MSLUB", "ATLAS_v2", "WMH")
BOTH = ("Brats21", "MSLUB")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_phantom(tmp_path_factory.mktemp("phantom") / "data", CONFIG, parallel=1)


def store(root: Path, out: Path, modality: str, unhealthy: tuple[str, ...]) -> SliceStore:
    data = DataConfig.model_validate({**WORKING, "modality": modality, "unhealthy": unhealthy})
    rows = [r for r in read_layout(data, root).rows if r.dataset != "IXI" or r.split == "test"]
    return SliceStore.open(build_store(data, root, rows, out, map))


@pytest.fixture(scope="module")
def t1(root: Path, tmp_path_factory: pytest.TempPathFactory) -> SliceStore:
    return store(root, tmp_path_factory.mktemp("t1"), "t1", ALL)


@pytest.mark.parametrize("dataset", ALL)
@pytest.mark.parametrize("split", ["val", "test"])
def test_every_cohort_has_its_lesions_in_t1(t1: SliceStore, dataset: str, split: str) -> None:
    """T1 evaluation of ATLAS_v2 and WMH ends in a key error in the published code."""
    (volume,) = t1.cohort(dataset, split)
    record = t1.volumes[volume]
    assert (record.modality, record.label) == ("t1", 1)
    lesion = t1.segmentation(volume)[t1.mask(volume) > 0]
    assert 0 < lesion.sum() < 0.5 * lesion.size


def test_the_other_modality_shows_the_same_subjects_otherwise(root: Path, t1: SliceStore, tmp_path: Path) -> None:
    t2 = store(root, tmp_path, "t2", BOTH)
    assert t2.fingerprint != t1.fingerprint
    for dataset in BOTH:
        one, other = t1.cohort(dataset, "test")[0], t2.cohort(dataset, "test")[0]
        assert t1.volumes[one].id == t2.volumes[other].id
        np.testing.assert_array_equal(t1.mask(one), t2.mask(other))
        np.testing.assert_array_equal(t1.segmentation(one), t2.segmentation(other))
        brain = t1.mask(one) > 0
        contrast = np.corrcoef(t1.image(one)[brain].astype(float), t2.image(other)[brain].astype(float))[0, 1]
        assert contrast < 0  # fluid is dark in T1 and bright in T2


@pytest.mark.parametrize("modality", ["t1", "t2"])
def test_five_folds_can_be_trained(tmp_path: Path, modality: str) -> None:
    config = PhantomConfig(healthy_train=3, healthy_val=2)
    write_splits(tmp_path / "splits", cohort(config, ("t1", "t2")))
    windows = set()
    for fold in range(FOLDS):
        data = DataConfig(modality=modality, fold=fold, unhealthy=BOTH, splits="strict")
        rows = read_layout(data, tmp_path).rows
        windows.add(frozenset(r.subject for r in rows if (r.dataset, r.split, r.fold) == ("IXI", "val", fold)))
        assert sum((r.split, r.fold) == ("train", fold) for r in rows) == (4 if modality == "t1" else 3)
    assert len(windows) == FOLDS
