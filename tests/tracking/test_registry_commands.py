import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from cddpm.config import ExperimentConfig, ScoringConfig
from cddpm.errors import TrackingError
from cddpm.registry_commands import app
from cddpm.tracking.package import Pipeline, read_package, write_package
from cddpm.tracking.registry import register
from cddpm.tracking.runs import LabBook

OpenBook = Callable[..., LabBook]
SWEEP = "full-search-t2-1a2b3c4d"


@pytest.fixture(autouse=True)
def here(output_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with outputs/mlflow.db, as after a sweep."""
    monkeypatch.chdir(output_dir.parent)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return output_dir.parent


@pytest.fixture
def two_models(open_book: OpenBook, tmp_path: Path) -> None:
    with open_book() as book:
        parent = book.parent(SWEEP, {}, {})
        for number, dice in enumerate((0.25, 0.5)):
            pipeline = Pipeline(scoring=ScoringConfig(), thresholds={"all": dice})
            write_package(tmp_path / str(number), {"w": torch.tensor([dice])}, ExperimentConfig(name="demo"), pipeline)
            metrics = {"val/dice": dice, "val/Brats21/dice": 1 - dice, "val/MSLUB/dice": 0.125, "test/dice": 1 - dice}
            register(book, book.trial(parent, number, {}, {}), tmp_path / str(number), metrics, {})


def _run(*arguments: str) -> str:
    done = CliRunner().invoke(app, arguments, env={"COLUMNS": "100"}, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


@pytest.mark.usefixtures("two_models")
def test_tables_read_whole_in_100_columns() -> None:
    listed, ranked = _run("list"), _run("best")
    for text in (listed, ranked):
        assert f"{SWEEP}/0000" in text
        assert "…" not in text
        assert all(len(line) <= 100 for line in text.splitlines())
    assert ranked.index("0001") < ranked.index("0000")
    assert [word for word in ranked.split() if word in ("mean", "Brats21", "MSLUB")] == ["mean", "Brats21", "MSLUB"]
    assert "test/" not in ranked


@pytest.mark.usefixtures("two_models")
def test_json_is_data() -> None:
    assert [version["number"] for version in json.loads(_run("list", "--json"))] == [2, 1]
    by_dataset = json.loads(_run("best", "--json", "--dataset", "Brats21"))
    assert [version["number"] for version in by_dataset["versions"]] == [1, 2]
    assert (by_dataset["metric"], by_dataset["chosen_on_test"]) == ("val/Brats21/dice", False)


@pytest.mark.usefixtures("two_models")
def test_from_promotion_to_a_package(here: Path) -> None:
    assert "'champion' is now version 2" in _run("promote", f"{SWEEP}/0001", "champion", "--why", "best of [two]")
    assert "(was version 2)" in _run("promote", "1", "champion", "--why", "second thoughts")
    assert json.loads(_run("promote", "2", "champion", "--why", "third", "--json"))["previous"] == 1
    shown = _run("show", "champion")
    assert "best of [two]" in shown
    assert "third" in shown
    assert [entry["why"] for entry in json.loads(_run("show", "1", "--json"))["promotions"]] == ["second thoughts"]
    pulled = json.loads(_run("pull", "champion", "model", "--json"))
    assert pulled["directory"] == str(here / "model")
    assert read_package(here / "model").pipeline.thresholds == {"all": 0.5}
    assert "Version 2" in _run("pull", "champion", "model")


def test_an_empty_registry_says_so() -> None:
    assert "No model is registered as 'cddpm'" in _run("list")
    assert json.loads(_run("list", "--json")) == []


def test_no_lab_book_here(here: Path) -> None:
    (here / "outputs" / "mlflow.db").unlink()
    with pytest.raises(TrackingError, match=r"outputs/mlflow\.db: no lab book here.*--tracking-uri") as caught:
        _run("list")
    assert caught.value.exit_code == 5
    assert not (here / "outputs" / "mlflow.db").exists()


def test_the_environment_points_elsewhere(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{here}/absent.db")
    with pytest.raises(TrackingError, match=r"absent\.db: no lab book here"):
        _run("list")
    assert "No model" in _run("list", "--tracking-uri", "sqlite:///outputs/mlflow.db")


def test_help_needs_no_mlflow() -> None:
    code = "import sys, cddpm.registry_commands; sys.exit('mlflow' in sys.modules or 'torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
