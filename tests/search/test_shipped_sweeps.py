"""Every sweep of ``tune_configs/`` runs on the phantom, made small; and a finished one is extended."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from launched import Here
from small_sweep import small

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(900), pytest.mark.usefixtures("shared_ray")]


def launch(folder: Path, name: str, *arguments: str, **changes: Any) -> Here:
    given = {**small(name), **{path.replace("__", "."): value for path, value in changes.items()}}
    texts = [
        f"{path}={yaml.safe_dump(value, default_flow_style=True).splitlines()[0]}" for path, value in given.items()
    ]
    settings = [part for text in texts for part in ("--set", text)]
    out = ("--config", f"tune_configs/{name}.yaml", "--output-dir", str(folder / "out"))
    return Here("sweep.py", *out, *settings, *arguments)


def leaderboard(folder: Path, name: str) -> list[dict[str, str]]:
    with (folder / f"out/sweeps/{name}/leaderboard.csv").open() as stream:
        return list(csv.DictReader(stream))


@pytest.mark.nightly
@pytest.mark.parametrize("name", ["quickstart", "training", "pretraining", "joint"])
def test_a_sweep_over_trainings_runs(name: str, tmp_path: Path) -> None:
    run = launch(tmp_path, name)
    assert run.code == 0, run.output
    ends = {row["state"] for row in leaderboard(tmp_path, name)}
    assert ends <= {"finished", "stopped early", "for comparison"}
    assert (tmp_path / f"out/sweeps/{name}/champion.png").exists()


@pytest.mark.nightly
def test_sweeps_over_scoring_settings_share_one_training(ten_scans: Path, tmp_path: Path) -> None:
    given = ("--data-dir", str(ten_scans))
    for name in ("noise_levels", "conditioning", "postprocessing"):
        run = launch(tmp_path, name, *given)
        assert run.code == 0, run.output
        front = json.loads((tmp_path / f"out/sweeps/{name}/pareto.json").read_text())
        assert front["points"]
        assert "Pareto front on validation" in run.output
        dry = launch(tmp_path, name, *given, "--dry-run")
        assert dry.code == 0, dry.output
        assert "trials that have ended already: 1 of 1" in dry.output
        assert "to be made" not in dry.output
    assert len(list((tmp_path / "out/artifacts/checkpoint").glob("[0-9a-f]*"))) == 1


@pytest.mark.nightly
def test_a_finished_sweep_is_extended_within_its_budget(ten_scans: Path, tmp_path: Path) -> None:
    plain: dict[str, Any] = {
        "data__data_dir": str(ten_scans),
        "search__scheduler": "none",
        "search__training__trials": 1,
        "pretraining__enabled": False,
    }
    first = launch(tmp_path, "quickstart", **plain)
    assert first.code == 0, first.output
    spent = json.loads((tmp_path / "out/sweeps/quickstart/budget.json").read_text())
    assert spent["cpu_hours"] > 0
    more = launch(tmp_path, "quickstart", "--extend", "1", **plain)
    assert more.code == 0, more.output
    numbers = [row["name"].replace("champion = ", "") for row in leaderboard(tmp_path, "quickstart")]
    assert sorted(name for name in numbers if name.isdigit()) == ["0000", "0001"]
    again = launch(tmp_path, "quickstart", "--resume", **plain)  # the file's one trial; two are known and done
    assert again.code == 0, again.output
    later = json.loads((tmp_path / "out/sweeps/quickstart/budget.json").read_text())
    assert later["cpu_hours"] > spent["cpu_hours"]
    over = launch(tmp_path, "quickstart", "--extend", "1", search__maximum_seconds=later["seconds"], **plain)
    assert over.code == 0, over.output
    assert "no new training starts" in over.output
    learnt = launch(tmp_path, "quickstart", "--name", "second", search__warm_start=["quickstart"], **plain)
    assert learnt.code == 0, learnt.output
    kept = json.loads((tmp_path / "out/sweeps/second/warm_start.json").read_text())
    assert sorted(trial["name"] for trial in kept["trials"]) == ["quickstart/0000", "quickstart/0001"]
