"""``cddpm cache``: what it prints, what it refuses and its exit codes."""

import json
from pathlib import Path
from typing import Any

import pytest
from shelf import Shelf, full
from typer.testing import CliRunner, Result

from cddpm.cli.cache import app
from cddpm.errors import ArtifactError, ConfigError, TrackingError

pytestmark = pytest.mark.slow


@pytest.fixture
def shelf(tmp_path: Path, database: Path, monkeypatch: pytest.MonkeyPatch) -> Shelf:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    found = full(tmp_path / "outputs")
    (found.output_dir / "mlflow.db").write_bytes(database.read_bytes())
    return found


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, arguments, env={"COLUMNS": "120"}, catch_exceptions=False)


def data(*arguments: str) -> Any:
    return json.loads(run(*arguments, "--json").stdout)


def test_ls_shows_what_is_kept_and_for_whom(shelf: Shelf) -> None:
    printed = run("ls").stdout
    for word in ("checkpoint", "c1", "20 d", "sweep quick", "2 volumes at 250, seeds 0", "2 reconstructions"):
        assert word in printed
    assert "…" not in printed
    rows = {row["fingerprint"]: row for row in data("ls")["artifacts"]}
    assert rows["c1"]["referred_to_by"] == ["sweep quick"]
    assert rows["c1"]["made_into"] == ["prediction p1", "reconstruction r1", "reconstruction r2"]
    assert rows["c2"]["referred_to_by"] == []
    assert rows["p1"]["parts"] == 4
    assert rows["s1"]["bytes"] > 5000


def test_ls_without_a_lab_book_says_so_and_goes_on(shelf: Shelf) -> None:
    (shelf.output_dir / "mlflow.db").unlink()
    done = run("ls")
    assert done.exit_code == 0
    assert "Registered models are not shown" in done.stderr
    assert "no lab book here" in data("ls")["note"]


def test_verify_names_all_that_is_damaged(shelf: Shelf) -> None:
    assert "11 artifacts" in run("verify").stdout
    assert data("verify") == {"artifacts": 11, "faults": []}
    for name in ("checkpoint/c1", "encoder/e1"):
        (shelf.artifacts / name / "content").write_bytes(b"x")
    with pytest.raises(
        ArtifactError, match=r"2 faults in 11 artifacts(.|\n)*encoder/e1/content(.|\n)*checkpoint/c1/content"
    ):
        run("verify")
    assert ArtifactError.exit_code == 4


def test_prune_says_what_it_frees_and_a_dry_run_frees_nothing(shelf: Shelf) -> None:
    before = shelf.names()
    said = run("prune", "--unreferenced", "--dry-run").stdout
    assert "would free" in said
    assert "checkpoint c2" in said
    assert "prediction p1, 2 of its parts: " in said
    assert shelf.names() == before
    planned, done = data("prune", "--unreferenced", "--dry-run"), data("prune", "--unreferenced")
    assert planned["freed"] == done["freed"]
    assert planned["bytes_freed"] == done["bytes_freed"] > 0
    assert {row["fingerprint"] for row in done["freed"]} == {"c2", "k3", "p1", "p2", "r2", "r3"}
    assert "checkpoint/c2" not in shelf.names()
    assert data("prune", "--unreferenced")["freed"] == []
    run("verify")


def test_a_limit_that_cannot_be_reached_is_told(shelf: Shelf) -> None:
    assert "More than 0 B is left" in run("prune", "--max-gib", "0", "--keep-days", "100").stdout


def test_prune_wants_a_rule(shelf: Shelf) -> None:
    with pytest.raises(ConfigError, match="--unreferenced, --keep-days N, --max-gib X"):
        run("prune")


def test_prune_guesses_nothing_without_the_registry(shelf: Shelf) -> None:
    before = shelf.names()
    (shelf.output_dir / "mlflow.db").unlink()
    with pytest.raises(TrackingError, match="no lab book here"):
        run("prune", "--keep-days", "0")
    with pytest.raises(TrackingError, match="does not answer"):
        run("prune", "--keep-days", "0", "--tracking-uri", "http://127.0.0.1:9")
    assert shelf.names() == before


def test_another_folder_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="artifacts is not there"):
        run("ls", "--output-dir", str(tmp_path))
