"""``cddpm report``: a page where it was asked for, or one message that names the nearest sweep, or what goes together."""

from pathlib import Path

import built_sweep
import pytest
from tiny_package import Scan
from typer.testing import CliRunner

from cddpm.cli import app, report
from cddpm.errors import SearchError
from cddpm.tracking.package import Package

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def output_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("out")
    built_sweep.drawn(folder, trials=2, points=3)
    return folder


def test_by_name_into_the_sweeps_folder(output_dir: Path) -> None:
    done = CliRunner().invoke(app, ["report", "drawn", "--output-dir", str(output_dir)], catch_exceptions=False)
    page = output_dir / "sweeps/drawn/report.html"
    assert done.exit_code == 0
    assert str(page) in done.stdout
    assert "Sweep drawn" in page.read_text()


def test_by_folder_into_a_file_and_a_browser(output_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    monkeypatch.setattr(report.webbrowser, "open", lambda address: bool(opened.append(address)) or True)
    command = ["report", str(output_dir / "sweeps/drawn"), "--output", str(tmp_path / "page.html"), "--open"]
    assert CliRunner().invoke(app, command, catch_exceptions=False).exit_code == 0
    assert opened == [(tmp_path / "page.html").resolve().as_uri()]


def test_a_wrong_name_is_a_users_fault(output_dir: Path) -> None:
    done = CliRunner().invoke(app, ["report", "drwn", "--output-dir", str(output_dir)])
    assert isinstance(done.exception, SearchError)
    assert done.exception.exit_code == 6
    assert "did you mean 'drawn'?" in str(done.exception)


@pytest.fixture(scope="module")
def predicted(package: Package, scan: Scan, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where ``cddpm predict`` has written one scan."""
    out = tmp_path_factory.mktemp("predicted")
    given = [scan.image.path, "--mask", scan.mask.path, "--out", out, "--model", package.directory]
    done = CliRunner().invoke(app, ["predict", *map(str, given)], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return out


def test_scans_beside_their_results_or_where_asked(predicted: Path, scan: Scan, tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["report", "--scan", str(predicted)], catch_exceptions=False)
    assert done.exit_code == 0
    assert "Scan patient" in (predicted / "report.html").read_text()
    assert str(predicted / "report.html") in done.stdout
    one = ["report", "--scan", str(predicted / "patient"), "--truth", str(scan.segmentation)]
    assert (
        CliRunner().invoke(app, [*one, "--output", str(tmp_path / "page.html")], catch_exceptions=False).exit_code == 0
    )
    assert "Dice" in (tmp_path / "page.html").read_text()


def test_what_does_not_go_together_is_told(predicted: Path) -> None:
    place = str(predicted)
    for given, words in (
        ([], "give the name of a sweep"),
        (["demo", "--scan", place], "give the name of a sweep"),
        (["demo", "--truth", "a.nii"], "goes with --scan"),
        (["--scan", place, "--truth", "a.nii", "--truth", "b.nii"], "2 given for 1 scans (patient)"),
        (["--scan", place, "--scan", f"{place}/patient"], "name the file to write"),
    ):
        done = CliRunner().invoke(app, ["report", *given], env={"COLUMNS": "300"})
        assert done.exit_code == 2, given
        assert words in " ".join(done.output.split())
