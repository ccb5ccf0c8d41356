"""Results do not depend on the number of workers, on batch sizes, on the order of volumes or on threads."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from tiny_training import make_store, tiny_config, train
from torch import Tensor, nn
from two_ranks import join, launch

from cddpm.config import ExperimentConfig, ScoringConfig
from cddpm.data.store import SliceStore
from cddpm.reconstruct.cohort import Cohort
from cddpm.reconstruct.reconstruction import Key, Reconstruction
from cddpm.scoring.score import Evaluation, evaluate
from cddpm.training import checkpoint, diffusion, prediction, pretraining, stages
from cddpm.training.loop import Hooks, Trainer
from cddpm.training.order import Rows
from cddpm.training.preview import Preview
from cddpm.training.ranks import Ranks

pytestmark = pytest.mark.slow

Arrays = dict[Key, NDArray[np.float16]]
WORKERS = {"model__dropout": 0.0}
"""Masks of dropout alone are drawn per worker; condition dropout and stochastic depth are on."""


def validation(store: SliceStore, config: ExperimentConfig) -> list[int]:
    return Cohort.of(store, config.data, "val").volumes


def numbers(store: SliceStore, cache: Path, config: ExperimentConfig, **settings: Any) -> Evaluation:
    scorer = Cohort.of(store, config.data, "val").scorer(Reconstruction.open(cache), **settings)
    scoring = ScoringConfig(minimum_component_voxels=2, median_kernel=3, erosion_divisor=None, guidance_scale=1.5)
    return evaluate(scorer, scoring, scorer.score(scoring).thresholds)


def by_volume(evaluation: Evaluation) -> dict[str, dict[str, Any]]:
    return {row["volume"]: {k: v for k, v in row.items() if k != "volume_index"} for row in evaluation.rows}


def kept(path: Path) -> dict[str, Arrays]:
    cache = Reconstruction.open(path)
    keys = [(level, seed) for level in cache.levels for seed in cache.seeds]
    return {
        volume: {(branch, *key): getattr(cache, branch)(volume, *key) for branch in "cd" for key in keys}
        for volume in cache.volumes
    }


def same(a: dict[str, Arrays], b: dict[str, Arrays]) -> bool:
    return a.keys() == b.keys() and all(
        a[volume].keys() == b[volume].keys() and all(np.array_equal(a[volume][k], b[volume][k]) for k in a[volume])
        for volume in a
    )


@pytest.fixture(scope="module")
def reconstruction(finished: Any, store: SliceStore) -> Path:
    """Of the validation volumes, by one process."""
    volumes = validation(store, finished.config)
    return prediction.reconstruct(finished.config, finished.place, finished.made.checkpoint, volumes, Ranks(), Hooks())


# Workers


class ExactPretraining(pretraining.PretrainingObjective):
    """In float64, where rounding does not grow to anything within a few steps of Adam."""

    def __init__(self, store: SliceStore, config: ExperimentConfig) -> None:
        super().__init__(config, store, store.slice_ids(store.cohort("IXI", "val", 0)), torch.device("cpu"))
        self.module.double()

    def _batch(self, rows: Rows, seeds: list[int]) -> tuple[Tensor, Tensor]:
        slices, masks = super()._batch(rows, seeds)
        return slices.double(), masks


class ExactDiffusion(diffusion.DiffusionObjective):
    """In float64; the loss alone is float32."""

    def __init__(self, store: SliceStore, config: ExperimentConfig) -> None:
        rows = store.slice_ids(store.cohort("IXI", "val", 0))
        super().__init__(config, store, rows, Preview(config, store), torch.device("cpu"))
        self.module.double()
        self.model.unet.time_embed.register_forward_pre_hook(lambda module, given: given[0].double())

    def _noised(self, slices: Tensor, levels: Tensor, seeds: list[int]) -> tuple[Tensor, Tensor, Tensor]:
        slices, levels, fields = super()._noised(slices, levels, seeds)
        return slices.double(), levels, fields.double()

    def validate(self, module: nn.Module, ranks: Ranks, images: int = 0) -> dict[str, float]:
        return {"val/loss": self._validation_loss(module, ranks, images)}


EXACT: dict[str, tuple[Any, Any]] = {
    "pretrain": (ExactPretraining, pretraining.recipe),
    "train": (ExactDiffusion, diffusion.recipe),
}


BRIEF = {
    "pretraining__images": 16,
    "pretraining__evaluations": 2,
    "training__images": 24,
    "training__evaluations": 2,
}
SHORT = {**WORKERS, **BRIEF}


def exactly(stage: str, store_path: Path, folder: Path, ranks: Ranks) -> dict[str, Tensor]:
    """Weights after a training, and everything that was validated on the way."""
    (objective, recipe), config, store = EXACT[stage], tiny_config(**SHORT), SliceStore.open(store_path)
    rows, told = store.slice_ids(store.cohort("IXI", "train", 0)), []
    trainer = Trainer(stage, objective(store, config), recipe(config), rows, folder / stage, stage, ranks)
    weights = trainer.run(Hooks(report=told.append))
    losses = [[row[name] for name in sorted(row) if name.endswith("loss")] for row in told]
    return {**weights, "losses": torch.tensor(losses, dtype=torch.float64)}


GENTLE = {**SHORT, "training__learning_rate": 1e-5, "pretraining__learning_rate": 1e-5}
"""Adam's first steps follow the sign of a gradient: at a high rate, float32's rounding soon moves weights by percents."""


def with_two_workers(rank: int, folder: Path, store: Path, checkpoint_path: Path) -> None:
    ranks = join(rank, folder)
    torch.save({stage: exactly(stage, store, folder, ranks) for stage in EXACT}, folder / f"exact{rank}")
    place, config = stages.Place(folder / "two", store), tiny_config(**GENTLE, compute__workers=2)
    made = stages.train(config, place, ranks, Hooks())
    volumes = validation(SliceStore.open(store), config)
    cache = prediction.reconstruct(tiny_config(), place, checkpoint_path, volumes, ranks, Hooks())
    (folder / f"rank{rank}.json").write_text(json.dumps([str(made.encoder), str(made.checkpoint), str(cache)]))
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def two(finished: Any, store_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of what two workers made, with the checkpoint of one process among it."""
    folder = tmp_path_factory.mktemp("two")
    assert launch(with_two_workers, folder, store_path, finished.made.checkpoint, seconds=250) == [0, 0]
    return folder


def paths(folder: Path) -> list[Path]:
    """Encoder, checkpoint and reconstruction cache, which both workers name alike."""
    first, second = (json.loads((folder / f"rank{rank}.json").read_text()) for rank in range(2))
    assert first == second
    return [Path(path) for path in first]


def largest_difference(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    """Relative to the largest number of each tensor, or to 1 where that is less."""
    assert a.keys() == b.keys()
    pairs = ((a[name].double(), b[name].double()) for name in a)
    return max(float((x - y).abs().max() / x.abs().max().clamp_min(1)) for x, y in pairs)


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("stage", EXACT)
def test_two_workers_make_the_steps_of_one(two: Path, store_path: Path, tmp_path: Path, stage: str) -> None:
    expected, found = exactly(stage, store_path, tmp_path, Ranks()), [torch.load(two / f"exact{r}") for r in range(2)]
    assert all(torch.equal(found[0][stage][name], found[1][stage][name]) for name in expected)
    losses = [weights.pop("losses") for weights in (expected, found[0][stage])]
    difference = largest_difference(expected, found[0][stage])
    print(f"{stage}: largest difference between 1 and 2 workers in float64 {difference:.1e}")
    assert difference < 1e-9
    torch.testing.assert_close(*losses, rtol=1e-6, atol=0)  # of the diffusion model in float32


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_two_workers_train_the_models_of_one(two: Path, store_path: Path, tmp_path: Path) -> None:
    one = train(tiny_config(**GENTLE), store_path, tmp_path)
    for mine, theirs in zip((one.encoder, one.checkpoint), paths(two), strict=False):
        weights = (checkpoint.load_weights(path / checkpoint.WEIGHTS) for path in (mine, theirs))
        difference = largest_difference(*weights)
        print(f"{mine.parent.name}: largest difference between 1 and 2 workers in float32 {difference:.1e}")
        assert difference < 1e-4
        for row, other in zip(history(mine), history(theirs), strict=True):
            assert row == pytest.approx(other, abs=1e-4)


def history(path: Path) -> list[dict[str, float]]:
    rows = checkpoint.read_history(path / checkpoint.HISTORY)
    return [{k: v for k, v in row.items() if "per_second" not in k} for row in rows]


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_two_workers_reconstruct_what_one_does(two: Path, reconstruction: Path) -> None:
    assert same(kept(paths(two)[2]), kept(reconstruction))


# Batch size


def test_results_hardly_depend_on_the_batch_size(
    finished: Any, store: SliceStore, reconstruction: Path, tmp_path: Path
) -> None:
    """Convolutions may sum in another order for another batch: a float16 may be its neighbour, and is an artifact of its own."""
    place, volumes = stages.Place(tmp_path, finished.place.store), validation(store, finished.config)
    config = tiny_config(reconstruction__batch_size=3)
    other = prediction.reconstruct(config, place, finished.made.checkpoint, volumes, Ranks(), Hooks())
    assert other.name != reconstruction.name
    a, b = (flat(kept(path), "c") for path in (reconstruction, other))
    changed = float((a != b).mean())
    print(f"batch size 3, not 8: {changed:.1e} of the predictions change, by at most {np.abs(a - b).max():.1e}")
    assert changed < 0.01
    assert (np.abs(a - b) <= np.maximum(np.spacing(np.maximum(np.abs(a), np.abs(b)).astype(np.float16)), 1e-6)).all()
    c, d = (flat(kept(path), "d") for path in (reconstruction, other))
    assert np.abs(c - d).max() < 2e-6
    mine, theirs = (by_volume(numbers(store, path, finished.config)) for path in (reconstruction, other))
    scores = [
        (mine[volume][name], theirs[volume][name]) for volume in mine for name in ("oracle_dice", "auprc", "auroc")
    ]
    worst = max(abs(x - y) for x, y in scores if x is not None)
    print(f"scores of a volume differ by at most {worst:.1e}")
    assert worst < 1e-3


def flat(cache: dict[str, Arrays], branch: str) -> NDArray[np.float64]:
    return np.concatenate([a.ravel() for arrays in cache.values() for k, a in arrays.items() if k[0] == branch]).astype(
        np.float64
    )


# Order of volumes, threads, memory


def test_results_do_not_depend_on_the_order_of_volumes(
    finished: Any, store: SliceStore, reconstruction: Path, tmp_path: Path
) -> None:
    path = make_store(tmp_path, shuffled=1)
    other = SliceStore.open(path)
    assert [record.id for record in other.volumes] != [record.id for record in store.volumes]
    volumes, place = validation(other, finished.config), stages.Place(tmp_path / "artifacts", path)
    cache = prediction.reconstruct(finished.config, place, finished.made.checkpoint, volumes, Ranks(), Hooks())
    assert same(kept(cache), kept(reconstruction))
    mine, theirs = (numbers(s, c, finished.config) for s, c in ((store, reconstruction), (other, cache)))
    assert by_volume(mine) == by_volume(theirs)
    for name, aggregates in mine.aggregates.items():
        assert aggregates == pytest.approx(theirs.aggregates[name], rel=1e-12)


@pytest.mark.parametrize("settings", [{"threads": 2}, {"threads": 3}, {"memory_bytes": 0}])
def test_scores_do_not_depend_on_threads_or_memory(
    store: SliceStore, reconstruction: Path, finished: Any, settings: dict[str, int]
) -> None:
    plain, other = (numbers(store, reconstruction, finished.config, **values) for values in ({}, settings))
    assert plain == other
    assert any(row["dice"] for row in plain.rows)
