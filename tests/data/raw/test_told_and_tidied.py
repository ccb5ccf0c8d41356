"""Preparing tells what was lost or mended, moves what is of another kind now, and leaves nothing of earlier settings."""

import dataclasses
import gzip
import json
from pathlib import Path

import pytest
import raw_trees
from prepared_runs import jobs, manifest, run
from raw_trees import EXTRACT, REORIENT, STEPS

from cddpm.data.raw import custom, tables
from cddpm.data.raw.depot import Depot
from cddpm.data.raw.head import Figures, Head
from cddpm.data.raw.names import Names, Veil
from cddpm.data.raw.run import Work, jobs_of, prepare
from cddpm.data.raw.survey import survey

pytestmark = pytest.mark.slow


def test_what_was_lost_or_mended_is_a_warning_of_the_subject(raw: Path, tmp_path: Path) -> None:
    """Figures of steps and notes of reading are looked for by nobody."""

    def lossy(given: Head) -> tuple[Head, Figures]:
        made, _ = EXTRACT.run(given)
        return made, {"extraction": "classical", "lesion_warning": "label 1 had 2 ml before cropping and has 0 ml"}

    source = raw_trees.brats(tmp_path / "raw", (1,))
    plain = source / "BraTS2021_00001" / "BraTS2021_00001_t1.nii.gz"
    plain.write_bytes(gzip.decompress(plain.read_bytes()))
    (outcome,) = run("Brats21", source, tmp_path / "DATA", REORIENT, dataclasses.replace(EXTRACT, run=lossy))
    note, lost, classical = outcome.warnings
    assert note.startswith("t1: the name says .gz")
    assert lost.startswith("label 1 had 2 ml")
    assert "extractor classical" in classical
    assert manifest(tmp_path / "DATA", "Brats21/BraTS2021_00001")["warnings"] == [note, lost, classical]


def test_files_of_a_run_that_was_stopped_while_writing_go(tmp_path: Path) -> None:
    out, source = tmp_path / "DATA", raw_trees.brats(tmp_path / "raw", (1,))
    run("Brats21", source, out)
    record = out / "manifests/Brats21/BraTS2021_00001.json"
    claim = out / ".prepare/Brats21/BraTS2021_00001.json"
    claim.parent.mkdir(parents=True)
    claim.write_text(json.dumps({"files": list(json.loads(record.read_text())["outputs"])}))
    record.unlink()
    (outcome,) = prepare(Work(Depot(str(out)), STEPS), jobs("Brats21", source, out, "t1"), map)
    assert outcome.state == "made"
    left = {path.relative_to(out / "Test/Brats21").parts[0] for path in (out / "Test").rglob("*.nii.gz")}
    assert left == {"t1", "mask", "seg"}


def test_another_label_moves_the_files_and_names_them_where_they_are(tmp_path: Path) -> None:
    source, out = raw_trees.mslub(tmp_path / "raw", (1, 2, 3)), tmp_path / "DATA"
    one = {"images": {"t1": "{subject}/*_T1W.nii.gz"}, "segmentation": "{subject}/*_gt.nii.gz"}
    layout, work = tmp_path / "layout.yaml", Work(Depot(str(out)), STEPS)
    for given, home in (({"label": 0}, "Train/clinic"), ({}, "Test/Clinic")):
        layout.write_text(json.dumps({"datasets": {"Clinic": {**one, **given}}}))
        (found,) = survey("custom", source, (), layout)
        names = Names.open(out.with_suffix(".names.json"), out)
        outcomes = list(prepare(work, jobs_of(found, source, names), map))
        assert {one.state for one in outcomes} == {"made"}
        tables.write(work.depot, "Clinic", found.healthy, [one.row for one in outcomes], found.shares)
        assert {path.relative_to(out).parent.parent.as_posix() for path in out.rglob("*.nii.gz")} == {home}
        named = {
            cell.strip("/")
            for path in (out / "splits").glob("Clinic_*.csv")
            for line in path.read_text().splitlines()[1:]
            for cell in line.split(",")[4:6]
        }
        assert named
        assert all((out / name).is_file() for name in named)
    assert {path.name for path in (out / "splits").iterdir()} == {"Clinic_val.csv", "Clinic_test.csv"}


def test_a_hidden_name_is_hidden_before_its_text_is_cut(raw: Path, tmp_path: Path) -> None:
    def fail(_: Head) -> tuple[Head, Figures]:
        raise ValueError("x" * 270 + " Mueller  Hans of Zzstation")

    job = jobs("WMH", raw / "wmh", tmp_path / "DATA")[0]
    veil = Veil("", (("Mueller  Hans of Zzstation", "sub-1"),))
    work = Work(Depot(str(tmp_path / "DATA")), (dataclasses.replace(REORIENT, run=fail),))
    (outcome,) = prepare(work, [dataclasses.replace(job, veil=veil)], map)
    assert "Mueller" not in outcome.error
    assert outcome.error.endswith(" sub-1")


def test_a_uid_that_was_asked_for_is_in_no_manifest(tmp_path: Path) -> None:
    source, out = raw_trees.wmh(tmp_path / "raw", {"Utrecht": (0,)}), tmp_path / "DATA"
    given = {"t1": "1.2.840.99.7", "flair": "3"}
    work = Work(Depot(str(out)), STEPS, given)
    (outcome,) = prepare(work, jobs("WMH", source, out), map)
    assert outcome.state == "made"
    said = manifest(out, "WMH/Utrecht_0")["series"]
    assert said["flair"] == "3"
    assert said["t1"].startswith("uid sha256 ")
    assert "1.2.840" not in json.dumps(manifest(out, "WMH/Utrecht_0"))
    assert [one.state for one in prepare(work, jobs("WMH", source, out), map)] == ["there"]


@pytest.mark.parametrize("store", [False, True])
def test_several_healthy_data_sets_share_the_lists_of_modalities(tmp_path: Path, store: bool) -> None:
    depot = Depot(f"memory://tests/{tmp_path.name}/data" if store else str(tmp_path))

    def write(dataset: str, *subjects: tables.Row) -> None:
        assert not [
            one for one in tables.write(depot, dataset, True, subjects, custom.HEALTHY) if one.severity == "error"
        ]

    def listed(modality: str) -> set[str]:
        text = (depot.read(f"splits/avail_{modality}.csv") or b"").decode()
        return {line.split(",")[1].rpartition("_")[0] for line in text.splitlines()[1:]}

    one, two = tables.Row("a1", ("t1", "t2"), 0, None, False), tables.Row("b1", ("t1", "t2"), 0, None, False)
    more = tables.Row("a2", ("t1",), 0, None, False)
    write("IXI", one)
    write("Clinic", two)
    assert listed("t1") == listed("t2") == {"a1", "b1"}
    write("IXI", one, more)
    write("Clinic", dataclasses.replace(two, modalities=("t1",)))
    assert (listed("t1"), listed("t2")) == ({"a1", "a2", "b1"}, {"a1"})
    write("IXI", more)
    assert depot.read("splits/avail_t2.csv") is None
    depot.write("splits/avail_t1.csv", b"mine")
    findings = tables.write(depot, "Clinic", True, [two], custom.HEALTHY)
    assert [one.file for one in findings if one.severity == "error"] == ["splits/avail_t1.csv"]


def test_split_files_of_earlier_settings_go_unless_they_were_changed(tmp_path: Path) -> None:
    depot, rows = Depot(str(tmp_path)), [tables.Row("a1", ("t1",), 0, None, False)]
    tables.write(depot, "IXI", True, rows, custom.HEALTHY)
    changed = tmp_path / "splits" / "IXI_val_fold4.csv"
    changed.write_text("mine\n")
    tables.write(depot, "IXI", True, rows, custom.HEALTHY.model_copy(update={"folds": 3}))
    folds = {path.name for path in (tmp_path / "splits").glob("*fold*")}
    assert folds == {f"IXI_{split}_fold{fold}.csv" for split in ("train", "val") for fold in range(3)} | {changed.name}
    assert changed.read_text() == "mine\n"
