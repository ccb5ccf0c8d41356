"""Preparing: what is done once is not done again, what was stopped goes on, one bad scan stops nobody, bytes never differ."""

import dataclasses
import gzip
import json
import threading
from pathlib import Path

import numpy as np
import pytest
import raw_trees
from prepared_runs import IXI, digests, jobs, manifest, run
from raw_trees import AFFINE, EXTRACT, REORIENT, STEPS, head, lesion, save

from cddpm.artifact import lock
from cddpm.config import DataConfig
from cddpm.data.check import check
from cddpm.data.layout import read_layout
from cddpm.data.raw import custom, states, tables
from cddpm.data.raw.depot import Depot
from cddpm.data.raw.head import Figures, Head, Step
from cddpm.data.raw.run import Work, prepare
from cddpm.data.raw.survey import survey
from cddpm.data.split_report import report_splits
from cddpm.data.volume import read_image, read_labels, read_mask
from cddpm.errors import DataError

pytestmark = pytest.mark.slow


def test_what_is_prepared_is_a_data_dir(raw: Path, tmp_path: Path) -> None:
    out, shares = tmp_path / "DATA", custom.HEALTHY.model_copy(update={"folds": None})
    for dataset, given in (("IXI", shares), ("Brats21", custom.UNHEALTHY)):
        source = raw / dataset.lower().removesuffix("21")
        work = Work(Depot(str(out)), STEPS)
        done = [one.row for one in prepare(work, jobs(dataset, source, out), map)]
        seeds = [
            given.model_copy(update={"seed": seed}) for seed in range(200)
        ]  # so few are not all shared out as a rule
        findings = next(
            found for one in seeds if not (found := tables.write(work.depot, dataset, dataset == "IXI", done, one))
        )
        assert not findings
    data = DataConfig(unhealthy=("Brats21",), modality="t2", voxel_size_mm=5, volume_shape=(34, 38, 34))
    report = check(data, out)
    assert not report.errors, report.lines()
    assert report.volumes == 10
    assert len(read_layout(data.model_copy(update={"modality": "t1"}), out).volumes()) == 10


def test_splits_are_clean_and_everybody_is_in_one(raw: Path, tmp_path: Path) -> None:
    run("IXI", raw / "ixi", tmp_path / "DATA")
    data = DataConfig(modality="t1", unhealthy=())
    report = report_splits(data, tmp_path / "DATA")
    assert report.published.leaks == report.published.repeats == 0
    assert not report.same_bytes
    assert {fold.train + fold.val + fold.test for fold in report.published.folds} == {len(IXI)}
    assert len(report.published.folds) == 5


def test_the_user_s_own_split_files_decide_and_are_cleaned(raw: Path, tmp_path: Path) -> None:
    first, second, third, fourth, *_ = IXI
    folder = tmp_path / "published" / "splits"
    folder.mkdir(parents=True)
    columns = ",img_name,STUDY_DATE,age,label,img_path,mask_path,seg_path\n"
    for name, subjects in {
        "IXI_train_fold0": (first, first, second, fourth),
        "IXI_val_fold0": (second,),
        "IXI_test": (third, fourth),
    }.items():
        rows = [
            f"0,{s}_t1.nii.gz,2005-09-08,30,0,/Train/ixi/t1/{s}_t1.nii.gz,/Train/ixi/mask/{s}_mask.nii.gz,\n"
            for s in subjects
        ]
        (folder / f"{name}.csv").write_text(columns + "".join(rows))
    out = tmp_path / "DATA"
    work = Work(Depot(str(out)), STEPS)
    done = [one.row for one in prepare(work, jobs("IXI", raw / "ixi", out), map)]
    membership, _ = tables.published("IXI", True, folder)
    findings = tables.write(work.depot, "IXI", True, done, membership)
    assert [finding.code for finding in findings] == ["no-split"]

    def names(split: str) -> list[str]:
        return [line.split(",")[1] for line in (out / "splits" / f"{split}.csv").read_text().splitlines()[1:]]

    assert names("IXI_train_fold0") == [f"{first}_t1.nii.gz"]
    assert names("IXI_val_fold0") == [f"{second}_t1.nii.gz"]
    assert names("IXI_test") == [f"{third}_t1.nii.gz", f"{fourth}_t1.nii.gz"]
    assert "2005" not in "".join(path.read_text() for path in (out / "splits").iterdir())


def test_the_same_bytes_for_two_runs_and_two_numbers_of_workers(raw: Path, tmp_path: Path) -> None:
    found = []
    for place, threads in (("a", 1), ("b", 1), ("c", 4)):
        run("Brats21", raw / "brats", tmp_path / place, threads=threads)
        found.append({name: digest for name, digest in digests(tmp_path / place).items() if "manifests/" not in name})
        for path in sorted((tmp_path / place / "manifests").rglob("*.json")):
            said = json.loads(path.read_text())
            for step in said.get("steps", []):
                step.pop("seconds")
            found[-1][path.name] = json.dumps(said, sort_keys=True)
    assert found[0] == found[1] == found[2]


def test_a_second_run_does_nothing(raw: Path, tmp_path: Path) -> None:
    out = tmp_path / "DATA"
    assert [one.state for one in run("WMH", raw / "wmh", out)] == ["made"] * 4
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    again = run("WMH", raw / "wmh", out)
    assert [one.state for one in again] == ["there"] * 4
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before
    assert not (out / ".prepare").exists()


@pytest.mark.parametrize("harm", ["truncated", "gone", "manifest gone", "manifest damaged"])
def test_what_was_harmed_is_made_again_and_only_that(raw: Path, tmp_path: Path, harm: str) -> None:
    out = tmp_path / "DATA"
    run("WMH", raw / "wmh", out)
    before = digests(out)
    victim = out / ("manifests/WMH/GE3T_101.json" if "manifest" in harm else "Test/WMH/t1/GE3T_101_t1.nii.gz")
    if "gone" in harm:
        victim.unlink()
    else:
        victim.write_bytes(victim.read_bytes()[:-5])
    if "manifest" in harm:  # what is there then is nobody's: it is not written over
        states_ = {one.name: one.state for one in run("WMH", raw / "wmh", out)}
        assert states_["WMH/GE3T_101"] == "failed"
        return
    assert {one.name: one.state for one in run("WMH", raw / "wmh", out)} == {
        "WMH/GE3T_100": "there",
        "WMH/GE3T_101": "made",
        "WMH/Utrecht_0": "there",
        "WMH/Utrecht_2": "there",
    }
    after = digests(out)
    assert {name: d for name, d in after.items() if "manifests" not in name} == {
        name: d for name, d in before.items() if "manifests" not in name
    }


def test_another_parameter_or_source_makes_it_anew_and_leaves_nothing_old(raw: Path, tmp_path: Path) -> None:
    out, source = tmp_path / "DATA", raw_trees.brats(tmp_path / "raw", (1, 2))
    run("Brats21", source, out)
    other = dataclasses.replace(REORIENT, parameters={"orientation": "RAS", "more": 1})
    assert {one.state for one in run("Brats21", source, out, other, EXTRACT)} == {"made"}
    save(source / "BraTS2021_00001" / "BraTS2021_00001_t1.nii.gz", head(99, "t1"))
    assert [one.state for one in run("Brats21", source, out, other, EXTRACT)] == ["made", "there"]
    work = Work(Depot(str(out)), (other, EXTRACT))
    assert {one.state for one in prepare(work, jobs("Brats21", source, out, "t1"), map)} == {"made"}
    assert not list((out / "Test" / "Brats21" / "t2").iterdir())


def counted(step: Step, calls: list[str]) -> Step:
    def run_it(given: Head) -> tuple[Head, Figures]:
        calls.append(step.name)
        return step.run(given)

    return dataclasses.replace(step, run=run_it)


def test_what_was_stopped_goes_on_behind_its_last_expensive_step(
    raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(states, "EXPENSIVE_SECONDS", 0.0)

    def stop(_: Head) -> tuple[Head, Figures]:
        raise KeyboardInterrupt

    calls: list[str] = []
    first, last = counted(REORIENT, calls), counted(EXTRACT, calls)
    broken = dataclasses.replace(EXTRACT, run=stop)
    out, alike = tmp_path / "DATA", tmp_path / "ALIKE"
    with pytest.raises(KeyboardInterrupt):
        run("WMH", raw / "wmh", out, first, broken)
    assert len(calls) >= 1
    reached, kept = len(calls), list((out / ".prepare" / "WMH").rglob("head.npz"))
    assert len(kept) == reached
    run("WMH", raw / "wmh", out, first, last)
    assert calls.count("reorient") == 4
    assert not (out / ".prepare").exists()
    run("WMH", raw / "wmh", alike)
    assert {n: d for n, d in digests(out).items() if "manifests" not in n} == {
        n: d for n, d in digests(alike).items() if "manifests" not in n
    }


def test_a_damaged_state_is_not_gone_on_from(raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(states, "EXPENSIVE_SECONDS", 0.0)

    def fail(_: Head) -> tuple[Head, Figures]:
        raise ValueError("out of luck")

    calls: list[str] = []
    out, first = tmp_path / "DATA", counted(REORIENT, calls)
    outcomes = run("WMH", raw / "wmh", out, first, dataclasses.replace(EXTRACT, run=fail))
    assert [one.error for one in outcomes] == ["ValueError: out of luck"] * 4
    for file in (out / ".prepare").rglob("head.npz"):
        file.write_bytes(file.read_bytes()[:-100])
    assert {one.state for one in run("WMH", raw / "wmh", out, first, EXTRACT)} == {"made"}
    assert len(calls) == 8


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("text", "not a single-file NIfTI"),
        ("cut", "gzip stream cut"),
        ("constant", "all voxels are"),
        ("other grid", "its affine places voxels up to"),
        ("colours", "voxels of type RGB"),
        ("two volumes", "one 3-D volume"),
    ],
)
def test_one_bad_scan_stops_nobody(raw: Path, tmp_path: Path, kind: str, said: str) -> None:
    source = raw_trees.brats(tmp_path / "raw", (1, 2, 3))
    file = (
        source
        / "BraTS2021_00002"
        / ("BraTS2021_00002_seg.nii.gz" if kind == "other grid" else "BraTS2021_00002_t2.nii.gz")
    )
    if kind == "text":
        file.write_text("<html>please log in</html>" * 100)
    elif kind == "cut":
        file.write_bytes(file.read_bytes()[:2000])
    elif kind == "constant":
        save(file, np.full(raw_trees.SHAPE, 7, np.int16))
    elif kind == "other grid":
        save(file, lesion(), AFFINE + np.eye(4, k=3) * 40)
    elif kind == "colours":
        save(file, np.zeros(raw_trees.SHAPE, np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")])))
    else:
        save(file, np.stack([head(0, "t2")] * 2, axis=3))
    outcomes = run("Brats21", source, tmp_path / "DATA", threads=2)
    assert [one.state for one in outcomes] == ["made", "failed", "made"]
    assert said in outcomes[1].error
    assert str(tmp_path) not in outcomes[1].error
    assert outcomes[1].error.startswith("BraTS2021_00002/BraTS2021_00002_")
    table = (tmp_path / "DATA" / "splits" / "Brats21_test.csv").read_text()
    assert "BraTS2021_00001" in table
    assert "BraTS2021_00002" not in table


def test_odd_files_are_mended_and_told(tmp_path: Path) -> None:
    """A wrong qform beside a right sform; uint16 with a slope; a mask of 255 and a segmentation stored another way round."""
    source = raw_trees.mslub(tmp_path / "Müller, H", (1,))
    folder = source / "patient01"
    image = head(1, "t1")
    file = save(folder / "patient01_T1W.nii.gz", image, header={"qform_code": 1, "qoffset_x": 99.0})
    stored = np.rint(head(1, "t2") * 4).astype(np.uint16)
    save(folder / "patient01_T2W.nii.gz", stored)
    raw = bytearray(gzip.decompress((folder / "patient01_T2W.nii.gz").read_bytes()))
    raw[112:120] = np.array([0.25, -1], "<f4").tobytes()
    (folder / "patient01_T2W.nii.gz").write_bytes(bytes(raw))
    save(folder / "patient01_brainmask.nii.gz", raw_trees.brain() * np.int32(255))
    turned = AFFINE @ np.array([[-1, 0, 0, raw_trees.SHAPE[0] - 1], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    save(folder / "patient01_consensus_gt.nii.gz", np.ascontiguousarray(lesion((1, 3))[::-1]), turned)
    out = tmp_path / "DATA"
    (outcome,) = run("MSLUB", source, out)
    assert outcome.state == "made"
    notes = " ".join(manifest(out, "MSLUB/patient01")["notes"])
    assert "qform and sform place voxels up to" in notes
    assert "not compressed; read as what it is" in notes
    assert "segmentation: stored as" in notes
    home = out / "Test" / "MSLUB"
    np.testing.assert_allclose(read_image(home / "t1/patient01_t1.nii.gz").data, image[::-1], rtol=1e-6)
    np.testing.assert_allclose(read_image(home / "t2/patient01_t2.nii.gz").data, stored[::-1] * 0.25 - 1, rtol=1e-5)
    np.testing.assert_array_equal(read_mask(home / "mask/patient01_mask.nii.gz").data, raw_trees.brain()[::-1])
    np.testing.assert_array_equal(read_labels(home / "seg/patient01_seg.nii.gz").data, lesion((1, 3))[::-1])
    assert file.exists()


def test_swapped_modalities_are_suspicious(tmp_path: Path) -> None:
    source = raw_trees.ixi(tmp_path / "raw", dict(list(IXI.items())[:2]))
    first, second = IXI.keys() if len(IXI) == 2 else list(IXI)[:2]
    one, other = source / "IXI-T1" / f"{first}-T1.nii.gz", source / "IXI-T2" / f"{first}-T2.nii.gz"
    save(source / "tmp.nii.gz", head(0, "t1"))
    one.write_bytes(other.read_bytes())
    (source / "tmp.nii.gz").replace(other)
    save(source / "IXI-T2" / f"{second}-T2.nii.gz", head(5, "t1"))
    swapped, alone = run("IXI", source, tmp_path / "DATA")
    assert [warning.partition(":")[0] for warning in swapped.warnings] == ["t1 and t2 are probably swapped"]
    assert [warning.partition(",")[0] for warning in alone.warnings] == [
        "t2: the brain's surface is darker than its depth"
    ]
    assert manifest(tmp_path / "DATA", f"IXI/{first}")["warnings"] == list(swapped.warnings)
    again = run("IXI", source, tmp_path / "DATA")
    assert [one.warnings for one in again] == [swapped.warnings, alone.warnings]


def test_without_a_brain_mask_or_on_several_grids_nothing_is_written(tmp_path: Path) -> None:
    source = raw_trees.ixi(tmp_path / "raw", dict(list(IXI.items())[:1]))
    (outcome,) = run("IXI", source, tmp_path / "DATA", REORIENT)
    assert "no brain mask after all steps; add a step that extracts the brain" in outcome.error
    save(next((source / "IXI-T2").iterdir()), head(0, "t2")[:-2])
    (outcome,) = run("IXI", source, tmp_path / "DATA")
    assert "the t2 lies on another grid; add a step that resamples" in outcome.error
    assert not list((tmp_path / "DATA").rglob("*.nii.gz"))


def test_files_that_are_not_ours_are_kept(raw: Path, tmp_path: Path) -> None:
    out = tmp_path / "DATA"
    theirs = save(out / "Test/WMH/t1/GE3T_100_t1.nii.gz", head(0, "t1"))
    table = out / "splits" / "WMH_val.csv"
    table.parent.mkdir()
    table.write_text("mine\n")
    before = theirs.read_bytes()
    (found,) = survey("WMH", raw / "wmh")
    work = Work(Depot(str(out)), STEPS)
    outcomes = list(prepare(work, jobs("WMH", raw / "wmh", out), map))
    assert [one.state for one in outcomes] == ["failed", "made", "made", "made"]
    assert "has no manifest of ours; name a new DATA_DIR" in outcomes[0].error
    findings = tables.write(work.depot, "WMH", False, [one.row for one in outcomes[1:]], found.shares)
    assert [finding.file for finding in findings if finding.severity == "error"] == ["splits/WMH_val.csv"]
    assert theirs.read_bytes() == before
    assert table.read_text() == "mine\n"


def test_two_runs_into_one_folder_are_refused(raw: Path, tmp_path: Path) -> None:
    out = tmp_path / "DATA"
    held, free = threading.Event(), threading.Event()

    def hold() -> None:
        with lock(tmp_path / ".DATA.prepare.lock"):
            held.set()
            free.wait(20)

    other = threading.Thread(target=hold)
    other.start()
    held.wait(20)
    try:
        with pytest.raises(DataError, match=r"another process prepares scans into it"):
            run("WMH", raw / "wmh", out)
    finally:
        free.set()
        other.join()
