"""``cddpm report``: a page where it was asked for, or one message that names the nearest sweep."""

from pathlib import Path

import built_sweep
import pytest
from typer.testing import CliRunner

from cddpm import report_commands
from cddpm.cli import app
from cddpm.errors import SearchError


@pytest.fixture(scope="module")
def output_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("out")
    built_sweep.drawn(folder, trials=2, points=3)
    return folder


def test_by_name_into_the_sweeps_folder(output_dir: Path) -> None:
    done = CliRunner().invoke(app, ["report", "drawn", "--output-dir", str(output_dir)], catch_exceptions=False)
    page = output_dir / "sweeps/drawn/report.html"
    assert done.exit_code == 0
    assert str(page) in done.stdout.replace("\n", "")
    assert "Sweep drawn" in page.read_text()


def test_by_folder_into_a_file_and_a_browser(output_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    monkeypatch.setattr(report_commands.webbrowser, "open", lambda address: bool(opened.append(address)) or True)
    command = ["report", str(output_dir / "sweeps/drawn"), "--output", str(tmp_path / "page.html"), "--open"]
    assert CliRunner().invoke(app, command, catch_exceptions=False).exit_code == 0
    assert opened == [(tmp_path / "page.html").resolve().as_uri()]


def test_a_wrong_name_is_a_users_fault(output_dir: Path) -> None:
    done = CliRunner().invoke(app, ["report", "drwn", "--output-dir", str(output_dir)])
    assert isinstance(done.exception, SearchError)
    assert done.exception.exit_code == 6
    assert "did you mean 'drawn'?" in str(done.exception)
