"""What is told of the splits, and the clean files that are written."""

import json
import shutil
from pathlib import Path

import pytest
from plain_tables import PlainTables
from tiny_data import TinyData, row

from cddpm.config import DataConfig
from cddpm.data.layout import read_layout
from cddpm.data.split_report import healthy_in, report_splits, unhealthy_in, write_clean
from cddpm.errors import ConfigError, DataError


def dirty(tiny: TinyData) -> None:
    """IXI005 (test) in training and validation of fold 0, IXI004 (validation) in training of fold 0; IXI006 twice in test."""
    train, val, test = (tiny.rows(f"IXI_{name}") for name in ("train_fold0", "val_fold0", "test"))
    tiny.write_rows("IXI_train_fold0", [*train, row("IXI", "IXI005-HH-5"), row("IXI", "IXI004-HH-4"), train[0]])
    tiny.write_rows("IXI_val_fold0", [*val, row("IXI", "IXI005-HH-5")])
    tiny.write_rows("IXI_test", [*test, {**test[1], "age": "70"}])


def facts(data: DataConfig, root: Path) -> list[tuple[str, str, int | None, str, str, str, int]]:
    rows = read_layout(data, root).rows
    return [(r.dataset, r.split, r.fold, r.subject, str(r.image.relative_to(root)), str(r.age), r.label) for r in rows]


def test_clean_splits_have_nothing_to_tell(tiny: TinyData) -> None:
    report = report_splits(tiny.config, tiny.root)
    assert report.published == report.clean
    assert (report.clean.leaks, report.clean.repeats, report.clean.conflicts) == (0, 0, {})
    assert (report.scans, report.scans_there, report.same_bytes) == (9, 9, ())
    assert [(f.train, f.val, f.test) for f in report.clean.folds] == [(3, 1, 2), (3, 1, 2)]


def test_every_leak_and_repeat_is_counted_by_hand(tiny: TinyData) -> None:
    dirty(tiny)
    state = report_splits(tiny.config, tiny.root).published
    train, val, *_, test = (s for s in state.splits if s.dataset == "IXI")
    assert (train.title, train.rows, train.subjects, train.repeated) == ("IXI_train_fold0.csv", 6, 5, ("IXI001-HH-1",))
    assert train.leaked == {"IXI_val_fold0.csv": ("IXI005-HH-5", "IXI004-HH-4"), "IXI_test.csv": ("IXI005-HH-5",)}
    assert val.leaked == {"IXI_test.csv": ("IXI005-HH-5",)}
    assert (test.rows, test.subjects, test.repeated, test.leaked) == (3, 2, ("IXI006-HH-6",), {})
    assert (state.repeats, state.leaks) == (2, 3)
    assert [(f.train, f.val, f.test, f.in_two) for f in state.folds] == [(5, 2, 2, 2), (3, 1, 2, 0)]
    assert state.conflicts == {"IXI/IXI006-HH-6": ("age",)}


def test_clean_form_is_measured_to_have_none(tiny: TinyData) -> None:
    dirty(tiny)
    state = report_splits(tiny.config, tiny.root).clean
    assert (state.repeats, state.leaks, state.conflicts) == (0, 0, {})
    assert [(f.train, f.val, f.test, f.in_two) for f in state.folds] == [(3, 1, 2, 0), (3, 1, 2, 0)]


def test_one_file_under_two_subjects_is_found(tiny: TinyData) -> None:
    shutil.copy(tiny.file("IXI", "IXI005-HH-5", "t2"), tiny.file("Brats21", "BraTS2021_00001", "t2"))
    report = report_splits(tiny.config, tiny.root)
    assert report.same_bytes == (("Brats21/BraTS2021_00001", "IXI/IXI005-HH-5"),)
    assert report.told_of_scans().endswith("of 9 scans (t2): Brats21/BraTS2021_00001 = IXI/IXI005-HH-5")
    tiny.file("IXI", "IXI006-HH-6", "t2").unlink()
    assert "of 8 scans (t2); 1 are not there: " in report_splits(tiny.config, tiny.root).told_of_scans()


def test_written_files_read_as_the_clean_splits_do(tiny: TinyData, tmp_path: Path) -> None:
    dirty(tiny)
    out = tmp_path / "out"
    write_clean(tiny.config, tiny.root, out)
    again = report_splits(tiny.config, out)
    assert (again.published.leaks, again.published.repeats) == (0, 0)
    assert again.published == again.clean == report_splits(tiny.config, tiny.root).clean
    for policy in ("clean", "published", "strict"):
        data = tiny.config.model_copy(update={"splits": policy})
        assert facts(data, out) == facts(tiny.config, tiny.root)
        assert not read_layout(data, out).findings
    assert json.loads((out / "report.json").read_text())["published"]["splits"][0]["repeated"] == ["IXI001-HH-1"]


def test_rows_are_dropped_never_changed_and_writing_again_is_the_same(tiny: TinyData, tmp_path: Path) -> None:
    dirty(tiny)
    out = tmp_path / "out"
    for _ in range(2):
        write_clean(tiny.config, tiny.root, out)
    for file in sorted((tiny.root / "splits").glob("*.csv")):
        before, after = file.read_text().splitlines(), (out / "splits" / file.name).read_text().splitlines()
        assert after[0] == before[0]
        places = [before.index(line) for line in after]
        assert places == sorted(places)
    assert len((out / "splits/IXI_train_fold0.csv").read_text().splitlines()) == 4


def test_nothing_else_is_overwritten(tiny: TinyData, tmp_path: Path) -> None:
    dirty(tiny)
    with pytest.raises(DataError, match=r"with another content; name a new folder"):
        write_clean(tiny.config, tiny.root, tiny.root)
    other = tmp_path / "splits" / "mine.csv"
    other.parent.mkdir()
    other.write_text("a\n")
    with pytest.raises(DataError, match=r"mine\.csv: is there already"):
        write_clean(tiny.config, tiny.root, tmp_path)
    assert not (tmp_path / "report.json").exists()


def test_unreadable_split_file_is_an_error(tiny: TinyData) -> None:
    tiny.split("IXI_test").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match=r"IXI_test\.csv: cannot be read"):
        report_splits(tiny.config, tiny.root)


def test_data_sets_are_found_by_their_files(tiny: TinyData) -> None:
    shutil.copy(tiny.split("Brats21_val"), tiny.split("My_own_val"))
    assert unhealthy_in(tiny.root / "splits", "IXI") == ("Brats21", "My_own")


def test_who_is_learnt_from_is_found_by_its_files(tiny: TinyData) -> None:
    folder = tiny.root / "splits"
    for name in ("train_fold0", "val_fold0", "test"):
        shutil.copy(tiny.split(f"IXI_{name}"), tiny.split(f"Controls_{name}"))
    assert healthy_in(folder, "IXI") == "IXI"
    assert unhealthy_in(folder, "IXI") == ("Brats21",)
    with pytest.raises(ConfigError, match="Controls, IXI; say with --healthy"):
        healthy_in(folder, "Others")
    for file in folder.glob("IXI_*.csv"):
        file.unlink()
    assert healthy_in(folder, "IXI") == "Controls"


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory, reference_dir: Path) -> Path:
    """The published split files, without scans."""
    folder = tmp_path_factory.mktemp("published")
    shutil.copytree(reference_dir / "splits", folder / "splits")
    return folder


@pytest.mark.slow
@pytest.mark.parity
def test_leaks_of_the_published_split_files(published: Path) -> None:
    report, plain = report_splits(DataConfig(modality="t1"), published), PlainTables(published)
    train = [s for s in report.published.splits if (s.dataset, s.split) == ("IXI", "train")]
    tables, held = [plain[f"IXI_train_fold{fold}"] for fold in range(5)], set(plain["IXI_test"])
    assert [(s.rows, s.subjects) for s in train] == [(len(names), len(set(names))) for names in tables]
    assert [set(s.leaked["IXI_test.csv"]) for s in train] == [held & set(names) for names in tables]
    assert [f.in_two for f in report.published.folds] == [plain.in_two(fold) for fold in range(5)]
    assert report.published.repeats == sum(len(names) - len(set(names)) for names in plain.used()) > 0
    assert report.published.leaks == plain.leaks() > 0
    assert report.published.validated_again == plain.validated_again()
    assert report.published.conflicts == dict.fromkeys(sorted(plain.differing("age")), ("age",)) != {}
    assert (report.clean.repeats, report.clean.leaks) == (0, 0)
    assert [(f.train, f.val, f.test) for f in report.clean.folds] == [plain.clean(fold) for fold in range(5)]
    assert (
        report.told_of_scans() == f"None of the {plain.scans()} scans (t1) is there: told from the split files alone."
    )


@pytest.fixture(scope="module")
def written(published: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("written")
    write_clean(DataConfig(modality="t1"), published, out)
    return out


@pytest.mark.slow
@pytest.mark.parity
@pytest.mark.parametrize("modality", ["t1", "t2"])
def test_clean_published_files_read_as_the_clean_splits_do(published: Path, written: Path, modality: str) -> None:
    as_they_are = DataConfig(modality=modality, splits="published")
    assert facts(as_they_are, written) == facts(DataConfig(modality=modality), published)


@pytest.mark.slow
@pytest.mark.parity
def test_rows_of_the_published_files_are_written_as_they_were(published: Path, written: Path) -> None:
    for file in sorted((published / "splits").glob("*.csv")):
        lines = (written / "splits" / file.name).read_text().splitlines()
        assert set(lines) <= set(file.read_text().splitlines()), file.name
