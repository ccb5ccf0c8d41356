"""The guide: a DDPM with the model's own settings, made once, found by every trial, and u of every reconstruction."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import two_ranks
from tiny_training import tiny_config, train

from cddpm import artifact
from cddpm.data.store import SliceStore
from cddpm.errors import ArtifactError
from cddpm.reconstruct.cohort import Cohort
from cddpm.reconstruct.part import rounded
from cddpm.reconstruct.predict import Networks, Request
from cddpm.reconstruct.reconstruction import Reconstruction, View
from cddpm.training import checkpoint, diffusion, prediction, stages
from cddpm.training.checkpoint import packed, unpacked
from cddpm.training.loop import Hooks, Interrupted
from cddpm.training.preview import OBJECTIVE, Preview
from cddpm.training.ranks import Ranks
from cddpm.training.stages import guide_config

pytestmark = pytest.mark.slow

GUIDED: dict[str, Any] = {
    "reconstruction__guide": "ddpm",
    "reconstruction__embedding_scale": 1.5,
    "diffusion__condition_dropout": 0.0,
    "scoring__guidance_scale": 1.5,
    "pretraining__enabled": False,
    "training__images": 16,
    "training__evaluations": 2,
    "training__validation_volumes": 1,
}


@pytest.fixture(scope="module")
def place(store_path: Path, tmp_path_factory: pytest.TempPathFactory) -> stages.Place:
    return stages.Place(tmp_path_factory.mktemp("guided"), store_path)


@pytest.fixture(scope="module")
def reports() -> list[dict[str, float]]:
    return []


@pytest.fixture(scope="module")
def made(place: stages.Place, store_path: Path, reports: list[dict[str, float]]) -> stages.Made:
    return train(tiny_config(**GUIDED), store_path, place.artifacts, Hooks(report=reports.append))


def network(path: Path) -> Any:
    return stages.load_model(path, torch.device("cpu"))[0]


def test_the_guide_has_the_models_settings_but_for_the_condition() -> None:
    config = tiny_config(
        **GUIDED,
        model__conditioning="cross-attention",
        search__scoring__space={"scoring.guidance_scale": {"float": [0.0, 2.0]}},
        search__training__space={"training.learning_rate": {"float": [1e-4, 1e-2]}},
        search__training__trials=3,
    )
    guide = guide_config(config)
    assert guide is not None
    assert not guide.model.conditioned
    assert guide.diffusion == config.diffusion.model_copy(update={"condition_dropout": 0.0})
    for section in ("training", "data", "seed", "compute"):
        assert getattr(guide, section) == getattr(config, section)
    assert guide_config(guide) is None
    assert guide_config(tiny_config()) is None


def test_every_way_of_conditioning_shares_one_guide() -> None:
    def name(**values: Any) -> str:
        guide = guide_config(tiny_config(**{**GUIDED, **values}))
        assert guide is not None
        return stages.checkpoint_identity(guide, "s")[0]

    alike = [
        {"model__conditioning": "cross-attention"},
        {"model__condition_width": 32},
        {"diffusion__condition_dropout": 0.2},
        {"encoder__width": 16},
        {"pretraining__enabled": True},
        {"scoring__guidance_scale": 3.0},
        {"reconstruction__embedding_scale": 1.0},
    ]
    assert {name(**values) for values in alike} == {name()}
    assert len({name(), name(seed=4), name(diffusion__loss="l2"), name(training__images=20)}) == 4


def test_weights_are_packed_and_unpacked() -> None:
    model, guide = {"unet.a": torch.ones(2), "b": torch.zeros(1)}, {"unet.a": torch.full((3,), 7.0)}
    both = packed(model, guide)
    assert set(both) == {"unet.a", "b", "guide.unet.a"}
    for found, expected in zip(unpacked(both), (model, guide), strict=True):
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    assert unpacked(packed(model, None)) == (model, {})


def test_guide_and_model_are_made_then_found(
    made: stages.Made, place: stages.Place, store_path: Path, reports: list[dict[str, float]]
) -> None:
    assert made.made == ("guide", "checkpoint")
    assert made.guide is not None
    assert network(made.guide).encoder is None
    assert network(made.checkpoint).null_condition is None
    assert reports == checkpoint.read_history(made.checkpoint / checkpoint.HISTORY)  # the model's alone
    again = train(tiny_config(**GUIDED), store_path, place.artifacts)
    assert again == stages.Made(made.checkpoint, made.encoder, (), made.guide)


def test_a_ddpm_trained_by_itself_is_the_guide(made: stages.Made, place: stages.Place, store_path: Path) -> None:
    alone = {**GUIDED, "model__conditioned": False, "reconstruction__guide": "none"}
    config = tiny_config(**{**alone, "reconstruction__embedding_scale": 1.0, "scoring__guidance_scale": 1.0})
    assert train(config, store_path, place.artifacts) == stages.Made(made.guide, None, ())


def test_a_second_model_finds_the_guide(made: stages.Made, place: stages.Place, store_path: Path) -> None:
    other = train(tiny_config(**{**GUIDED, "encoder__drop_path": 0.0}), store_path, place.artifacts)
    assert other.made == ("checkpoint",)
    assert other.guide == made.guide
    assert other.checkpoint != made.checkpoint


def test_a_stop_during_the_guide_is_resumed(made: stages.Made, store_path: Path, tmp_path: Path) -> None:
    seen: list[str] = []
    hooks = Hooks(stop=lambda: True, progress=lambda stage, *rest: seen.append(stage))
    with pytest.raises(Interrupted, match="train: stopped after 40 images"):
        train(tiny_config(**{**GUIDED, "training__images": 44}), store_path, tmp_path, hooks)
    assert set(seen) == {"guide"}
    again = train(tiny_config(**{**GUIDED, "training__images": 44}), store_path, tmp_path)
    assert again.made == ("guide", "checkpoint")


def test_u_is_what_the_guide_says_of_the_same_noise(made: stages.Made, place: stages.Place, store: SliceStore) -> None:
    config, volumes = tiny_config(**GUIDED), store.cohort("A", "val")
    path = prediction.reconstruct(config, place, made.checkpoint, volumes, Ranks(), Hooks())
    cache, (v, *_) = Reconstruction.open(path), volumes
    assert cache.guided
    name = store.volumes[v].id
    request = Request(name, store.image(v), View.of([name], config.reconstruction).steps)
    ((_, c),) = Networks(config, network(made.checkpoint)).predict([request])
    unguided = {"reconstruction__guide": "none", "scoring__guidance_scale": 1.0, "reconstruction__embedding_scale": 1.0}
    assert made.guide is not None
    ((_, u),) = Networks(tiny_config(**{**GUIDED, **unguided}), network(made.guide)).predict([request])
    expected = rounded(name, {**c, **{("u", *key[1:]): array for key, array in u.items()}})
    for level in config.reconstruction.noise_levels:
        assert np.array_equal(cache.c(name, level, 0), expected["c", level, 0])
        assert np.array_equal(cache.d(name, level, 0), expected["d", level, 0])
        assert cache.d(name, level, 0).any()


def test_the_cache_knows_its_guide(made: stages.Made, place: stages.Place, store: SliceStore) -> None:
    volumes, config = store.cohort("A", "test"), tiny_config(**GUIDED)
    guided = prediction.reconstruct(config, place, made.checkpoint, volumes, Ranks(), Hooks())
    assert made.guide is not None
    assert Reconstruction.open(guided).made_from["guide"] == made.guide.name
    plain = tiny_config(**{**GUIDED, "reconstruction__guide": "none", "scoring__guidance_scale": 1.0})
    other = prediction.reconstruct(plain, place, made.checkpoint, volumes, Ranks(), Hooks())
    assert other != guided
    assert not Reconstruction.open(other).guided


def test_a_cohort_of_another_store_has_the_same_guide(made: stages.Made, place: stages.Place, tmp_path: Path) -> None:
    """As when a model is tried on scans of another contrast, which stand in a store of their own."""
    copy = tmp_path / "store" / "other"
    shutil.copytree(place.store, copy)
    manifest = artifact.read_manifest(copy, "slice store")
    (copy / artifact.MANIFEST).unlink()
    artifact.seal(copy, "slice store", "other", manifest.made_from)
    there = stages.Place(place.artifacts, copy)
    assert stages.guide_path(tiny_config(**GUIDED), there, made.checkpoint) == made.guide
    volumes = SliceStore.open(copy).cohort("A", "test")
    path = prediction.reconstruct(tiny_config(**GUIDED), there, made.checkpoint, volumes, Ranks(), Hooks())
    assert Reconstruction.open(path).guided


def test_a_guide_that_was_never_trained_is_told(made: stages.Made, store: SliceStore, tmp_path: Path) -> None:
    config, place = tiny_config(**GUIDED), stages.Place(tmp_path, store.path)
    with pytest.raises(ArtifactError, match=r"the DDPM that reconstruction\.guide asks for beside .* is not there"):
        prediction.reconstruct(config, place, made.checkpoint, store.cohort("A", "val"), Ranks(), Hooks())


def test_the_preview_is_guided_as_the_scorer(made: stages.Made, place: stages.Place, store: SliceStore) -> None:
    config = tiny_config(**{**GUIDED, "training__validation_volumes": 3})
    cohort = Cohort.of(store, config.data, "val")
    path = prediction.reconstruct(config, place, made.checkpoint, cohort.volumes, Ranks(), Hooks())
    score = cohort.scorer(Reconstruction.open(path)).score(config.scoring, "dice", ("A",))
    assert made.guide is not None
    preview = Preview(config, store, network(made.guide)).score(network(made.checkpoint), Ranks())
    assert preview[OBJECTIVE] == pytest.approx(score.objective, abs=5e-3)  # the cache keeps float16


def test_settings_of_the_preview_matter_where_it_chooses_the_weights() -> None:
    def name(**values: Any) -> str:
        return stages.checkpoint_identity(tiny_config(**values), "s")[0]

    changes = {"scoring__median_kernel": 5, "search__datasets": ["B"], "reconstruction__noise_levels": [5]}
    for path, value in changes.items():
        assert name(**{path: value}) == name()
        assert name(**{path: value}, training__keep="best-score") != name(training__keep="best-score")
    assert len({name(), name(training__keep="best-loss"), name(training__keep="best-score")}) == 3


@pytest.mark.parametrize("losses", [{8: 1.0, 16: 2.0}, {8: 2.0, 16: 1.0}])
def test_the_kept_weights_become_the_checkpoint(
    store_path: Path, tmp_path: Path, losses: dict[int, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(diffusion.DiffusionObjective, "_validation_loss", lambda self, m, r, images: losses[images])
    plain = {**GUIDED, "reconstruction__guide": "none", "scoring__guidance_scale": 1.0}
    last, best = (
        train(tiny_config(**plain, training__keep=keep), store_path, tmp_path) for keep in ("last", "best-loss")
    )
    one, two = (checkpoint.load_weights(made.checkpoint / checkpoint.WEIGHTS) for made in (last, best))
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one) == (losses[16] < losses[8])
    assert not list(tmp_path.glob("*/.work/*/*"))


# Two real processes

EVERYTHING: dict[str, Any] = {
    **GUIDED,
    "model__dropout": 0.0,  # its masks are drawn per rank
    "training__keep": "best-loss",
    "training__validation_draw": "random",
    "diffusion__noise__shared": True,
    "diffusion__patch__enabled": True,
    "diffusion__patch__size": 16,
}


def train_together(rank: int, folder: Path, store: Path) -> None:
    ranks, config = two_ranks.join(rank, folder), tiny_config(**EVERYTHING, compute__workers=2)
    made = stages.train(config, stages.Place(folder, store), ranks, Hooks())
    (folder / f"rank{rank}.json").write_text(json.dumps([str(made.checkpoint), str(made.guide), made.made]))
    dist.destroy_process_group()


@pytest.mark.nightly
@pytest.mark.slow
def test_two_ranks_make_guide_and_model_as_one_does(store_path: Path, tmp_path: Path) -> None:
    assert two_ranks.launch(train_together, tmp_path, store_path) == [0, 0]
    first, second = (json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in range(2))
    assert first == second
    assert first[2] == ["guide", "checkpoint"]
    one = train(tiny_config(**EVERYTHING), store_path, tmp_path / "one")
    for alone, together in ((one.checkpoint, Path(first[0])), (one.guide, Path(first[1]))):
        assert alone is not None
        rows = zip(*(checkpoint.read_history(path / checkpoint.HISTORY) for path in (alone, together)), strict=True)
        for a, b in rows:
            assert a["val/loss"] == pytest.approx(b["val/loss"], abs=1e-4)
            assert a["train/loss"] == pytest.approx(b["train/loss"], abs=1e-4)
