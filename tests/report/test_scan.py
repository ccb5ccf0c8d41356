"""Pages of predicted scans: read from what ``cddpm predict`` has written, whichever way the scan lies in its file."""

import dataclasses
import json
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cddpm import artifact
from cddpm.data.volume import read_map, read_segmentation, write_volume
from cddpm.errors import ArtifactError, CddpmError, VolumeError
from cddpm.report import scan as scans
from cddpm.scoring import metrics
from cddpm.text import printable

pytestmark = pytest.mark.slow


def test_threshold_and_dice_are_those_of_the_files(predicted: Path) -> None:
    found = scans.read(predicted / "out/patient", predicted / "patient_seg.nii.gz")
    kept = read_segmentation(predicted / "out/patient/segmentation.nii.gz").data > 0
    truth = read_segmentation(predicted / "patient_seg.nii.gz").data > 0
    anomaly = read_map(predicted / "out/patient/anomaly_map.nii.gz").data
    assert found.dice == metrics.dice(kept, truth)
    assert found.exhibit.threshold == json.loads((predicted / "out/patient/result.json").read_text())["threshold"]
    exhibit = found.exhibit
    assert exhibit.truth is not None
    for threshold in (exhibit.threshold, 0.05):
        shown = metrics.confusion(exhibit.anomaly_map.astype(np.float64) > threshold, exhibit.truth)
        assert shown == metrics.confusion(anomaly.astype(np.float64) > threshold, truth)


def test_a_scan_that_lies_otherwise_is_shown_the_same(predicted: Path) -> None:
    one = scans.read(predicted / "out/patient", predicted / "patient_seg.nii.gz").exhibit
    other = scans.read(predicted / "out/turned", predicted / "turned_seg.nii.gz").exhibit
    for name in ("image", "reconstruction", "anomaly_map", "segmentation", "truth"):
        np.testing.assert_allclose(getattr(other, name), getattr(one, name), atol=1e-5, err_msg=name)
    assert one.voxel_size_mm == other.voxel_size_mm


def test_voxel_sizes_follow_the_axes(predicted: Path, tmp_path: Path) -> None:
    """A scan whose first axis points to the head, with 3 mm between slices."""
    folder = shutil.copytree(predicted / "out/patient", tmp_path / "thick")
    affine = np.array([[0.0, 0, -1, 0], [0, -2, 0, 0], [3, 0, 0, 0], [0, 0, 0, 1]])  # SPL
    result = json.loads((folder / "result.json").read_text())
    for name in ("anomaly_map", "reconstruction", "segmentation", "input"):
        source = Path(result["scan"]) if name == "input" else folder / f"{name}.nii.gz"
        write_volume(folder / f"{name}.nii.gz", read_map(source).data, affine)
    result["places"]["scan"] = "input.nii.gz"
    result["identity"]["scan_sha256"] = artifact.file_digest(folder / "input.nii.gz")
    (folder / "result.json").write_text(json.dumps(result))
    assert scans.read(folder).exhibit.voxel_size_mm == (1.0, 2.0, 3.0)


def test_a_folder_of_scans_by_name(predicted: Path) -> None:
    out = predicted / "out"
    assert scans.find([out]) == [out / "patient", out / "turned"]
    assert scans.find([out / "turned", out]) == [out / "turned", out / "patient"]
    with pytest.raises(ArtifactError, match="no prediction here"):
        scans.find([out / "patient" / "deeper"])


@settings(max_examples=40, deadline=None)
@given(
    st.sets(
        st.lists(st.sampled_from(["p1", "T2w", "anat", "ü", "\udce4"]), min_size=1, max_size=4).map(tuple), min_size=1
    )
)
def test_all_results_below_a_folder_are_found_and_told_apart(places: set[tuple[str, ...]]) -> None:
    with tempfile.TemporaryDirectory() as home:
        out = Path(home) / "out"
        for place in places:
            (out / Path(*place)).mkdir(parents=True, exist_ok=True)
            (out / Path(*place) / "result.json").touch()
        folders = scans.find([out])
        assert folders == sorted(out / Path(*place) for place in places)
        names = scans.names(folders)
        assert len(set(names)) == len(folders)
        assert all(name.encode() for name in names)
        assert scans.names(folders[:1]) == [printable(folders[0].name)]


def test_the_page_tells_what_was_found_and_by_which_model(predicted: Path) -> None:
    read = [
        scans.read(predicted / "out/patient", predicted / "patient_seg.nii.gz"),
        scans.read(predicted / "out/turned"),
    ]
    text = scans.html(read)
    assert text.count('class="exhibit"') == 2
    assert "2 scans" in text
    assert "tiny-sweep" in text
    assert read[0].dice is not None
    assert f"{read[0].dice:.3f}" in text
    assert str(predicted / "turned.nii.gz") in text
    assert "Dice" not in scans.html([read[1]]).split("<table")[1].split("</thead>")[0]


def test_a_page_that_no_browser_opens_is_refused(
    predicted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scans, "MOST_BYTES", 1000)
    with pytest.raises(ArtifactError, match="give fewer scans at a time"):
        scans.write([scans.read(predicted / "out/patient")], tmp_path / "page.html")
    assert not (tmp_path / "page.html").exists()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "not the result of a prediction"),
        ("{}", "not the result of a prediction"),
        ('{"scan": 3}', "not the result of a prediction"),
    ],
)
def test_a_damaged_result_is_named(predicted: Path, tmp_path: Path, content: str, words: str) -> None:
    folder = shutil.copytree(predicted / "out/patient", tmp_path / "damaged")
    (folder / "result.json").write_text(content)
    with pytest.raises(ArtifactError, match=words) as caught:
        scans.read(folder)
    assert str(folder / "result.json") in str(caught.value)


def test_a_truth_that_lies_in_another_orientation_is_turned_and_told(predicted: Path) -> None:
    found = scans.read(predicted / "out/patient", predicted / "turned_seg.nii.gz")
    assert found.dice == scans.read(predicted / "out/patient", predicted / "patient_seg.nii.gz").dice
    assert "turned to the scan's axes." in found.exhibit.note


def test_files_that_do_not_belong_together_are_refused(predicted: Path, tmp_path: Path) -> None:
    truth = read_segmentation(predicted / "patient_seg.nii.gz")
    write_volume(tmp_path / "short_seg.nii.gz", truth.data[1:], truth.affine)
    with pytest.raises(VolumeError, match="both must lie on one grid"):
        scans.read(predicted / "out/patient", tmp_path / "short_seg.nii.gz")
    folder = shutil.copytree(predicted / "out/patient", tmp_path / "part")
    (folder / "anomaly_map.nii.gz").unlink()
    with pytest.raises(VolumeError, match="no such file"):
        scans.read(folder)
    result = json.loads((folder / "result.json").read_text())
    (folder / "result.json").write_text(json.dumps({**result, "scan": str(tmp_path / "moved.nii.gz")}))
    with pytest.raises(CddpmError, match=r"moved\.nii\.gz"):
        scans.read(folder)


def test_a_scan_that_has_changed_since_is_refused(predicted: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(predicted / "out/turned", tmp_path / "changed")
    result = json.loads((folder / "result.json").read_text())
    other = Path(shutil.copy(result["scan"], tmp_path / "other.nii.gz"))
    (folder / "result.json").write_text(json.dumps({**result, "scan": str(other)}))
    assert scans.read(folder).exhibit.name == "changed"  # the same file in another place
    image = read_map(other)
    write_volume(other, image.data + 1, image.affine)
    with pytest.raises(ArtifactError, match=r"other\.nii\.gz: not the file that .*changed was made from"):
        scans.read(folder)


def test_a_map_of_nothing_can_be_looked_at(predicted: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(predicted / "out/patient", tmp_path / "nothing")
    image = read_map(folder / "anomaly_map.nii.gz")
    for name in ("anomaly_map", "segmentation"):
        write_volume(folder / f"{name}.nii.gz", np.zeros_like(image.data), image.affine)
    found = scans.read(folder)
    assert found.dice is None
    assert 'class="exhibit"' in scans.html([found])
    odd = dataclasses.replace(found, result={**found.result, "warnings": ["a <b>"]})
    assert '<p class="missing">nothing: a &lt;b&gt;</p>' in scans.html([odd])
