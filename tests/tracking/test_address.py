"""Tracking URIs, and which of them is a database file."""

from pathlib import Path

import pytest

from cddpm.tracking import address


def test_a_file_has_one_uri(tmp_path: Path) -> None:
    uri = address.default_uri(tmp_path)
    assert uri == f"sqlite:///{tmp_path}/mlflow.db" == address.file_uri(tmp_path / "mlflow.db")
    assert address.sqlite_file(uri) == tmp_path / "mlflow.db"


@pytest.mark.parametrize("uri", ["http://127.0.0.1:5000", "postgresql://db/mlflow", "/a/folder"])
def test_other_lab_books_are_no_file(uri: str) -> None:
    assert address.sqlite_file(uri) is None


def test_a_relative_file_is_found_from_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert address.sqlite_file("sqlite:///outputs/mlflow.db?timeout=3") == tmp_path / "outputs" / "mlflow.db"


def test_a_message_is_cut_at_300_characters() -> None:
    assert address.one_line(ValueError("a\n  b")) == "a b"
    assert address.one_line(ValueError()) == "ValueError"
    assert len(address.one_line(ValueError("x" * 400))) == 300
