"""A table says the same in whatever form a spreadsheet saves it; what is none is told in one line."""

import contextlib
import csv
import io
from itertools import product
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cddpm.config import DataConfig
from cddpm.data.layout import scan_layout
from cddpm.data.sheet import SheetError, read_sheet
from cddpm.predict.scans import collect

HEAD = ["dataset", "subject", "split", "image", "mask", "segmentation", "age"]
ROWS = [
    ["Controls", "c1", "train", "a b/c1.nii.gz", "m1.nii.gz", "", "34.5"],
    ["Controls", "c2", "val", "c2;x.nii.gz", "m2.nii.gz", "", ""],
    ["Controls", "c3", "test", "c3.nii.gz", "m3.nii.gz", "", "51"],
    ["Tumours", "tä1", "val", "t1,x.nii.gz", "m4.nii.gz", "s1.nii.gz", ""],
    ["Tumours", "t2", "test", "t2.nii.gz", "m5.nii.gz", "s2.nii.gz", ""],
]
DATA = DataConfig(healthy="Controls", unhealthy=("Tumours",))
FORMS = list(
    product((",", ";", "\t"), ("utf-8", "utf-8-sig", "utf-16", "utf-16-le-bom"), ("\n", "\r\n"), (False, True))
)


def saved(path: Path, rows: list[list[str]], separator: str, encoding: str, end: str, named: bool) -> Path:
    text = io.StringIO()
    csv.writer(text, delimiter=separator, lineterminator=end).writerows(rows)
    said = f"sep={separator}{end}" if named else ""
    whole = said + text.getvalue()
    plain = encoding != "utf-16-le-bom"
    path.write_bytes(whole.encode(encoding) if plain else b"\xff\xfe" + whole.encode("utf-16-le"))
    return path


@pytest.mark.parametrize(("separator", "encoding", "end", "named"), FORMS)
def test_a_table_is_read_alike_in_every_form(
    tmp_path: Path, separator: str, encoding: str, end: str, named: bool
) -> None:
    rows = [HEAD, *ROWS]
    if separator != ",":
        rows = [[cell.replace("34.5", "34,5") for cell in row] for row in rows]  # where the comma is for decimals
    data = DATA.model_copy(update={"table": saved(tmp_path / "t.csv", rows, separator, encoding, end, named)})
    layout = scan_layout(data, tmp_path)
    assert layout.findings == ()
    assert [(r.subject, r.age, r.image.relative_to(tmp_path).as_posix()) for r in layout.rows] == [
        (row[1], float(row[6]) if row[6] else None, row[3]) for row in ROWS
    ]
    scans = saved(tmp_path / "s.csv", [["scan", "mask"], ["x.nii", ""]], separator, encoding, end, named)
    assert [job.scan.name for job in collect([scans], tmp_path / "out").jobs] == ["x.nii"]


@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_a_header_that_is_none_of_ours_is_one_fault(tmp_path: Path, separator: str) -> None:
    table = tmp_path / "t.csv"
    table.write_text(f"id{separator}path\n1{separator}2\n")
    layout = scan_layout(DATA.model_copy(update={"table": table}), tmp_path)
    assert [f.code for f in layout.findings] == ["columns"]
    assert "needed are dataset, subject, split, image, mask" in layout.findings[0].allowed


def test_another_code_page_is_told_with_the_remedy(tmp_path: Path) -> None:
    table = tmp_path / "t.csv"
    table.write_bytes("dataset;subject\nA;ä\n".encode("latin-1"))
    with pytest.raises(SheetError, match=r"t\.csv: cannot be read as text \(byte 0xe4 .*; save it as CSV in UTF-8"):
        read_sheet(table, HEAD)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(raw=st.binary(max_size=80) | st.text(max_size=80).map(str.encode))
def test_no_bytes_end_in_another_error(tmp_path: Path, raw: bytes) -> None:
    path = tmp_path / "any.csv"
    path.write_bytes(raw)
    with contextlib.suppress(SheetError):
        sheet = read_sheet(path, HEAD)
        assert all(set(sheet.columns) <= set(record) for _, record in sheet.records)
