"""Which divisions are known, and that validation of one is never used with test of another."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from tiny_data import TinyData, row
from typer.testing import CliRunner

from cddpm.cli import app
from cddpm.config import DataConfig
from cddpm.data.check import check
from cddpm.data.finding import SCHEMES, Division, Finding
from cddpm.data.layout import Layout, read_layout, scan_layout
from cddpm.errors import DataError

ATLAS = [f"sub-r{number:03}s001" for number in range(655)]
PAPER = ATLAS[:175], ATLAS[175:]
SIBLING = ATLAS[:66], ATLAS[66:]


def divided(tiny: TinyData, validation: list[str], test: list[str], dataset: str = "ATLAS_v2") -> DataConfig:
    """Settings that name ``dataset``, with these tables. Its scans are not there."""
    for split, subjects in (("val", validation), ("test", test)):
        tiny.write_rows(f"{dataset}_{split}", [row(dataset, subject) for subject in subjects])
    return tiny.config.model_copy(update={"unhealthy": (dataset,)})


def told(layout: Layout) -> list[Finding]:
    return [finding for finding in layout.findings if finding.code in ("leak", "mixed-splits")]


@pytest.mark.slow
@pytest.mark.parametrize(("tables", "name"), [(PAPER, "published"), (SIBLING, "sibling")])
def test_both_tables_of_one_scheme_are_recognised(tiny: TinyData, tables: Any, name: str) -> None:
    layout = read_layout(divided(tiny, *tables), tiny.root)
    assert [d.scheme.name for d in layout.divisions if d.scheme] == [name]
    assert told(layout) == []


@pytest.mark.slow
@pytest.mark.parametrize("splits", ["clean", "published", "strict"])
def test_the_papers_validation_with_the_siblings_test_is_refused(tiny: TinyData, splits: str) -> None:
    data = divided(tiny, PAPER[0], SIBLING[1]).model_copy(update={"splits": splits})
    (fault,) = told(scan_layout(data, tiny.root))
    assert (fault.severity, fault.code, fault.file.rpartition("/")[2]) == ("error", "leak", "ATLAS_v2_val.csv")
    assert fault.found.startswith("109 subjects are also in ATLAS_v2_test.csv (sub-r066s001, ")
    assert fault.allowed.endswith("take both files from one division: published 175 and 480 or sibling 66 and 589")
    with pytest.raises(DataError, match="109 subjects are also in ATLAS_v2_test"):
        read_layout(data, tiny.root)


def test_the_siblings_validation_with_the_papers_test_is_refused_though_they_share_no_scan(tiny: TinyData) -> None:
    data = divided(tiny, SIBLING[0], PAPER[1])
    (fault,) = told(scan_layout(data, tiny.root))
    assert fault.code == "mixed-splits"
    assert (
        fault.found == "ATLAS_v2: 66 validation scans (sibling 66 and 589) with 480 test scans (published 175 and 480)"
    )
    with pytest.raises(DataError, match="take both files from one of the two"):
        read_layout(data, tiny.root)


def test_other_sizes_are_told_and_used(tiny: TinyData) -> None:
    layout = read_layout(divided(tiny, ATLAS[:170], ATLAS[175:]), tiny.root)
    assert [*map(str, layout.divisions)] == [
        "ATLAS_v2: 170 validation and 480 test scans: no known splits (published 175 and 480; sibling 66 and 589)"
    ]
    assert told(layout) == []
    own = read_layout(divided(tiny, ATLAS[:170], ATLAS[175:], "Own"), tiny.root)
    assert [*map(str, own.divisions)] == ["Own: 170 validation and 480 test scans"]


@pytest.mark.parametrize("splits", ["clean", "published", "strict"])
def test_one_scan_in_validation_and_test_is_an_error(tiny: TinyData, splits: str) -> None:
    tiny.write_rows("Brats21_val", [*tiny.rows("Brats21_val"), row("Brats21", "BraTS2021_00002")])
    report = check(tiny.config.model_copy(update={"splits": splits}), tiny.root)
    (fault,) = report.errors
    assert fault.found == "1 subjects are also in Brats21_test.csv (BraTS2021_00002)"
    assert fault.allowed == "a scan of an unhealthy data set is for validation or for test, never for both"
    assert "Brats21: 2 validation and 2 test scans, 1 of them in both: no known splits" in "\n".join(report.lines())


def test_one_file_under_two_names_is_one_scan(tiny: TinyData) -> None:
    tiny.write_rows("Brats21_val", [{**row("Brats21", "BraTS2021_00003"), "img_name": "another"}])
    (fault,) = told(scan_layout(tiny.config, tiny.root))
    assert (fault.severity, fault.found) == ("error", "1 subjects are also in Brats21_test.csv (another)")


def test_a_healthy_scan_in_validation_and_test_is_still_dropped(tiny: TinyData) -> None:
    """The published tables of IXI have such rows."""
    tiny.write_rows("IXI_val_fold0", [*tiny.rows("IXI_val_fold0"), row("IXI", "IXI005-HH-5")])
    (warning,) = told(read_layout(tiny.config, tiny.root))
    assert (warning.severity, warning.allowed) == ("warning", "dropped from val (data.splits: clean)")


def test_a_table_of_own_data_sets_is_held_to_the_same(tiny: TinyData, tmp_path: Path) -> None:
    lines = ["dataset,subject,split,image,mask,segmentation,fold,label"]
    lines += [f"Own,h{i},{split},h{i}.nii,m.nii,,,0" for i, split in enumerate(("train", "val", "test"))]
    for split, subjects in (("val", PAPER[0]), ("test", SIBLING[1])):
        lines += [f"ATLAS_v2,{subject},{split},{subject}.nii,m.nii,s.nii,,1" for subject in subjects]
    (tmp_path / "t.csv").write_text("\n".join(lines))
    data = DataConfig(table=tmp_path / "t.csv", healthy="Own", unhealthy=("ATLAS_v2",))
    layout = scan_layout(data, tmp_path)
    assert [(f.code, f.found[:53]) for f in told(layout)] == [
        ("leak", "ATLAS_v2 val: 109 subjects are also in ATLAS_v2 test ")
    ]
    assert layout.divisions == (Division("ATLAS_v2", 175, 589, 109),)


@pytest.mark.slow
def test_the_check_names_the_scheme(tiny: TinyData) -> None:
    done = CliRunner().invoke(app, ["data", "check", str(tiny.root), "--unhealthy", "Brats21", "--json"])
    assert json.loads(done.stdout)["divisions"] == [
        {"dataset": "Brats21", "validation": 1, "test": 2, "shared": 0, "scheme": None}
    ]
    shown = CliRunner().invoke(app, ["data", "check", str(tiny.root), "--unhealthy", "Brats21"]).stdout.splitlines()
    assert "Brats21: 1 validation and 2 test scans: no known splits (published 100 and 1151)" in shown


def test_no_scheme_is_named_twice_and_no_two_have_the_same_sizes() -> None:
    for schemes in SCHEMES.values():
        assert schemes[0].name == "published"
        for attribute in ("name", "validation", "test"):
            assert len({getattr(scheme, attribute) for scheme in schemes}) == len(schemes)


@pytest.mark.slow
@pytest.mark.parity
def test_the_papers_tables_are_the_published_scheme(published_tables: Path) -> None:
    for dataset in ("ATLAS_v2", "WMH", "Brats21", "MSLUB"):
        sizes = []
        for split in ("val", "test"):
            with (published_tables / "splits" / f"{dataset}_{split}.csv").open(newline="") as stream:
                sizes.append(len({record["img_name"] for record in csv.DictReader(stream)}))
        division = Division(dataset, *sizes)
        assert division.scheme is SCHEMES[dataset][0]
    data = DataConfig(modality="t1", unhealthy=("ATLAS_v2", "WMH"))
    assert [d.scheme.name for d in read_layout(data, published_tables).divisions if d.scheme] == ["published"] * 2


@pytest.fixture
def published_tables(tmp_path: Path, reference_dir: Path) -> Path:
    """Split files of all data sets in one folder."""
    (tmp_path / "splits").mkdir()
    for folder in ("splits", "splits_t1"):
        for file in (reference_dir / folder).glob("*.csv"):
            (tmp_path / "splits" / file.name).write_bytes(file.read_bytes())
    return tmp_path
