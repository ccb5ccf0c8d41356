"""``launch/mlflow_server.sh``: what it refuses, and users and passwords. That it serves, tests/tracking/test_outage.py shows."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import registered
from mlflow_process import ROOT, running

from cddpm.config import TrackingConfig
from cddpm.errors import AwayError

SCRIPT = ROOT / "launch" / "mlflow_server.sh"


def run(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = ["bash", str(SCRIPT), "--python", sys.executable, *options]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=60, check=False)


def test_help_names_every_option(tmp_path: Path) -> None:
    done = run(tmp_path, "--help")
    assert done.returncode == 0
    for option in ("--backend", "--artifacts", "--folder", "--host", "--port", "--auth", "--open", "--python"):
        assert f"  {option} " in done.stdout
    assert "set -e" not in done.stdout


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--hots", "x"], "--hots: no such option"),
        (["--port"], "--port needs a value"),
        (["--host", "0.0.0.0"], "add --auth, or --open if that is meant"),
        (["--backend", "mlruns"], "--backend mlruns: allowed are sqlite:////absolute/path"),
        (["--auth"], "needs MLFLOW_AUTH_ADMIN_PASSWORD"),
        (["--artifacts", "s3://bucket/x", "--python", "/bin/false"], "an S3 root of artifacts needs the package boto3"),
    ],
)
def test_a_wrong_option_is_one_message_and_starts_nothing(tmp_path: Path, options: list[str], words: str) -> None:
    done = run(tmp_path, *options)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert words in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.nightly
@pytest.mark.slow
@pytest.mark.timeout(240)
def test_with_auth_only_users_enter_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("flask_wtf", reason="flask-wtf is not installed")
    password = "correct horse battery"
    with running(tmp_path, "--auth", MLFLOW_AUTH_ADMIN_PASSWORD=password) as server:
        tracking = TrackingConfig(uri=server.uri, when_away="refuse")
        with pytest.raises(AwayError, match="MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"):
            registered.begun_lab(tmp_path, tracking)
        monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "admin")
        monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", password)
        assert registered.begun_lab(tmp_path, tracking, registered.run("mine")).end(60) == 0
        assert password not in server.log
    assert (tmp_path / "secret").stat().st_mode & 0o077 == 0
