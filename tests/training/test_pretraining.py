"""SparK as an objective: masks drawn per position, fixed validation, bit-equal after a stop."""

from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_training import tiny_config

from cddpm.config import ExperimentConfig
from cddpm.data.store import SliceStore
from cddpm.training import checkpoint, pretraining
from cddpm.training.loop import Hooks, Interrupted, Trainer
from cddpm.training.ranks import Ranks

CONFIG = tiny_config(pretraining__images=24, pretraining__batch_size=2, pretraining__evaluations=2)


def rows(store: SliceStore, split: str) -> np.ndarray:
    return store.slice_ids(store.cohort("IXI", split, 0))


def objective(store: SliceStore, config: ExperimentConfig = CONFIG) -> pretraining.PretrainingObjective:
    return pretraining.PretrainingObjective(config, store, rows(store, "val"), torch.device("cpu"))


def trainer(store: SliceStore, folder: Path) -> Trainer:
    recipe = pretraining.recipe(CONFIG)
    return Trainer(pretraining.STAGE, objective(store), recipe, rows(store, "train"), folder, "name", Ranks())


def test_the_recipe_decays_to_zero() -> None:
    recipe = pretraining.recipe(CONFIG)
    assert (recipe.optimizer, recipe.decay, recipe.warmup_images, recipe.ema_decay) == ("adamw", "cosine", 0, 0.0)
    assert recipe.learning_rate_at(12) == pytest.approx(0.5e-3)
    assert recipe.learning_rate_at(24) == pytest.approx(0)


def test_masks_are_a_function_of_the_position(store: SliceStore) -> None:
    made, picked, positions = objective(store), rows(store, "train")[:8], np.arange(8, 16)
    slices, masks = made.batch(picked, positions)
    assert masks.flatten(1).sum(1).tolist() == [1] * 8  # 35 % of 4 patches
    for rank in range(2):
        part = made.batch(picked[rank::2], positions[rank::2])
        assert torch.equal(part[0], slices[rank::2])
        assert torch.equal(part[1], masks[rank::2])
    assert not torch.equal(made.batch(picked, positions + 100)[1], masks)


@pytest.mark.slow
def test_validation_is_fixed(store: SliceStore) -> None:
    made = objective(store)
    made.module.eval()
    with torch.inference_mode():
        first = made.validate(made.module, Ranks())
        torch.manual_seed(99)
        assert made.validate(made.module, Ranks()) == first
    assert list(first) == ["pretrain/val_loss"]


@pytest.mark.slow
def test_stop_and_resume_is_bit_equal(store: SliceStore, tmp_path: Path) -> None:
    plain = trainer(store, tmp_path / "plain")
    plain.run(Hooks())
    with pytest.raises(Interrupted, match="pretrain: stopped after 20 images"):
        trainer(store, tmp_path / "stopped").run(Hooks(stop=lambda: True))
    resumed = trainer(store, tmp_path / "stopped")
    resumed.run(Hooks())
    one, two = plain.module.state_dict(), resumed.module.state_dict()
    assert all(torch.equal(one[n], two[n]) for n in one)
    slots = [t.optimizer.state_dict()["state"] for t in (plain, resumed)]
    assert all(torch.equal(slots[0][i][k], slots[1][i][k]) for i in slots[0] for k in slots[0][i])
    histories = [checkpoint.read_history(tmp_path / name / checkpoint.HISTORY) for name in ("plain", "stopped")]
    kept = [[(r["images"], r["pretrain/loss"], r["pretrain/val_loss"]) for r in lines] for lines in histories]
    assert kept[0] == kept[1]


def test_the_encoder_leaves_without_the_decoder(store: SliceStore) -> None:
    made = objective(store)
    state = made.spark.encoder_state()
    assert state
    assert not any(name.startswith(("dense_decoder", "sparse_encoder", "mask_tokens", "fc.")) for name in state)
