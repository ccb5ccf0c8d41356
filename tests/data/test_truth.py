"""A lesion that is missing, or lost on the way to the working grid, is told before anything is trained."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_data import AFFINE, SHAPE, TinyData, ball

from cddpm.config import DataConfig
from cddpm.data import geometry as grid
from cddpm.data.check import check
from cddpm.data.finding import follow
from cddpm.data.layout import scan_layout
from cddpm.data.prepare import prepare
from cddpm.data.volume import IGNORED, Volume, write_volume
from cddpm.labels import Labels

CONFIG = DataConfig(voxel_size_mm=10, volume_shape=(12, 16, 10), smoothing_iterations=0)
IMAGE, MASK, _ = (Volume(array, AFFINE, Path("x.nii")) for array in ball(1))


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(
    corner=st.tuples(*(st.integers(0, n - 1) for n in SHAPE)),
    size=st.tuples(*(st.integers(1, 6) for _ in SHAPE)),
    factor=st.sampled_from([1.0, 1.5, 2.0, 3.0]),
    ignored=st.booleans(),
)
def test_what_is_told_of_a_lesion_is_what_the_store_holds(
    corner: tuple[int, ...], size: tuple[int, ...], factor: float, ignored: bool
) -> None:
    data = CONFIG.model_copy(update={"rescale_factor": factor})
    coded = np.zeros(SHAPE, np.uint8)
    coded[tuple(slice(c, c + s) for c, s in zip(corner, size, strict=True))] = 1
    if ignored:
        coded[coded.shape[0] // 2 :] *= IGNORED
    segmentation = Volume(coded, AFFINE, Path("s.nii"), labels=(1, 2))
    truth = follow("A", "s", segmentation, Labels((1,), (2,)), grid.plan(IMAGE, data))
    prepared = prepare(IMAGE, MASK, segmentation, data).segmentation
    assert prepared is not None
    kept = int((prepared == 1).sum())
    assert (truth.voxels, truth.working_voxels) == (int((coded == 1).sum()), kept)
    assert truth.ml == pytest.approx(truth.voxels * 1.0)
    assert truth.working_ml == pytest.approx(kept * factor**3)
    assert (truth.loss is None) or (f"{truth.voxels} voxels" in truth.loss and f"{kept} (" in truth.loss)
    if truth.voxels and not kept:
        assert truth.loss is not None
        assert truth.loss.startswith("the lesion vanishes")


def lesion(tiny: TinyData, subject: str, where: tuple[slice | int, ...]) -> None:
    array = np.zeros(SHAPE, np.uint8)
    array[where] = 1
    write_volume(tiny.file("Brats21", subject, "seg"), array, AFFINE)


def test_one_vanished_lesion_is_a_warning_and_the_only_one_an_error(tiny: TinyData) -> None:
    lesion(tiny, "BraTS2021_00002", (7, 9, 5))
    report = check(tiny.config, tiny.root)
    assert [(f.severity, f.code) for f in report.findings] == [("warning", "lost-lesion")]
    assert report.findings[0].found == "the lesion vanishes: 1 voxels (1 ml) in the file, 0 (0 ml) on the working grid"
    lesion(tiny, "BraTS2021_00001", (7, 9, 5))  # the only one of validation
    report = check(tiny.config, tiny.root)
    assert [f.code for f in report.errors] == ["no-lesion"]
    assert "Brats21 val: none of its 1 scans has a lesion voxel" in report.errors[0].found


def test_a_lesion_that_the_field_cuts_is_told_with_its_volume_before_and_after(tiny: TinyData) -> None:
    lesion(tiny, "BraTS2021_00002", (slice(4, 12), slice(4, 12), slice(0, 8)))
    report = check(tiny.config.model_copy(update={"volume_shape": (16, 16, 6)}), tiny.root)
    told = next(f for f in report.warnings if f.code == "lost-lesion" and "00002" in f.file)
    assert told.found.startswith("25% of the lesion lies outside of the field of view: 512 voxels (512 ml) in the file")


@pytest.mark.parametrize("form", ["csv", "yaml"])
@pytest.mark.parametrize(("label", "codes"), [("", {"no-segmentation"}), ("1", {"no-segmentation"}), ("0", set())])
def test_an_unhealthy_scan_without_truth_is_meant_or_an_error(
    tmp_path: Path, form: str, label: str, codes: set[str]
) -> None:
    for name in ("c1", "c2", "c3", "t1", "t2"):
        for kind, array in zip(("image", "mask"), ball(ord(name[1])), strict=False):
            write_volume(tmp_path / f"{name}_{kind}.nii", array, AFFINE)
    table = tmp_path / f"table.{form}"
    if form == "csv":
        rows = [("C", "c1", "train"), ("C", "c2", "val"), ("C", "c3", "test"), ("T", "t1", "val"), ("T", "t2", "test")]
        lines = [f"{d},{s},{p},{s}_image.nii,{s}_mask.nii,{label if d == 'T' else ''}" for d, s, p in rows]
        table.write_text("\n".join(["dataset,subject,split,image,mask,label", *lines]))
    else:
        files = "image: '{}{{subject}}_image.nii', mask: '{}{{subject}}_mask.nii'"
        said = f", label: {label}" if label else ""
        table.write_text(
            f"datasets:\n  C: {{{files.format('c', 'c')}, split: {{train: 1}}}}\n"
            f"  T: {{{files.format('t', 't')}, split: {{val: 0.5, test: 0.5}}{said}}}\n"
        )
    data = DataConfig(healthy="C", unhealthy=("T",), table=table)
    found = {f.code for f in scan_layout(data, tmp_path).findings if f.severity == "error"}
    assert found - {"empty-split"} == codes
