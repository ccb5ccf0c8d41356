"""The diffusion objective: drawn per position, fixed validation, bit-equal after a stop."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_training import tiny_config

from cddpm.config import ExperimentConfig
from cddpm.data.store import SliceStore
from cddpm.training import checkpoint, diffusion
from cddpm.training.best import Criterion
from cddpm.training.loop import Hooks, Interrupted, Trainer
from cddpm.training.preview import Preview
from cddpm.training.ranks import Ranks

CPU = torch.device("cpu")
MANY = {"training__images": 24, "training__batch_size": 2, "training__evaluations": 1}


def rows(store: SliceStore, split: str) -> np.ndarray:
    return store.slice_ids(store.cohort("IXI", split, 0))


def objective(store: SliceStore, config: ExperimentConfig) -> diffusion.DiffusionObjective:
    return diffusion.DiffusionObjective(config, store, rows(store, "val"), Preview(config, store), CPU)


def trainer(store: SliceStore, config: ExperimentConfig, folder: Path) -> Trainer:
    made = objective(store, config)
    return Trainer(diffusion.STAGE, made, diffusion.recipe(config), rows(store, "train"), folder, "name", Ranks())


def test_the_recipe_is_the_configuration() -> None:
    recipe, config = diffusion.recipe(tiny_config()), tiny_config().training
    for name in ("images", "batch_size", "learning_rate", "weight_decay", "evaluations", "warmup_images"):
        assert getattr(recipe, name) == getattr(config, name)
    assert (recipe.decay, recipe.gradient_clip, recipe.ema_decay, recipe.optimizer) == ("cosine", 1.0, 0.9, "adam")
    assert recipe.seed != diffusion.recipe(tiny_config(seed=4)).seed


def test_a_batch_is_a_function_of_each_position(store: SliceStore) -> None:
    made, picked = objective(store, tiny_config()), rows(store, "train")[:8]
    positions = np.arange(40, 48)
    whole = made.batch(picked, positions)
    parts = [made.batch(picked[rank::2], positions[rank::2]) for rank in range(2)]
    for i, tensor in enumerate(whole):
        assert torch.equal(tensor[0::2], parts[0][i])
        assert torch.equal(tensor[1::2], parts[1][i])
    moved = made.batch(picked, positions + 8)
    assert all(not torch.equal(a, b) for a, b in zip(whole, moved, strict=True))


@pytest.mark.slow
def test_what_is_drawn_has_the_right_distribution(store: SliceStore) -> None:
    made = objective(store, tiny_config(training__augmentation__enabled=False))
    count = 3000
    slices, levels, noise, dropped = made.batch(np.zeros(count, int), np.arange(count))
    assert torch.equal(slices[0], slices[-1])
    assert (int(levels.min()), int(levels.max())) == (0, 49)
    assert float(levels.double().mean()) == pytest.approx(24.5, abs=1.2)
    assert float(dropped.double().mean()) == pytest.approx(0.3, abs=0.04)
    assert float(noise.std()) == pytest.approx(1, abs=0.01)


def test_without_condition_dropout_nothing_is_dropped(store: SliceStore) -> None:
    made = objective(store, tiny_config(diffusion__condition_dropout=0.0))
    assert made.batch(rows(store, "train")[:2], np.arange(2))[3] is None


def test_the_start_depends_on_the_seed_alone(store: SliceStore) -> None:
    torch.manual_seed(1)
    first = objective(store, tiny_config()).module.state_dict()
    torch.manual_seed(2)
    again, other = (objective(store, tiny_config(seed=s)).module.state_dict() for s in (3, 4))
    assert all(torch.equal(first[n], again[n]) for n in first)
    assert any(not torch.equal(first[n], other[n]) for n in first)


@pytest.mark.slow
def test_validation_is_fixed(store: SliceStore) -> None:
    made = objective(store, tiny_config())
    made.module.eval()
    with torch.inference_mode():
        first = made.validate(made.module, Ranks())
        torch.manual_seed(99)
        assert made.validate(made.module, Ranks()) == first
    assert set(first) == {"val/loss", "monitor/A/dice", "monitor/objective"}


@pytest.mark.slow
def test_validation_does_not_depend_on_the_batch_size(store: SliceStore) -> None:
    losses = []
    for size in (1, 4, 8):
        made = objective(store, tiny_config(training__batch_size=size))
        made.module.eval()
        with torch.inference_mode():
            losses.append(made._validation_loss(made.module, Ranks()))
    assert losses == pytest.approx([losses[0]] * 3, rel=1e-5)


def test_validation_levels_span_the_whole_range(store: SliceStore) -> None:
    made, seen = objective(store, tiny_config()), []

    def module(slices: torch.Tensor, levels: torch.Tensor, noise: torch.Tensor, dropped: None) -> torch.Tensor:
        seen.append(levels)
        return torch.tensor(0.5)

    assert made._validation_loss(module, Ranks()) == 0.5
    assert sorted(torch.cat(seen).tolist()) == [0, 10, 20, 29, 39, 49]  # linspace(0, 49, 6), rounded


# Validation drawn anew


def drawn(store: SliceStore, images: int, **values: Any) -> tuple[np.ndarray, torch.Tensor, tuple[Any, ...]]:
    return objective(store, tiny_config(training__validation_draw="random", **values))._validation_draw(images)


@pytest.mark.slow
def test_a_random_draw_takes_one_slice_of_each_healthy_volume(store: SliceStore) -> None:
    volumes = store.cohort("IXI", "val", 0)
    seen = set()
    for images in range(0, 4000, 40):
        picked, levels, _ = drawn(store, images)
        assert [row in store.slice_ids([v]) for row, v in zip(picked, volumes, strict=True)] == [True] * len(volumes)
        assert ((levels >= 0) & (levels < 50)).all()
        seen |= {(int(row), int(level)) for row, level in zip(picked, levels, strict=True)}
    assert {row for row, _ in seen} == set(store.slice_ids(volumes).tolist())
    assert len({level for _, level in seen}) > 40


@pytest.mark.slow
def test_a_random_draw_is_decided_by_the_images_seen_and_the_seed(store: SliceStore) -> None:
    made = objective(store, tiny_config(training__validation_draw="random"))
    made.module.eval()
    with torch.inference_mode():
        first = made.validate(made.module, Ranks(), 16)
        torch.manual_seed(99)
        assert made.validate(made.module, Ranks(), 16) == first
        assert made.validate(made.module, Ranks(), 32)["val/loss"] != first["val/loss"]
    (one, two), other = (drawn(store, 16) for _ in range(2)), drawn(store, 16, seed=4)
    assert (one[0].tolist(), one[1].tolist(), one[2]) == (two[0].tolist(), two[1].tolist(), two[2])
    assert (one[0].tolist(), one[1].tolist()) != (other[0].tolist(), other[1].tolist())


# Shared noise


def test_shared_noise_is_one_rounded_field_per_batch_of_all_workers(store: SliceStore) -> None:
    made = objective(store, tiny_config(diffusion__noise__shared=True))
    picked, positions = rows(store, "train")[:8], np.arange(40, 48)  # two batches of 4
    noise = made.batch(picked, positions)[2]
    assert torch.equal(noise, noise.half().float())
    assert all(torch.equal(noise[i], noise[4 * (i // 4)]) for i in range(8))
    assert not torch.allclose(noise[0], noise[4], atol=0.1)
    parts = [made.batch(picked[rank::2], positions[rank::2])[2] for rank in range(2)]
    assert torch.equal(parts[0][0], parts[1][0])


# Boxes

PATCHED = {"diffusion__patch__enabled": True, "diffusion__patch__size": 12}


def test_a_patched_batch_has_a_box_per_position(store: SliceStore) -> None:
    made, plain = objective(store, tiny_config(**PATCHED)), objective(store, tiny_config())
    picked, positions = np.resize(rows(store, "train"), 200), np.arange(200)
    *rest, corners = made.batch(picked, positions)
    assert all(torch.equal(a, b) for a, b in zip(rest, plain.batch(picked, positions), strict=True))
    assert {tuple(corner) for corner in corners.tolist()} == {(a, b) for a in (0, 12, 20) for b in (0, 12, 20)}
    assert torch.equal(made.batch(picked[5:9], positions[5:9])[-1], corners[5:9])
    anywhere = objective(store, tiny_config(**PATCHED, diffusion__patch__placement="random"))
    assert len({tuple(corner) for corner in anywhere.batch(picked, positions)[-1].tolist()}) > 100


@pytest.mark.slow
@pytest.mark.parametrize("draw", ["fixed", "random"])
def test_patched_validation_is_fixed_and_does_not_depend_on_the_batch_size(store: SliceStore, draw: str) -> None:
    losses = []
    for size in (1, 4, 4):
        made = objective(store, tiny_config(**PATCHED, training__batch_size=size, training__validation_draw=draw))
        made.module.eval()
        torch.manual_seed(size)
        with torch.inference_mode():
            losses.append(made._validation_loss(made.module, Ranks(), 8))
    assert losses == pytest.approx([losses[0]] * 3, rel=1e-5)
    made = objective(store, tiny_config(training__validation_draw=draw))
    made.module.eval()
    with torch.inference_mode():
        assert made._validation_loss(made.module, Ranks(), 8) != pytest.approx(losses[0], rel=1e-3)


# Which weights are kept


@pytest.mark.slow
def test_what_is_kept_names_a_metric_of_the_validation(store: SliceStore) -> None:
    made = objective(store, tiny_config())
    made.module.eval()
    with torch.inference_mode():
        metrics = made.validate(made.module, Ranks(), 0)
    criteria = {keep: diffusion.recipe(tiny_config(training__keep=keep)).keep for keep in ("best-loss", "best-score")}
    assert criteria["best-loss"] == Criterion("val/loss", "lower")
    assert criteria["best-score"] == Criterion("monitor/objective", "higher")
    assert {criterion.metric for criterion in criteria.values()} <= metrics.keys()
    assert diffusion.recipe(tiny_config()).keep is None


# Stopping


def history(folder: Path) -> list[dict[str, float]]:
    lines = checkpoint.read_history(folder / checkpoint.HISTORY)
    return [{k: v for k, v in row.items() if "per_second" not in k} for row in lines]


def everything(t: Trainer) -> dict[str, torch.Tensor]:
    slots = t.optimizer.state_dict()["state"].items()
    average = {f"average.{k}": v for k, v in t.average.items()}
    return {**t.module.state_dict(), **average, **{f"{i}.{k}": v for i, slot in slots for k, v in slot.items()}}


REFERENCE_LIKE = {
    "training__validation_draw": "random",
    "training__keep": "best-loss",
    "training__evaluations": 3,
    "training__validation_volumes": 1,
    "diffusion__noise__shared": True,
    "diffusion__patch__enabled": True,
    "diffusion__patch__size": 16,
    "diffusion__patch__placement": "random",
}


@pytest.mark.slow
@pytest.mark.parametrize("values", [pytest.param({}, marks=pytest.mark.nightly), REFERENCE_LIKE])
def test_stop_and_resume_is_bit_equal_with_all_randomness_on(
    store: SliceStore, tmp_path: Path, values: dict[str, Any]
) -> None:
    config = tiny_config(**{**MANY, **values})
    plain = trainer(store, config, tmp_path / "plain")
    weights = plain.run(Hooks())
    with pytest.raises(Interrupted, match="stopped after 20 images"):
        trainer(store, config, tmp_path / "stopped").run(Hooks(stop=lambda: True))
    resumed = trainer(store, config, tmp_path / "stopped")
    again = resumed.run(Hooks())
    assert all(torch.equal(weights[n], again[n]) for n in weights)
    one, two = everything(plain), everything(resumed)
    assert one.keys() == two.keys()
    assert all(torch.equal(one[n], two[n]) for n in one)
    assert history(tmp_path / "stopped") == history(tmp_path / "plain")


class EnoughError(Exception):
    """Ends a training before it validates."""


def first_losses(store: SliceStore, folder: Path, **values: Any) -> list[float]:
    """Of eight steps."""
    losses: list[float] = []

    def note(stage: str, images: int, budget: int, loss: float) -> None:
        losses.append(loss)
        if len(losses) == 8:
            raise EnoughError

    config = tiny_config(training__images=32, training__evaluations=1, training__validation_volumes=1, **values)
    with pytest.raises(EnoughError):
        trainer(store, config, folder).run(Hooks(progress=note))
    return losses


@pytest.fixture(scope="module")
def usual_losses(store: SliceStore, tmp_path_factory: pytest.TempPathFactory) -> list[float]:
    return first_losses(store, tmp_path_factory.mktemp("usual"))


@pytest.mark.nightly
@pytest.mark.parametrize(
    "change", [{"model__dropout": 0.0}, {"encoder__drop_path": 0.0}, {"diffusion__condition_dropout": 0.1}]
)
def test_the_randomness_is_really_on(
    store: SliceStore, tmp_path: Path, usual_losses: list[float], change: dict[str, Any]
) -> None:
    # the first steps agree: some layers start at zero, and hide the condition
    assert first_losses(store, tmp_path, **change) != usual_losses
