"""The training loop on a toy network: stopping and resuming changes no bit, schedules by hand-worked numbers."""

import dataclasses
import logging
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from cddpm.training import checkpoint
from cddpm.training.best import Criterion
from cddpm.training.loop import DivergedError, Hooks, Interrupted, Recipe, Trainer
from cddpm.training.ranks import Ranks

ROWS = np.arange(11)
RECIPE = Recipe(
    images=100,
    batch_size=4,
    learning_rate=1e-2,
    weight_decay=0.1,
    evaluations=5,
    seed=7,
    optimizer="adamw",
    warmup_images=16,
    decay="cosine",
    gradient_clip=0.5,
    ema_decay=0.6,  # reached after 14 steps
)


class ToyLoss(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Dropout(0.3), nn.Linear(8, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x).square().mean()


class Toy:
    """An objective that notes the positions it was asked for."""

    replayable = True

    def __init__(self) -> None:
        self.module: nn.Module = ToyLoss()
        self.seen: list[int] = []
        self.validations = 0

    def batch(self, rows: np.ndarray, positions: np.ndarray) -> tuple[Tensor]:
        self.seen += list(positions)
        return (torch.tensor(np.stack([rows + 1.0, rows % 3, np.ones(len(rows))], 1), dtype=torch.float32) / 5,)

    def validate(self, module: nn.Module, ranks: Ranks, images: int) -> dict[str, float]:
        self.validations += 1
        assert not module.training
        return {"val/loss": float(module(torch.ones(2, 3)))}


class CrashError(Exception):
    pass


def trainer(folder: Path, **changes: Any) -> Trainer:
    return Trainer("train", Toy(), dataclasses.replace(RECIPE, **changes), ROWS, folder, "toy", Ranks())


def snapshot(t: Trainer, weights: dict[str, Tensor]) -> dict[str, Any]:
    state = t.optimizer.state_dict()
    flat = {f"{i}.{k}": v for i, slot in state["state"].items() for k, v in slot.items()}
    return {**weights, **t.module.state_dict(), **flat, **{f"ema.{k}": v for k, v in (t.average or {}).items()}}


def same(a: dict[str, Any], b: dict[str, Any]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def history(folder: Path) -> list[dict[str, float]]:
    rows = checkpoint.read_history(folder / checkpoint.HISTORY)
    return [{k: v for k, v in row.items() if "per_second" not in k} for row in rows]


def crash_after(step: int) -> Hooks:
    def progress(stage: str, images: int, budget: int, loss: float) -> None:
        if images == step * RECIPE.batch_size:
            raise CrashError

    return Hooks(progress=progress)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], list[dict[str, float]]]:
    folder = tmp_path_factory.mktemp("undisturbed")
    t = trainer(folder)
    return snapshot(t, t.run(Hooks())), history(folder)


STEPS = [
    step if step in (1, 4, 5, 6, 13, 24, 25) else pytest.param(step, marks=pytest.mark.nightly) for step in range(1, 26)
]
"""First, last, in the middle, and around a milestone; all of them at night."""


@pytest.mark.slow
@pytest.mark.parametrize("step", STEPS)
def test_a_crash_after_any_step_changes_no_bit(tmp_path: Path, undisturbed: Any, step: int) -> None:
    with pytest.raises(CrashError):
        trainer(tmp_path).run(crash_after(step))
    t = trainer(tmp_path)
    assert same(snapshot(t, t.run(Hooks())), undisturbed[0])
    assert history(tmp_path) == undisturbed[1]
    assert t.objective.seen == list(range((step - 1) // 5 * 20, 100))  # from the last milestone on


@pytest.mark.slow
def test_stops_change_no_bit(tmp_path: Path, undisturbed: Any) -> None:
    for images in (40, 80):
        with pytest.raises(Interrupted, match=f"train: stopped after {images} images; its state is saved"):
            trainer(tmp_path).run(Hooks(stop=lambda: True))
    t = trainer(tmp_path)
    assert same(snapshot(t, t.run(Hooks())), undisturbed[0])
    assert history(tmp_path) == undisturbed[1]
    assert t.objective.seen == list(range(80, 100))


@pytest.mark.slow
def test_a_stop_between_milestones_keeps_the_losses_so_far(tmp_path: Path) -> None:
    plain, stopped = tmp_path / "plain", tmp_path / "stopped"
    trainer(plain, evaluations=1).run(Hooks())
    with pytest.raises(Interrupted):
        trainer(stopped, evaluations=1).run(Hooks(stop=lambda: True))
    trainer(stopped, evaluations=1).run(Hooks())
    assert history(stopped) == history(plain)


@pytest.mark.slow
@pytest.mark.parametrize("when", ["validating", "reporting"])
@pytest.mark.parametrize("milestone", [1, 3, 5])
def test_a_crash_while_validating_loses_no_point(tmp_path: Path, undisturbed: Any, when: str, milestone: int) -> None:
    t, calls = trainer(tmp_path), []

    def crash(*args: Any) -> Any:
        calls.append(args)
        if len(calls) == milestone:
            raise CrashError
        return {} if when == "reporting" else Toy.validate(t.objective, *args)

    if when == "validating":
        t.objective.validate = crash
    with pytest.raises(CrashError):
        t.run(Hooks(report=crash if when == "reporting" else lambda m: None))
    t = trainer(tmp_path)
    assert same(snapshot(t, t.run(Hooks())), undisturbed[0])
    assert history(tmp_path) == undisturbed[1]
    assert t.objective.validations == 5 - milestone + (when == "validating")
    assert len(t.objective.seen) == 100 - 20 * milestone  # no step is made twice


@pytest.mark.slow
def test_running_a_finished_training_again_does_nothing(tmp_path: Path, undisturbed: Any) -> None:
    trainer(tmp_path).run(Hooks())
    t = trainer(tmp_path)
    assert same(snapshot(t, t.run(Hooks())), undisturbed[0])
    assert (t.objective.seen, t.objective.validations) == ([], 0)


@pytest.mark.slow
@pytest.mark.parametrize("damaged", [1, 2])
def test_damaged_states_cost_steps_but_never_correctness(
    tmp_path: Path, undisturbed: Any, damaged: int, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(CrashError):
        trainer(tmp_path).run(crash_after(17))
    for path in sorted(tmp_path.glob("images-*"))[-damaged:]:
        (path / checkpoint.WEIGHTS).write_bytes(b"damaged")
    t = trainer(tmp_path)
    if damaged == 2:  # as many as are kept
        with pytest.raises(checkpoint.ArtifactError, match="none of its 2 saved states is intact"):
            t.run(Hooks())
        return
    with caplog.at_level(logging.INFO):
        assert same(snapshot(t, t.run(Hooks())), undisturbed[0])
    assert "passing over a damaged state" in caplog.text
    assert "resuming at 40 images" in caplog.text
    assert history(tmp_path) == undisturbed[1]


@pytest.mark.slow
def test_each_setting_takes_part(tmp_path: Path, undisturbed: Any) -> None:
    """So that equality above means something."""
    changes: dict[str, Any] = {
        "seed": 8,
        "warmup_images": 0,
        "decay": "none",
        "gradient_clip": None,
        "ema_decay": 0.8,
        "weight_decay": 0.0,
        "optimizer": "adam",
        "precision": "bfloat16",
    }
    for name, value in changes.items():
        t = trainer(tmp_path / name, **{name: value})
        assert not same(snapshot(t, t.run(Hooks())), undisturbed[0]), name


def test_a_loss_that_is_not_finite_ends_the_training(tmp_path: Path) -> None:
    t = trainer(tmp_path)
    plain = t.objective.batch

    def batch(rows: np.ndarray, positions: np.ndarray) -> tuple[Tensor]:
        (x,) = plain(rows, positions)
        return (x * (math.inf if positions[0] == 48 else 1),)

    t.objective.batch = batch
    with pytest.raises(
        DivergedError, match=r"train: the loss became nan after 52 images; lower the learning rate \(0.01\)"
    ):
        t.run(Hooks())
    resumed = trainer(tmp_path)
    resumed.run(Hooks())  # what is saved is from before
    assert resumed.objective.seen[0] == 40


def test_progress_counts_images_and_reports_come_at_milestones(tmp_path: Path) -> None:
    seen: list[tuple[Any, ...]] = []
    reports: list[dict[str, float]] = []
    trainer(tmp_path).run(Hooks(report=reports.append, progress=lambda *a: seen.append(a[:3])))
    assert seen == [("train", 4 * step, 100) for step in range(1, 26)]
    assert [r["images"] for r in reports] == [20, 40, 60, 80, 100]
    assert reports == checkpoint.read_history(tmp_path / checkpoint.HISTORY)
    assert all(math.isfinite(v) for r in reports for v in r.values())


def test_the_history_holds_the_mean_loss_since_the_last_point(tmp_path: Path) -> None:
    losses: list[float] = []
    trainer(tmp_path).run(Hooks(progress=lambda stage, images, budget, loss: losses.append(loss)))
    means = [np.mean(losses[i : i + 5]) for i in range(0, 25, 5)]
    assert [r["train/loss"] for r in history(tmp_path)] == pytest.approx(means, rel=1e-12)


def test_validation_sees_the_average_and_leaves_the_weights_alone(tmp_path: Path) -> None:
    t = trainer(tmp_path)
    seen: list[bool] = []

    def validate(module: nn.Module, ranks: Ranks, images: int) -> dict[str, float]:
        seen.append(all(torch.equal(w, t.average[n]) for n, w in module.state_dict().items()))
        return {}

    t.objective.validate = validate
    weights = t.run(Hooks())
    assert seen == [True] * 5
    assert t.module.training
    assert not torch.equal(weights["net.0.weight"], t.module.state_dict()["net.0.weight"])


def test_moving_average_by_hand(tmp_path: Path) -> None:
    t = trainer(tmp_path, images=12, ema_decay=0.25, evaluations=1)
    seen: list[Tensor] = []
    average = t.run(Hooks(progress=lambda *a: seen.append(t.module.net[0].weight.detach().clone())))["net.0.weight"]
    # decay of step n is the lower of 0.25 and (1 + n) / (10 + n): 0.25 of step 2 is (1 + 2) / (10 + 2)
    by_hand = 0.25 * (0.25 * seen[0] + 0.75 * seen[1]) + 0.75 * seen[2]
    assert torch.allclose(average, by_hand, atol=1e-7)
    assert t.average["net.1.num_batches_tracked"] == 3  # whole numbers are copied


def test_without_an_average_the_weights_themselves_come_back(tmp_path: Path) -> None:
    t = trainer(tmp_path, ema_decay=0.0)
    weights = t.run(Hooks())
    assert all(torch.equal(w, t.module.state_dict()[n]) for n, w in weights.items())
    assert not list(tmp_path.glob("*/average.safetensors"))


# The best weights

LOSSES = {20: 3.0, 40: 1.0, 60: math.nan, 80: 1.0, 100: 2.0}
"""Of each validation: the best is after 40 images, and an equal one comes later."""
KEEP = Criterion("val/loss", "lower")


def keeping(folder: Path, **changes: Any) -> Trainer:
    t = trainer(folder, keep=KEEP, **changes)

    def validate(module: nn.Module, ranks: Ranks, images: int) -> dict[str, float]:
        t.objective.validations += 1
        return {"val/loss": LOSSES[images]}

    t.objective.validate = validate
    return t


@pytest.fixture(scope="module")
def best_weights(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tensor]:
    return keeping(tmp_path_factory.mktemp("best")).run(Hooks())


@pytest.mark.slow
@pytest.mark.parametrize("ema", [0.0, 0.6])
def test_the_best_weights_are_those_that_were_validated(tmp_path: Path, ema: float) -> None:
    t, seen = keeping(tmp_path, ema_decay=ema), {}
    validate = t.objective.validate

    def note(module: nn.Module, ranks: Ranks, images: int) -> dict[str, float]:
        seen[images] = {name: tensor.clone() for name, tensor in module.state_dict().items()}
        return validate(module, ranks, images)

    t.objective.validate = note
    found = t.run(Hooks())
    assert same(found, seen[40])
    assert not same(found, seen[80])
    assert not same(found, t.module.state_dict())


@pytest.mark.slow
def test_keeping_the_best_changes_no_step(tmp_path: Path, undisturbed: Any, best_weights: dict[str, Tensor]) -> None:
    t = keeping(tmp_path)
    assert same(t.run(Hooks()), best_weights)
    found, last = snapshot(t, {}), undisturbed[0]
    assert all(torch.equal(found[name], last[name]) for name in found if name.startswith("ema.") or "exp_avg" in name)


@pytest.mark.slow
@pytest.mark.parametrize("step", STEPS)
def test_a_crash_after_any_step_keeps_the_best(tmp_path: Path, best_weights: dict[str, Tensor], step: int) -> None:
    with pytest.raises(CrashError):
        keeping(tmp_path).run(crash_after(step))
    assert same(keeping(tmp_path).run(Hooks()), best_weights)


@pytest.mark.slow
def test_stops_keep_the_best(tmp_path: Path, best_weights: dict[str, Tensor]) -> None:
    for _ in range(2):
        with pytest.raises(Interrupted):
            keeping(tmp_path).run(Hooks(stop=lambda: True))
    assert same(keeping(tmp_path).run(Hooks()), best_weights)
    again = keeping(tmp_path)
    assert same(again.run(Hooks()), best_weights)  # a finished training finds them
    assert (again.objective.seen, again.objective.validations) == ([], 0)


@pytest.mark.slow
@pytest.mark.parametrize("milestone", [1, 2, 3, 5])
def test_a_crash_between_the_best_and_the_history_keeps_it(
    tmp_path: Path, best_weights: dict[str, Tensor], milestone: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def crash(*args: Any) -> None:
        calls.append(args)
        if len(calls) == milestone:
            raise CrashError
        append(*args)

    append = checkpoint.append_history
    monkeypatch.setattr(checkpoint, "append_history", crash)
    with pytest.raises(CrashError):
        keeping(tmp_path).run(Hooks())
    monkeypatch.undo()
    assert same(keeping(tmp_path).run(Hooks()), best_weights)


@pytest.mark.slow
def test_a_damaged_state_before_the_best_makes_it_again(tmp_path: Path, best_weights: dict[str, Tensor]) -> None:
    with pytest.raises(CrashError):
        keeping(tmp_path).run(crash_after(11))
    (tmp_path / "images-000000000040" / checkpoint.WEIGHTS).write_bytes(b"damaged")
    t = keeping(tmp_path)
    assert same(t.run(Hooks()), best_weights)
    assert t.objective.seen[0] == 20


# Schedules

LR = dataclasses.replace(RECIPE, images=1100, batch_size=100, learning_rate=1.0, warmup_images=100)


@pytest.mark.parametrize(
    ("changes", "images", "expected"),
    [
        ({}, 0, 0.5),  # (0 + 100) / (100 + 100)
        ({}, 100, 1.0),
        ({}, 600, 0.5),
        ({}, 350, 0.5 * (1 + math.sqrt(0.5))),
        ({}, 1000, 0.5 * (1 + math.cos(0.9 * math.pi))),
        ({}, 1100, 0.0),
        ({}, 2000, 0.0),
        ({"decay": "none"}, 1000, 1.0),
        ({"decay": "none", "warmup_images": 300}, 0, 0.25),
        ({"decay": "none", "warmup_images": 300}, 200, 0.75),
        ({"decay": "none", "warmup_images": 0}, 0, 1.0),
        ({"warmup_images": 0, "images": 1000}, 250, 0.5 * (1 + math.sqrt(0.5))),
    ],
)
def test_learning_rate_by_hand(changes: dict[str, Any], images: int, expected: float) -> None:
    assert dataclasses.replace(LR, **changes).learning_rate_at(images) == pytest.approx(expected, abs=1e-12)


def test_the_optimizer_takes_the_scheduled_rate(tmp_path: Path) -> None:
    t = trainer(tmp_path)
    rates: list[float] = []
    t.run(Hooks(progress=lambda *a: rates.append(t.optimizer.param_groups[0]["lr"])))
    assert rates == [RECIPE.learning_rate_at(4 * step) for step in range(25)]


@pytest.mark.parametrize("evaluations", [1, 2, 3, 7, 10])
def test_milestones_end_with_the_last_step(evaluations: int) -> None:
    for images in range(4, 400, 4):
        recipe = dataclasses.replace(RECIPE, images=images, evaluations=evaluations)
        milestones = recipe.milestones()
        assert max(milestones) == recipe.steps == images // 4
        assert len(milestones) == min(evaluations, recipe.steps)
        assert min(milestones) >= 1


def test_milestones_by_hand() -> None:
    assert dataclasses.replace(RECIPE, images=40, evaluations=4).milestones() == {2, 5, 8, 10}  # 2.5, 7.5: to even


@pytest.mark.parametrize(("field", "value"), [("optimizer", "sgd"), ("decay", "step"), ("precision", "float16")])
def test_closed_choices(tmp_path: Path, field: str, value: str) -> None:
    with pytest.raises(ValueError, match=value):
        trainer(tmp_path, **{field: value}).run(Hooks())
