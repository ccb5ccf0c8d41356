"""What a person is told after a sweep."""

import io
import re
import shlex
from dataclasses import replace
from pathlib import Path

import built_sweep
import pytest
from screen import lost, too_long

from cddpm.config import ScoringConfig
from cddpm.scoring.score import Evaluation
from cddpm.search import leaderboard, record, report
from cddpm.search.champion import Contender
from cddpm.search.registering import Registered
from cddpm.search.sweep import Summary
from cddpm.text import Console


@pytest.mark.parametrize(
    ("version", "promoted", "model"), [(3, True, "champion"), (3, False, "3"), (None, False, "champion")]
)
def test_the_next_commands_mean_the_models_of_this_sweep(
    tmp_path: Path, version: int | None, promoted: bool, model: str
) -> None:
    config = built_sweep.config(tmp_path)
    scan = tmp_path / "scan.nii.gz"
    summary = Summary(tmp_path, [], [], Registered(version, promoted, "", 0), "http://127.0.0.1:5000", scan, [])
    commands = dict(report._next(config, summary))
    assert f"--model {model} " in commands["find anomalies in a scan"]
    promote = commands.get("make it the champion all the same", "")
    assert ("registry promote 3 --alias champion --why 'best of sweep tiny'" in promote) == (model == "3")


def test_the_next_commands_name_a_model_that_is_not_the_usual_one(tmp_path: Path) -> None:
    usual = built_sweep.config(tmp_path)
    config = usual.model_copy(update={"tracking": usual.tracking.model_copy(update={"registered_model": "aims"})})
    scan = tmp_path / "scan.nii.gz"
    summary = Summary(tmp_path, [], [], Registered(3, True, "", 0), "http://127.0.0.1:5000", scan, [])
    commands = dict(report._next(config, summary))
    assert " registry list --model aims " in commands["list checkpoints"]
    assert " --dataset A --model aims " in commands["pick the best one"]
    assert " --model champion --registered-model aims " in commands["find anomalies in a scan"]
    assert not any("aims" in command for command in dict(report._next(usual, summary)).values())


def _scored(name: str, dice: float) -> Contender:
    rows = [{"dataset": dataset, "dice": dice} for dataset in ("A", "B")]
    test = Evaluation(rows, {dataset: {"dice": dice} for dataset in ("A", "B")})
    return Contender(name, dice, {"all": 0.1}, ScoringConfig(), test)


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str, str]:
    """What is told before and after a sweep of twelve trials: into a file, at 80 columns, at 60."""
    folder = tmp_path_factory.mktemp("the folder of a clinic")
    config = built_sweep.config(folder, "anomalies-in-t2-of-all-cohorts", 12, 8)
    sweep = built_sweep.drawn(folder, 12, 8, config.name)
    results = record.results(sweep)
    contenders = [
        replace(_scored("champion", 0.5), trial=results[0].number),
        _scored("unswept defaults", 0.4),
        _scored("intensity threshold", 0.1),
    ]
    rows = leaderboard.with_test(config, leaderboard.rows(sweep), contenders)
    front = [{"trial": 3, "values": {"dice": 0.5}, "params": {**results[0].params, **results[0].best.params}}]
    uri, scan = f"sqlite:///{folder}/mlflow.db", folder / "data/phantom-0123456789abcdef/Test/A/t2/subject_t2.nii.gz"
    summary = Summary(sweep, rows, contenders, Registered(3, False, "", 7), uri, scan, front)
    texts = []
    for width in (100_000, 80, 60):
        text = io.StringIO()
        console = Console(file=text, width=width)
        report.opening(config, console)
        report.closing(config, summary, console)
        texts.append(text.getvalue())
    return texts[0], texts[1], texts[2]


def test_nothing_that_is_told_is_broken_or_lost(ended: tuple[str, str, str]) -> None:
    unbroken, *narrow = ended
    for text, width in zip(narrow, (80, 60), strict=True):
        quoted = set(map(str, re.findall(r"'[^']+'", unbroken)))
        assert not [line for line in too_long(text, width) if line.strip(" \\") not in quoted]
        assert not lost(unbroken, text)


def test_the_next_commands_can_be_copied(ended: tuple[str, str, str]) -> None:
    unbroken, *narrow = (text.split("next\n")[1] for text in ended)
    for text in narrow:
        assert shlex.split(text.replace(" \\\n", " ")) == shlex.split(unbroken)
