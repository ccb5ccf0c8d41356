"""The table of speed and memory comes out whole, in small sizes; how fast this machine is, is not tested."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import s3_server

ROOT = Path(__file__).resolve().parents[2]
RATIOS = ("the same settings searched naively", "3D median", "best Dice")


@pytest.mark.nightly
@pytest.mark.timeout(600)
def test_quick_measures_every_row(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "launch" / "bench.py"), "search", "--quick", "--output", str(tmp_path / "b.json")],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / "b.json").read_text())
    assert found["quick"] is True
    measured = {row["work"]: row["measured"] for row in found["rows"]}
    assert len(measured) == 11
    assert all(value > 0 for value in measured.values())
    for start in RATIOS:
        (ratio,) = [value for name, value in measured.items() if name.startswith(start)]
        assert ratio > 1, f"{start}: {ratio}"
    assert "extrapolated from a sample" in done.stdout


@pytest.mark.nightly
@pytest.mark.timeout(300)
def test_storage_measures_every_row(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "launch" / "bench.py"), "storage", "s3://tests/bench", "--quick"]
    with s3_server.moto(tmp_path) as port:
        done = subprocess.run(
            [*command, "--output", str(tmp_path / "b.json")],
            cwd=ROOT,
            env={**os.environ, **s3_server.environment(port), "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            check=False,
        )
    assert done.returncode == 0, done.stdout + done.stderr
    rows = json.loads((tmp_path / "b.json").read_text())["rows"]
    assert len(rows) == 6
    assert all(row["measured"] > 0 for row in rows if row["unit"] == "%" and "of the rate" in row["work"])


@pytest.mark.nightly
@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("subject", "rows"), [("noise", 1), ("data", 1), ("train", 5), ("reconstruct", 2), ("prepare", 13)]
)
def test_the_measures_come_out_whole(subject: str, rows: int, tmp_path: Path) -> None:
    found = measured(tmp_path, subject, "--quick")
    assert len(found) == rows
    assert all(row["measured"] > 0 for row in found)


@pytest.mark.ray
@pytest.mark.nightly
@pytest.mark.timeout(300)
def test_a_group_that_stays_starts_sooner(tmp_path: Path, own_ray: None) -> None:
    new, kept = (row["measured"] for row in measured(tmp_path, "start"))
    assert 0 < kept < new


def measured(folder: Path, *words: str) -> list[dict[str, Any]]:
    done = subprocess.run(
        [sys.executable, str(ROOT / "launch" / "bench.py"), *words, "--output", str(folder / "b.json")],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (folder / "b.json").exists(), done.stdout + done.stderr
    rows: list[dict[str, Any]] = json.loads((folder / "b.json").read_text())["rows"]
    return rows


@pytest.mark.slow
def test_an_unknown_subject_is_refused() -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "launch" / "bench.py"), "flight"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "No such command" in done.stderr
