"""What a person is told after a sweep."""

from pathlib import Path

import built_sweep
import pytest

from cddpm.search import report
from cddpm.search.sweep import Summary


@pytest.mark.parametrize(
    ("version", "promoted", "model"), [(3, True, "champion"), (3, False, "3"), (None, False, "champion")]
)
def test_the_next_commands_mean_the_models_of_this_sweep(
    tmp_path: Path, version: int | None, promoted: bool, model: str
) -> None:
    config = built_sweep.config(tmp_path)
    scan, picture = tmp_path / "scan.nii.gz", tmp_path / "champion.png"
    summary = Summary(tmp_path, [], [], version, picture, "http://127.0.0.1:5000", 0, scan, [], promoted)
    commands = dict(report._next(config, summary))
    assert f"--model {model} " in commands["find anomalies in a scan"]
    promote = commands.get("make it the champion all the same", "")
    assert ("registry promote 3 --alias champion --why 'best of sweep tiny'" in promote) == (model == "3")


def test_the_next_commands_name_a_model_that_is_not_the_usual_one(tmp_path: Path) -> None:
    usual = built_sweep.config(tmp_path)
    config = usual.model_copy(update={"tracking": usual.tracking.model_copy(update={"registered_model": "aims"})})
    picture, scan = tmp_path / "champion.png", tmp_path / "scan.nii.gz"
    summary = Summary(tmp_path, [], [], 3, picture, "http://127.0.0.1:5000", 0, scan, [], True)
    commands = dict(report._next(config, summary))
    assert " registry list --model aims " in commands["list checkpoints"]
    assert " --dataset A --model aims " in commands["pick the best one"]
    assert " --model champion --registered-model aims " in commands["find anomalies in a scan"]
    assert not any("aims" in command for command in dict(report._next(usual, summary)).values())
