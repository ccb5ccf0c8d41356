"""The benches as they are called: what they need, what they write, and what they say of an earlier run."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from launched import ROOT

pytestmark = pytest.mark.slow

WITHOUT = ["ray", "mlflow", "optuna", "nibabel", "torchio", "SimpleITK", "sklearn", "matplotlib", "plotly"]
"""Packages that a machine of a GPU's owner need not have."""
CODE = f"""
import runpy, sys
sys.modules.update(dict.fromkeys({WITHOUT!r}))
sys.path.insert(0, 'launch')
sys.argv[0] = 'bench.py'
runpy.run_path('launch/bench.py', run_name='__main__')
"""


def bench(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", CODE, *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)


@pytest.mark.parametrize(
    "work", ["noise", *(pytest.param(work, marks=pytest.mark.nightly) for work in ("data", "train", "reconstruct"))]
)
def test_what_networks_cost_is_told_without_ray_mlflow_and_readers_of_scans(work: str) -> None:
    done = bench(work, "--quick", "--json")
    assert done.returncode == 0, done.stderr
    numbers = json.loads(done.stdout)
    assert numbers["rows"]
    assert all(row["measured"] > 0 for row in numbers["rows"])
    assert numbers["machine"]["cores"] in (1, 2)


@pytest.mark.nightly
def test_an_earlier_run_is_told_beside_and_a_ratio_that_fell_ends_with_1(tmp_path: Path) -> None:
    file = tmp_path / "before.json"
    done = bench("train", "--quick", "--output", str(file))
    assert done.returncode == 0, done.stderr
    before = json.loads(file.read_text())
    (ratio,) = (row for row in before["rows"] if row["unit"] == "times slower")
    assert before["quick"] is True
    for factor, code in ((0.01, 0), (100.0, 1)):
        changed = {**before, "rows": [{**row, "measured": row["measured"] * factor} for row in [ratio]]}
        file.write_text(json.dumps(changed))
        again = bench("train", "--quick", "--baseline", str(file))
        assert again.returncode == code, again.stdout + again.stderr
        assert "before" in again.stdout
        assert ("a third worse than before: the same step the plain way" in again.stdout) == (code == 1)


@pytest.mark.parametrize(
    "content", ['{"rows": [{"work": "x"}]}', *(pytest.param(c, marks=pytest.mark.nightly) for c in ("", "[]"))]
)
def test_another_file_is_no_baseline(content: str, tmp_path: Path) -> None:
    file = tmp_path / "other.json"
    file.write_text(content)
    done = bench("noise", "--quick", "--baseline", str(file))
    assert done.returncode == 2
    assert "no file that --output wrote" in " ".join(done.stderr.split())


@pytest.mark.nightly
def test_a_baseline_that_is_none_is_told_before_anything_is_measured(tmp_path: Path) -> None:
    missing, out = tmp_path / "typo.json", tmp_path / "out.json"
    done = bench("noise", "--quick", "--baseline", str(missing), "--output", str(out))
    assert done.returncode == 2
    assert "no such file" in " ".join(done.stderr.split())
    assert not out.exists()
    missing.write_text('{"quick": false, "rows": []}')
    assert "sizes are others" in " ".join(bench("noise", "--quick", "--baseline", str(missing)).stderr.split())
