"""The best weights so far: kept when better, never lost, never those of another training."""

import logging
import math
from pathlib import Path

import pytest
import torch

from cddpm.errors import ArtifactError
from cddpm.training import best, checkpoint
from cddpm.training.best import Criterion

LOWER, HIGHER = Criterion("val/loss", "lower"), Criterion("monitor/objective", "higher")


def offered(folder: Path, criterion: Criterion, values: list[float], start: int = 0) -> list[bool]:
    """Whether each of ``values`` was kept; its weights are its number."""
    return [
        best.offer(folder, criterion, 10 * i, value, {"w": torch.tensor([float(i)])}, "name")
        for i, value in enumerate(values, start)
    ]


def kept(folder: Path, criterion: Criterion) -> float:
    return float(best.weights(folder, criterion, "name")["w"])


@pytest.mark.parametrize(
    ("criterion", "values", "expected", "number"),
    [
        (LOWER, [3.0, 1.0, 2.0], [True, True, False], 1),
        (HIGHER, [3.0, 1.0, 4.0], [True, False, True], 2),
        (LOWER, [1.0, 1.0], [True, False], 0),  # the first of equals
        (HIGHER, [-2.0, -1.0, -1.0], [True, True, False], 1),
        (LOWER, [math.nan, 5.0, math.inf, -math.inf], [False, True, False, False], 1),
    ],
)
def test_the_best_is_kept_alone(
    tmp_path: Path, criterion: Criterion, values: list[float], expected: list[bool], number: int
) -> None:
    assert offered(tmp_path, criterion, values) == expected
    assert kept(tmp_path, criterion) == number
    assert len(list(tmp_path.glob("best-*"))) == 1


def test_offering_again_changes_nothing(tmp_path: Path) -> None:
    offered(tmp_path, LOWER, [3.0, 1.0, 2.0])
    assert offered(tmp_path, LOWER, [3.0, 1.0, 2.0]) == [False] * 3
    assert kept(tmp_path, LOWER) == 1


def test_a_crash_between_keeping_and_dropping_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    offered(tmp_path, LOWER, [3.0])
    monkeypatch.setattr(best.shutil, "rmtree", lambda *a, **k: None)
    offered(tmp_path, LOWER, [1.0], start=1)
    assert len(list(tmp_path.glob("best-*"))) == 2
    assert kept(tmp_path, LOWER) == 1
    monkeypatch.undo()
    offered(tmp_path, LOWER, [2.0, 0.5], start=2)
    assert kept(tmp_path, LOWER) == 3
    assert len(list(tmp_path.glob("best-*"))) == 1


def test_without_any_finite_value_there_is_no_best(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        offered(tmp_path, LOWER, [math.nan])
    assert "val/loss is nan after 0 images" in caplog.text
    with pytest.raises(ArtifactError, match=r"no validation had a finite val/loss.*set training\.keep: last"):
        best.weights(tmp_path, LOWER, "name")


def test_damaged_or_foreign_weights_are_refused(tmp_path: Path) -> None:
    offered(tmp_path, LOWER, [1.0])
    with pytest.raises(ArtifactError, match=r"belongs to another training \(name, not other\)"):
        best.weights(tmp_path, LOWER, "other")
    (tmp_path / "best-000000000000" / checkpoint.WEIGHTS).write_bytes(b"x")
    with pytest.raises(ArtifactError, match=r"altered or damaged.*delete the folder .* to train from the start"):
        best.weights(tmp_path, LOWER, "name")


def test_only_two_ends() -> None:
    with pytest.raises(ValueError, match="better: 'middle'; allowed are lower and higher"):
        Criterion("x", "middle").prefers(1.0, 2.0)
