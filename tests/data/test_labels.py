"""Labels of segmentations: lesion, ignored or refused, by data set, table or setting; all told by the check."""

from pathlib import Path

import numpy as np
import pytest
from tiny_data import AFFINE, SHAPE, TinyData, ball

from cddpm.config import DataConfig, parse
from cddpm.data.check import check
from cddpm.data.layout import read_layout
from cddpm.data.store import SliceStore, build_store
from cddpm.data.volume import IGNORED, VolumeFileError, read_segmentation, write_volume
from cddpm.errors import ConfigError
from cddpm.labels import Labels


@pytest.mark.parametrize(
    ("dataset", "settings", "lesion", "ignored"),
    [
        ("WMH", {}, (1,), (2,)),
        ("ATLAS_v2", {}, (1,), ()),
        ("MSLUB", {}, (1,), ()),
        ("Brats21", {}, None, ()),
        ("Mine", {}, None, ()),
        ("Mine", {"ignored_labels": {"Mine": [3]}}, None, (3,)),
        ("Mine", {"lesion_labels": {"Mine": [1, 4]}}, (1, 4), ()),
        ("WMH", {"lesion_labels": {"WMH": [1, 2]}}, (1, 2), ()),
        ("WMH", {"ignored_labels": {"WMH": []}}, (1,), ()),
        ("WMH", {"ignored_labels": {"WMH": [1]}, "lesion_labels": {"WMH": [2]}}, (2,), (1,)),
    ],
)
def test_what_is_set_goes_before_what_is_published(
    dataset: str, settings: dict[str, object], lesion: tuple[int, ...] | None, ignored: tuple[int, ...]
) -> None:
    data = parse({"name": "x", "data": {"unhealthy": [dataset], **settings}}, "x").data
    assert data.labels_of(dataset) == Labels(lesion, ignored)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"lesion_labels": {"WNH": [1]}}, r"data\.lesion_labels: 'WNH' is none of the data sets IXI, WMH"),
        ({"ignored_labels": {"WMH": [0]}}, r"data\.ignored_labels\.WMH\.0: Input should be greater than or equal to 1"),
        ({"lesion_labels": {"WMH": [1]}, "ignored_labels": {"WMH": [1]}}, r"ignored_labels: \[1\] of WMH stand in"),
    ],
)
def test_settings_that_cannot_be(settings: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        parse({"name": "x", "data": {"unhealthy": ["WMH"], **settings}}, "x")


@pytest.mark.parametrize(
    ("labels", "values"),
    [
        (Labels(), {0: 0, 1: 1, 2: 1, 4: 1}),
        (Labels((1, 4), (2,)), {0: 0, 1: 1, 2: IGNORED, 4: 1}),
        (Labels(None, (2, 4)), {0: 0, 1: 1, 2: IGNORED, 4: IGNORED}),
        (Labels((2,), (1, 4, 7)), {0: 0, 1: IGNORED, 2: 1, 4: IGNORED}),
        (Labels((1,), (2,)), None),
    ],
)
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_every_voxel_is_lesion_ignored_or_nothing(
    tmp_path: Path, labels: Labels, values: dict[int, int] | None, dtype: type
) -> None:
    path = tmp_path / "s.nii.gz"
    numbers = np.random.default_rng(0).choice([0, 1, 2, 4], (5, 6, 7))
    write_volume(path, numbers.astype(dtype), AFFINE)
    if values is None:
        with pytest.raises(
            VolumeFileError, match=r"label 4, which is neither lesion nor ignored \(lesion 1, ignored 2\)"
        ):
            read_segmentation(path, labels)
        return
    read = read_segmentation(path, labels)
    assert read.labels == (1, 2, 4)
    np.testing.assert_array_equal(read.data, np.vectorize(values.get)(numbers))


def two_labels(tiny: TinyData) -> None:
    """Label 2 in one half of every lesion."""
    for subject in ("BraTS2021_00001", "BraTS2021_00002", "BraTS2021_00003"):
        segmentation = ball(0)[2]
        segmentation[:, SHAPE[1] * 3 // 4 :] *= 2
        write_volume(tiny.file("Brats21", subject, "seg"), segmentation, AFFINE)


def test_labels_are_told_and_those_without_meaning_are_a_warning(tiny: TinyData) -> None:
    two_labels(tiny)
    report = check(tiny.config, tiny.root)
    assert report.findings == ()  # of BraTS it is known
    assert "labels 1 (lesion, 3 scans), 2 (lesion, 3 scans)" in report.lines()[-2]
    ignoring = check(tiny.config.model_copy(update={"ignored_labels": {"Brats21": (2,)}}), tiny.root)
    assert "labels 1 (lesion, 3 scans), 2 (ignored, 3 scans)" in ignoring.lines()[-2]
    assert ignoring.to_dict()["lesions"][0]["ml"] < report.to_dict()["lesions"][0]["ml"]


@pytest.mark.parametrize("form", ["csv", "yaml"])
@pytest.mark.parametrize("said", [False, True])
def test_a_table_says_what_labels_mean(tiny: TinyData, form: str, said: bool) -> None:
    two_labels(tiny)
    table = tiny.root / f"table.{form}"
    rows = [("IXI", f"IXI00{i}-HH-{i}", split) for i, split in ((1, "train"), (4, "val"), (5, "test"))]
    rows += [("Brats21", "BraTS2021_00001", "val"), ("Brats21", "BraTS2021_00002", "test")]
    lines = ["dataset,subject,split,image,mask,segmentation" + (",lesion_labels,ignored_labels" if said else "")]
    for dataset, subject, split in rows:
        image, mask, seg = (tiny.file(dataset, subject, kind) for kind in ("t2", "mask", "seg"))
        name = "Mine" if dataset == "Brats21" else dataset
        more = (",1,2" if dataset == "Brats21" else ",,") if said else ""
        lines.append(f"{name},{subject},{split},{image},{mask},{seg if dataset == 'Brats21' else ''}{more}")
    table.write_text("\n".join(lines))
    if form == "yaml":
        more = ", lesion_labels: [1], ignored_labels: [2]" if said else ""
        place = "Test/Brats21/{}/{{subject}}_{}.nii.gz".format
        table.write_text(
            "datasets:\n  IXI: {image: 'Train/ixi/t2/{subject}_t2.nii.gz', mask: 'Train/ixi/mask/{subject}_mask.nii.gz', "
            "split: {train: 0.4, val: 0.3, test: 0.3}, seed: 5}\n"
            f"  Mine: {{image: '{place('t2', 't2')}', mask: '{place('mask', 'mask')}', "
            f"segmentation: '{place('seg', 'seg')}', split: {{val: 0.5, test: 0.5}}{more}}}\n"
        )
    data = tiny.config.model_copy(update={"table": table, "unhealthy": ("Mine",), "data_dir": tiny.root})
    report = check(data, tiny.root)
    assert {f.code for f in report.findings} - {"empty-split"} == (set() if said else {"labels"})
    assert f"2 ({'ignored' if said else 'lesion'}, " in report.facts()[-1]


@pytest.mark.slow
def test_the_store_keeps_ignored_voxels_apart(tiny: TinyData, tmp_path: Path) -> None:
    two_labels(tiny)

    def built(data: DataConfig) -> SliceStore:
        rows = read_layout(data, tiny.root).rows
        return SliceStore.open(build_store(data, tiny.root, rows, tmp_path, lambda f, items: map(f, items)))

    every = built(tiny.config)
    apart = built(tiny.config.model_copy(update={"ignored_labels": {"Brats21": (2,)}}))
    assert apart.fingerprint != every.fingerprint
    for v, volume in enumerate(every.volumes):
        whole, lesion = every.segmentation(v), apart.segmentation(v)
        coded = lesion.copy()
        coded.ravel()[apart.ignored(v)] += 1
        np.testing.assert_array_equal(coded, whole)
        assert (apart.ignored(v).size > 0) == (volume.dataset == "Brats21")
        assert every.ignored(v).size == 0
