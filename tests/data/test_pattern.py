"""Own data sets by pattern: subjects found, splits shared out by hash."""

from collections import Counter
from pathlib import Path

import pytest

from cddpm.config import DataConfig
from cddpm.data.layout import Layout, root_of, scan_layout
from cddpm.data.pattern import DatasetPattern, Shares, share_out

TABLE = """
datasets:
  Healthy:
    image: healthy/{subject}/{modality}.nii.gz
    mask: healthy/{subject}/mask.nii.gz
    split: {train: 0.7, val: 0.1, test: 0.2}
    folds: 5
  Tumours:
    image: tumours/{subject}_*_{modality}.nii.gz
    mask: tumours/{subject}_brain.nii.gz
    segmentation: tumours/{subject}_*_seg.nii.gz
    modality: t2
    split: {val: 0.3, test: 0.7}
"""


def pattern(**changes: object) -> DatasetPattern:
    fields = {"image": "{subject}", "mask": "{subject}", "split": Shares(train=0.7, val=0.1, test=0.2), "folds": 5}
    return DatasetPattern.model_validate({**fields, **changes})


def scan(folder: Path, text: str = TABLE, **changes: object) -> Layout:
    path = folder / "sets.yaml"
    path.write_text(text)
    data = DataConfig.model_validate({"table": path, "healthy": "Healthy", "unhealthy": ("Tumours",), **changes})
    return scan_layout(data, root_of(data))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """40 healthy subjects and 20 with tumours, in a folder with a bracket in its name; empty files."""
    home = tmp_path / "my [data]"
    files = [f"healthy/p {n:02d}/{kind}.nii.gz" for n in range(40) for kind in ("t1", "t2", "mask")]
    files += [f"tumours/q{n}_{kind}.nii.gz" for n in range(20) for kind in ("2019_t2", "brain", "x_seg")]
    for name in [*files, "healthy/notes.txt", "healthy/.cache/t2.nii.gz"]:
        (home / name).parent.mkdir(parents=True, exist_ok=True)
        (home / name).touch()
    return home


def test_subjects_are_found_by_their_paths(folder: Path) -> None:
    layout = scan(folder)
    assert layout.findings == ()
    assert {r.subject for r in layout.rows if r.dataset == "Healthy"} == {f"p {n:02d}" for n in range(40)}
    q7 = next(r for r in layout.rows if r.subject == "q7")
    names = ("q7_2019_t2.nii.gz", "q7_brain.nii.gz", "q7_x_seg.nii.gz")
    assert (q7.image, q7.mask, q7.segmentation) == tuple(folder / "tumours" / name for name in names)
    assert (q7.label, q7.fold, q7.age) == (1, None, None)
    p3 = next(r for r in layout.rows if r.subject == "p 03")
    assert (p3.image, p3.segmentation, p3.label) == (folder / "healthy/p 03/t2.nii.gz", None, 0)
    assert p3.source == f"{folder / 'sets.yaml'}:datasets.Healthy"


def test_every_subject_is_in_one_split_per_fold_and_test_is_the_same_in_all(folder: Path) -> None:
    rows = [r for r in scan(folder).rows if r.dataset == "Healthy"]
    test = {r.subject for r in rows if r.split == "test"}
    for fold in range(5):
        inside = Counter(r.subject for r in rows if r.fold in (None, fold))
        assert set(inside.values()) == {1}
        assert len(inside) == 40
    assert test
    assert {r.fold for r in rows if r.split == "test"} == {None}
    validation = [frozenset(r.subject for r in rows if (r.split, r.fold) == ("val", k)) for k in range(5)]
    assert len(frozenset.union(*validation)) == sum(map(len, validation))  # no one is validated on twice


def test_another_subject_moves_no_other(folder: Path) -> None:
    before = {(r.subject, r.split, r.fold) for r in scan(folder).rows}
    for kind in ("t2", "mask"):
        path = folder / "healthy" / "a new one" / f"{kind}.nii.gz"
        path.parent.mkdir(exist_ok=True)
        path.touch()
    after = {(r.subject, r.split, r.fold) for r in scan(folder).rows}
    assert before < after
    assert {subject for subject, _, _ in after - before} == {"a new one"}


def test_shares_are_kept_over_many_subjects() -> None:
    """5000 subjects: a share q is met within 4 sqrt(q (1 - q) / n)."""
    splits = [dict((fold, split) for split, fold in share_out("D", f"s{n}", pattern())) for n in range(5000)]
    test = sum(None in found for found in splits) / 5000
    assert test == pytest.approx(0.2, abs=4 * (0.16 / 5000) ** 0.5)
    for fold in range(5):
        val = sum(found.get(fold) == "val" for found in splits) / 5000
        assert val == pytest.approx(0.1, abs=4 * (0.09 / 5000) ** 0.5)


FROZEN = ["rrrra", "e", "rarrr", "arrrr", "rrrrr", "rrrra", "rrrar", "rrarr"]
"""Second letters of train, val and test, fold by fold."""


def test_splits_are_frozen() -> None:
    """The same on every machine and in every later version, or nobody could repeat an experiment."""
    shared = ["".join(split[1] for split, _ in share_out("D", f"s{n}", pattern(seed=1))) for n in range(8)]
    assert shared == FROZEN
    assert shared != ["".join(split[1] for split, _ in share_out("D", f"s{n}", pattern(seed=2))) for n in range(8)]
    assert share_out("D", "s1", pattern(seed=1, folds=None)) == [(share_out("D", "s1", pattern(seed=1))[0][0], None)]


def test_validation_of_as_many_folds_as_it_fits_in_covers_everyone() -> None:
    halves = pattern(split=Shares(train=0.75, val=0.25), folds=4)
    for n in range(50):
        assert Counter(split for split, _ in share_out("D", f"s{n}", halves)) == {"train": 3, "val": 1}


def test_data_set_of_another_modality_has_no_scans(folder: Path) -> None:
    layout = scan(folder, modality="t1")
    assert [f.found for f in layout.findings] == [
        "Tumours val: no usable scan (modality t1)",
        "Tumours test: no usable scan (modality t1)",
    ]
    assert {r.image.name for r in layout.rows} == {"t1.nii.gz"}


def test_each_subject_needs_one_file_of_each_kind(folder: Path) -> None:
    (folder / "tumours/q7_2020_t2.nii.gz").touch()
    (folder / "tumours/q9_x_seg.nii.gz").unlink()
    found = [f.found.split(" (")[0] for f in scan(folder).findings]
    assert found == ["2 files for the image of q7", "0 files for the segmentation of q9"]


def test_pattern_that_matches_nothing_says_where_it_looked(folder: Path) -> None:
    layout = scan(folder, TABLE.replace("healthy/{subject}/{modality}", "health/{subject}/{modality}"))
    assert layout.findings[0].found == f"no file below {folder} matches health/{{subject}}/t2.nii.gz"
    assert layout.findings[0].file.endswith("sets.yaml:datasets.Healthy")


def test_subject_is_the_same_wherever_it_stands(tmp_path: Path) -> None:
    for name in ("a/a_t2.nii", "b/b_t2.nii", "b/c_t2.nii"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    text = TABLE.replace("healthy/{subject}/{modality}.nii.gz", "'{subject}/{subject}_{modality}.nii'")
    subjects = {r.subject for r in scan(tmp_path, text, unhealthy=()).rows}
    assert subjects == {"a", "b"}


def test_all_faults_of_the_file_at_once(tmp_path: Path) -> None:
    text = """
datasets:
  A: {image: a.nii, mask: '{subject}_m.nii', split: {train: 0.5, tset: 0.5}, fold: 3}
  B: {imag: '{subject}', mask: '{subject}', split: {train: 0.5, val: 0.3}}
  C: {image: '{subject}', mask: '{subject}', split: {val: 0.5, test: 0.5}, folds: 5}
dataset: {}
"""
    found = {f.found.split(" (found")[0]: f.allowed for f in scan(tmp_path, text).findings}
    assert set(found) == {
        "datasets.A.image: String should match pattern '\\{subject\\}'",
        "datasets.A.split.tset: unknown setting",
        "datasets.A.fold: unknown setting",
        "datasets.B.image: Field required",
        "datasets.B.imag: unknown setting",
        "datasets.B.split: train 0.5 + val 0.3 + test 0: they must sum to 1",
        "datasets.C: folds: 5: allowed only with a share for training",
        "dataset: unknown setting",
    }
    assert found["datasets.A.split.tset: unknown setting"] == "allowed are train, val, test; did you mean 'test'?"
    assert found["datasets.A.fold: unknown setting"].endswith("did you mean 'folds'?")
    assert found["dataset: unknown setting"] == "allowed are datasets; did you mean 'datasets'?"


@pytest.mark.parametrize("text", ["- a\n", "datasets: [\n", "datasets: {}\n", "datasets: {A: 1, A: 2}\n"])
def test_file_of_another_kind(tmp_path: Path, text: str) -> None:
    layout = scan(tmp_path, text)
    assert {f.code for f in layout.findings} == {"table"}
