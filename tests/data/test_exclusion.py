"""Who stands in the list of excluded subjects is in no split, whoever reads them; what the list says wrongly is told."""

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny_data import SPLITS, TinyData
from typer.testing import CliRunner

from cddpm.cli import app
from cddpm.config import DataConfig
from cddpm.data.check import check
from cddpm.data.exclusion import exclusion_file
from cddpm.data.layout import read_layout, scan_layout, whole_layout
from cddpm.data.many import in_threads
from cddpm.data.split_report import report_splits, write_clean
from cddpm.data.store import store_fingerprint
from cddpm.errors import DataError

EVERYONE = sorted({(name.split("_")[0], subject) for name, subjects in SPLITS.items() for subject in subjects})


def exclude(tiny: TinyData, *rows: str, header: str = "dataset,subject,reason") -> Path:
    path = exclusion_file(tiny.config, tiny.root)
    path.write_text("\n".join([header, *rows, ""]))
    return path


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=20, deadline=None)
@given(out=st.sets(st.sampled_from(EVERYONE)), policy=st.sampled_from(["clean", "published", "strict"]))
def test_excluded_are_in_no_split_and_all_others_are(tiny: TinyData, out: set[tuple[str, str]], policy: str) -> None:
    exclude(tiny, *(f"{dataset},{subject},moved" for dataset, subject in out))
    data = tiny.config.model_copy(update={"splits": policy})
    whole, layout = whole_layout(data, tiny.root), scan_layout(data, tiny.root)
    assert {(r.dataset, r.subject) for r in whole.rows} == set(EVERYONE)
    assert layout.rows == tuple(r for r in whole.rows if (r.dataset, r.subject) not in out)
    told = [f for f in layout.findings if f.code == "excluded"]
    assert [f.found.partition(" subject")[0] for f in told] == ([str(len(out))] if out else [])
    assert layout.divisions == whole.divisions


def test_number_and_reason_are_told_once(tiny: TinyData) -> None:
    path = exclude(tiny, 'IXI,IXI002-HH-2,"moved, twice"', "IXI,IXI002-HH-2,again", "Brats21,BraTS2021_00002,")
    report = check(tiny.config, tiny.root)
    (found,) = report.findings
    assert str(found) == (
        f"warning: {path}: 2 subjects excluded: IXI/IXI002-HH-2 (moved, twice), Brats21/BraTS2021_00002 (no reason given); "
        "dropped from every split [excluded]"
    )
    assert report.volumes == 7


def test_what_nobody_bears_is_told_with_the_nearest_name(tiny: TinyData) -> None:
    path = exclude(tiny, "IXI,IXI001-HH-11,", "Brats,BraTS2021_00002,", "IXI,IXI002-HH-2,x")
    told = {f.file: f for f in scan_layout(tiny.config, tiny.root).findings if f.code == "exclusions"}
    assert set(told) == {f"{path}:2", f"{path}:3"}
    assert "did you mean 'IXI001-HH-1'?" in told[f"{path}:2"].allowed
    assert "did you mean 'Brats21'?" in told[f"{path}:3"].allowed
    assert {f.severity for f in told.values()} == {"warning"}


def test_a_data_set_that_only_others_look_at_is_none_of_our_concern(tiny: TinyData) -> None:
    tiny.write_rows("WMH_val", [{"img_name": "w1"}])
    exclude(tiny, "WMH,w1,moved")
    assert scan_layout(tiny.config, tiny.root).findings == ()


@pytest.mark.parametrize(
    ("header", "row"), [("subject,reason", "IXI001-HH-1,moved"), ("dataset,subject", "IXI,"), ("dataset,subject", ",x")]
)
def test_a_list_that_cannot_be_meant_is_an_error(tiny: TinyData, header: str, row: str) -> None:
    exclude(tiny, row, header=header)
    (fault,) = check(tiny.config, tiny.root).errors
    assert fault.code == "exclusions"
    with pytest.raises(DataError, match=r"exclude\.csv"):
        report_splits(tiny.config, tiny.root)


def test_a_spreadsheet_may_have_saved_it(tiny: TinyData) -> None:
    path = exclusion_file(tiny.config, tiny.root)
    path.write_bytes("dataset;subject;reason\r\nIXI;IXI002-HH-2;moved\r\n".encode("utf-16"))
    assert not [r for r in read_layout(tiny.config, tiny.root).rows if r.subject == "IXI002-HH-2"]


def test_an_empty_split_is_an_error(tiny: TinyData) -> None:
    exclude(tiny, *(f"IXI,{subject}," for subject in SPLITS["IXI_test"]))
    assert [f.code for f in check(tiny.config, tiny.root).errors] == ["empty-split"]


def test_the_store_is_named_by_the_rows_alone(tiny: TinyData) -> None:
    def name() -> str:
        return store_fingerprint(tiny.config, read_layout(tiny.config, tiny.root).rows, in_threads(2))

    before = name()
    path = exclude(tiny, "IXI,IXI002-HH-2,moved")
    without = name()
    exclude(tiny, "IXI,IXI002-HH-2,another reason")
    assert name() == without != before
    path.unlink()
    assert name() == before


def test_split_reports_and_clean_splits_are_without_them(tiny: TinyData, tmp_path: Path) -> None:
    exclude(tiny, "IXI,IXI002-HH-2,moved")
    report = write_clean(tiny.config, tiny.root, tmp_path / "out")
    by_split = {s.title: (s.rows, c.rows) for s, c in zip(report.published.splits, report.clean.splits, strict=True)}
    assert by_split["IXI_train_fold0.csv"] == (3, 2)
    assert by_split["IXI_test.csv"] == (2, 2)
    assert "IXI002-HH-2" not in "".join(p.read_text() for p in (tmp_path / "out/splits").glob("IXI_*.csv"))
    told = CliRunner().invoke(app, ["data", "splits", str(tiny.root)], catch_exceptions=False).stdout
    assert "1 subject excluded: IXI/IXI002-HH-2 (moved)" in " ".join(told.split())


def test_a_table_has_its_list_beside_it(tiny: TinyData, tmp_path: Path) -> None:
    lines = ["dataset,subject,split,image,mask,segmentation"]
    for dataset, split, subject in (
        *(("IXI", split, f"IXI00{i}-HH-{i}") for i, split in ((1, "train"), (2, "train"), (4, "val"), (5, "test"))),
        ("Brats21", "val", "BraTS2021_00001"),
        ("Brats21", "test", "BraTS2021_00002"),
    ):
        seg = tiny.file(dataset, subject, "seg") if dataset != "IXI" else ""
        image, mask = (tiny.file(dataset, subject, kind) for kind in ("t2", "mask"))
        lines.append(f"{dataset},{subject},{split},{image},{mask},{seg}")
    table = tmp_path / "study.csv"
    table.write_text("\n".join(lines) + "\n")
    data = DataConfig.model_validate({**tiny.config.model_dump(), "table": table})
    (tmp_path / "study.exclude.csv").write_text("dataset,subject\nIXI,IXI002-HH-2\n")
    report = check(data, tmp_path)
    assert [f.code for f in report.findings] == ["excluded"]
    assert report.volumes == 5
