"""Raw scans of one's own: by the patterns of a YAML file, or as a BIDS folder."""

import json
from pathlib import Path

import pytest
import yaml
from raw_trees import brain, head, lesion, save
from typer.testing import CliRunner

from cddpm.cli import app
from cddpm.data.raw.survey import survey
from cddpm.errors import ConfigError

PLAIN = {"images": {"t1": "{subject}/T1.nii.gz", "flair": "{subject}/*FLAIR*"}, "segmentation": "{subject}/les.nii.gz"}


def layout(tmp_path: Path, **changes: object) -> Path:
    file = tmp_path / "layout.yaml"
    file.write_text(yaml.safe_dump({"datasets": {"Clinic": {**PLAIN, **changes}}}, sort_keys=False))
    return file


def clinic(root: Path, *subjects: str) -> Path:
    for subject in subjects:
        save(root / subject / "T1.nii.gz", head(0, "t1"))
        save(root / subject / "ax_FLAIR_3.nii.gz", head(0, "flair"))
        save(root / subject / "les.nii.gz", lesion())
    return root


def test_subjects_by_pattern(tmp_path: Path) -> None:
    root = clinic(tmp_path / "raw", "Jürgen Groß", "b")
    (root / "ages.csv").write_text("who,years\nb,71.5\n")
    file = layout(tmp_path, ages={"table": "ages.csv", "subject": "who", "age": "years"}, segmentation_on="flair")
    (one,) = survey("custom", root, layout=file)
    assert [(s.subject, list(s.images), s.age, s.label) for s in one.subjects] == [
        ("Jürgen Groß", ["t1", "flair"], None, 1),
        ("b", ["t1", "flair"], 71.5, 1),
    ]
    assert {subject.segmentation_on for subject in one.subjects} == {"flair"}
    assert not one.healthy
    assert not one.findings
    for asked in (["flair"], ["flair", "t1"], ["t1", "flair"]):  # the first is the reference
        (one,) = survey("custom", root, asked, file)
        assert [list(subject.images) for subject in one.subjects] == [asked] * 2


def test_what_is_missing_doubled_or_empty_is_told_and_the_others_go_on(tmp_path: Path) -> None:
    root = clinic(tmp_path / "raw", "a", "b", "c", "d", "e")
    (root / "a" / "les.nii.gz").unlink()
    save(root / "b" / "cor_FLAIR_4.nii.gz", head(0, "flair"))
    (root / "c" / "T1.nii.gz").write_bytes(b"")
    (root / "d" / "ax_FLAIR_3.nii.gz").unlink()
    (one,) = survey("custom", root, layout=layout(tmp_path))
    assert [subject.subject for subject in one.subjects] == ["e"]
    assert sorted(f.code for f in one.findings) == ["empty-file", "matches", *["missing"] * 4]
    assert not [finding for finding in one.findings if finding.severity == "error"]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"images": {}}, r"datasets\.Clinic\.images"),
        ({"images": {"t1": "T1.nii.gz"}}, r"datasets\.Clinic\.images\.t1"),
        ({"segmentaton": "x"}, r"segmentaton: unknown setting\n.* allowed are .*did you mean 'segmentation'"),
        ({"segmentation_on": "t2"}, r"segmentation_on: t2: images has t1, flair"),
        ({"label": 1, "segmentation": None}, r"label: 1: a data set with anomalies needs a segmentation"),
        ({"split": {"train": 0.5, "val": 0.1, "test": 0.4}}, r"a data set with anomalies has val and test only"),
        ({"split": {"val": 0.5}}, r"they must sum to 1"),
        ({"mask": "s3://bucket/{subject}.nii"}, r"is an address; allowed is a path"),
    ],
)
def test_faults_of_the_file_are_told(tmp_path: Path, changes: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        survey("custom", tmp_path, layout=layout(tmp_path, **changes))


def test_a_modality_that_no_data_set_has_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--modality t2: .* has t1, flair"):
        survey("custom", tmp_path, ["t2"], layout(tmp_path))


def bids(root: Path, lesions: bool, session: str = "") -> Path:
    root.mkdir(parents=True, exist_ok=True)
    (root / "dataset_description.json").write_text(json.dumps({"Name": "Study", "BIDSVersion": "1.10.0"}))
    (root / "participants.tsv").write_text("participant_id\tage\tname\nsub-01\t44\tErika\nsub-02\tn/a\tMax\n")
    for subject in ("sub-01", "sub-02"):
        start = "_".join(part for part in (subject, session) if part)
        anat = root.joinpath(*(part for part in (subject, session) if part), "anat")
        save(anat / f"{start}_T1w.nii.gz", head(0, "t1"))
        save(anat / f"{start}_acq-3d_FLAIR.nii.gz", head(0, "flair"))
        derived = root.joinpath("derivatives", "pipe", *(part for part in (subject, session) if part), "anat")
        save(derived / f"{start}_desc-brain_mask.nii.gz", brain())
        if lesions:
            save(derived / f"{start}_label-lesion_mask.nii.gz", lesion())
    return root


@pytest.mark.parametrize("session", ["", "ses-01"])
@pytest.mark.parametrize("lesions", [True, False])
def test_a_bids_folder_is_recognised(tmp_path: Path, lesions: bool, session: str) -> None:
    root = bids(tmp_path, lesions, session)
    (one,) = survey("custom", root, name="Study")
    assert [(s.dataset, s.subject, s.age, list(s.images)) for s in one.subjects] == [
        ("Study", "sub-01", 44.0, ["t1"]),
        ("Study", "sub-02", None, ["t1"]),
    ]
    assert all(subject.mask and "desc-brain_mask" in subject.mask.name for subject in one.subjects)
    assert all(bool(subject.segmentation) == lesions for subject in one.subjects)
    assert one.healthy is not lesions
    assert not one.findings
    (one,) = survey("custom", root, ["flair"], name="Study")
    assert [list(subject.images) for subject in one.subjects] == [["flair"]] * 2


def test_a_bids_folder_with_several_sessions_and_runs(tmp_path: Path) -> None:
    root = bids(bids(tmp_path, False, "ses-01"), False, "ses-02")
    save(root / "sub-01" / "ses-01" / "anat" / "sub-01_ses-01_run-2_T1w.nii.gz", head(1, "t1"))
    (one,) = survey("custom", root)
    assert sorted(finding.code for finding in one.findings) == ["sessions", "sessions", "twice"]
    assert {file.parts[-3] for subject in one.subjects for file in subject.images.values()} == {"ses-01"}


def test_derivatives_of_fmriprep_are_no_lesions_and_those_of_a_template_lie_elsewhere(tmp_path: Path) -> None:
    root = bids(tmp_path, False)
    anat = root / "derivatives" / "fmriprep" / "sub-01" / "anat"
    for rest in ("dseg", "desc-aseg_dseg", "hemi-L_desc-ribbon_mask", "space-MNI152NLin6Asym_desc-brain_mask"):
        save(anat / f"sub-01_{rest}.nii.gz", brain())
    (one,) = survey("custom", root)
    assert one.healthy
    assert not one.findings
    assert [subject.mask.name for subject in one.subjects if subject.mask] == [
        f"sub-0{number}_desc-brain_mask.nii.gz" for number in (1, 2)
    ]
    save(anat / "sub-01_space-MNI152NLin6Asym_label-L_mask.nii.gz", lesion())
    (one,) = survey("custom", root)
    assert not one.healthy  # nobody is trained on because a lesion could not be used
    assert not one.subjects
    assert sorted(finding.code for finding in one.findings) == ["missing", "missing", "space"]
    save(anat / "sub-01_space-T1w_label-L_mask.nii.gz", lesion())
    (one,) = survey("custom", root)
    assert [subject.segmentation is not None for subject in one.subjects] == [True]


def told(root: Path, tmp_path: Path, layout: Path | None = None) -> str:
    """What a dry run says."""
    words = ["data", "prepare", "custom", str(root), str(tmp_path / "DATA"), "--dry-run"]
    return "\n".join(
        CliRunner().invoke(app, [*words, *more, *(("--layout", str(layout)) if layout else ())]).output
        for more in ([], ["--json"])
    )


def test_findings_tell_no_dates_of_sessions(tmp_path: Path) -> None:
    dates = ("19850312", "20190823", "20200101")
    for date in dates:
        root = bids(tmp_path / "raw", False, f"ses-{date}")
    said = told(root, tmp_path)
    assert "3 sessions" in said
    assert not [date for date in dates if date in said]


def test_findings_tell_no_names_of_doubled_files(tmp_path: Path) -> None:
    root = clinic(tmp_path / "raw", "a")
    save(root / "a" / "Zzname_FLAIR_4.nii.gz", head(0, "flair"))
    said = told(root, tmp_path, layout(tmp_path))
    assert "2 files for the flair of a" in said
    assert "Zzname" not in said


def test_a_layout_is_for_custom_alone(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--layout: for DATASET custom alone"):
        survey("IXI", tmp_path, layout=layout(tmp_path))
