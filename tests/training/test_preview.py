"""The preview during training says what the scorer says of the same model."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_training import tiny_config, train

from cddpm.config import ExperimentConfig
from cddpm.data.store import SliceStore
from cddpm.reconstruct.cohort import Cohort
from cddpm.reconstruct.predict import Networks
from cddpm.reconstruct.reconstruction import Reconstruction
from cddpm.scoring.score import Scorer
from cddpm.search import scoring_search
from cddpm.training import prediction, stages
from cddpm.training.loop import Hooks
from cddpm.training.preview import OBJECTIVE, Preview, preview_settings
from cddpm.training.ranks import Ranks

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def model(finished: Any) -> Any:
    return stages.load_model(finished.made.checkpoint, torch.device("cpu"))[0]


@pytest.fixture(scope="module")
def scorer(finished: Any, store: SliceStore) -> Scorer:
    cohort, stop = Cohort.of(store, finished.config.data, "val"), stages.Hooks()
    path = prediction.reconstruct(
        finished.config, finished.place, finished.made.checkpoint, cohort.volumes, Ranks(), stop
    )
    return cohort.scorer(Reconstruction.open(path))


@pytest.mark.parametrize("objective", ["dice", "auprc"])
@pytest.mark.parametrize("names", [["B"], []])
@pytest.mark.parametrize("scoring", [{}, {"guidance_scale": 1.5, "noise_levels": [25], "residual": "positive"}])
def test_preview_equals_the_scorer(
    model: Any, scorer: Scorer, store: SliceStore, objective: str, names: list[str], scoring: dict[str, Any]
) -> None:
    values = {f"scoring__{name}": value for name, value in scoring.items()}
    config = tiny_config(search__objective=objective, search__datasets=names, **values)
    preview = Preview(config, store).score(model, Ranks())
    score = scorer.score(config.scoring, config.search.objective, names)
    assert set(preview) == {OBJECTIVE, *(f"monitor/{name}/{objective}" for name in names or ("A", "B"))}
    assert preview[OBJECTIVE] == pytest.approx(score.objective, abs=5e-3)  # the cache keeps float16
    for name in names or ("A", "B"):
        assert preview[f"monitor/{name}/{objective}"] == pytest.approx(score.datasets[name][objective], abs=5e-3)


@pytest.mark.parametrize(
    "scoring",
    [
        {"noise_levels": [25, 10], "level_weights": [1, 3]},
        {"combine": "geometric-mean", "match_histogram": True},
        {"residual": "ssim-ensemble", "combine": "median"},
        {"residual": "mahalanobis"},
    ],
)
def test_preview_knows_every_way_to_a_residual(
    model: Any, scorer: Scorer, store: SliceStore, scoring: dict[str, Any]
) -> None:
    values = {f"scoring__{name}": value for name, value in scoring.items()}
    config = tiny_config(search__objective="auprc", **values)
    score = scorer.score(config.scoring, "auprc", config.search.datasets)
    assert Preview(config, store).score(model, Ranks())[OBJECTIVE] == pytest.approx(score.objective, abs=5e-3)


SPACE = {
    "scoring.guidance_scale": {"float": [0.0, 3.0]},
    "scoring.noise_levels": {"choice": [[10], [25], [10, 25]]},
    "scoring.residual": {"choice": ["l1", "positive"]},
    "scoring.normalise": {"choice": ["none", "healthy-z"]},
}
SEARCHED = {"search__preview_trials": 8, "search__scoring__space": SPACE, "search__datasets": ["A", "B"]}


@pytest.mark.parametrize("objective", ["dice", "auprc"])
def test_a_searched_preview_is_the_search_at_the_end_on_fewer_volumes(
    model: Any, scorer: Scorer, store: SliceStore, objective: str
) -> None:
    """The same eight settings on the same volumes, from memory and from the cache on the disk."""
    config = tiny_config(**SEARCHED, search__objective=objective, training__validation_volumes=2)
    found = Preview(config, store, search=scoring_search.preview).score(model, Ranks())
    few = {name: store.cohort(name, "val")[:2] for name in ("A", "B")}
    same = Scorer(store, scorer._ensemble.cache, few, store.cohort("IXI", "val")[:2])
    at_the_end = tiny_config(**{**SEARCHED, "search__scoring__trials": 8}, search__objective=objective)
    points = scoring_search.search(same, at_the_end, guided=True)
    assert found[OBJECTIVE] == scoring_search.best(points).objective > points[0].objective
    assert set(found) == {OBJECTIVE, f"monitor/A/{objective}", f"monitor/B/{objective}"}


def test_a_searched_preview_looks_at_one_objective_and_leaves_out_what_has_no_lesion(
    model: Any, store: SliceStore
) -> None:
    several = [{"metric": "dice", "goal": "maximize"}, {"metric": "seconds_per_volume", "goal": "minimize"}]
    config = tiny_config(**SEARCHED, search__objectives=several)
    without = WithoutSomeLesions(store, set(store.cohort("A", "val")))
    found = Preview(config, without, search=scoring_search.preview).score(model, Ranks())
    assert set(found) == {OBJECTIVE, "monitor/B/dice"}
    nothing = WithoutSomeLesions(store, {v for name in ("A", "B") for v in store.cohort(name, "val")})
    assert Preview(config, nothing, search=scoring_search.preview).score(model, Ranks()) == {OBJECTIVE: 0.0}
    with pytest.raises(ValueError, match="nobody gave the preview a search"):
        Preview(config, store).score(model, Ranks())


class TwoRanks(Ranks):
    """The first of two, which hears of the other what it would have said."""

    def gather(self, value: Any) -> list[Any]:
        return [value, self.other]

    def share(self, value: Any) -> Any:
        return value


def test_ranks_share_the_predictions_of_a_searched_preview(model: Any, store: SliceStore) -> None:
    config = tiny_config(**SEARCHED)
    preview = Preview(config, store, search=scoring_search.preview)
    volumes = [*(v for _, v in preview.volumes), *store.cohort("IXI", "val")]
    ranks = TwoRanks(0, 2)
    there = Cohort(store, healthy=volumes[1::2]).reconstruct(Networks(config, model))
    object.__setattr__(ranks, "other", there)
    # other volumes share a forward pass, which moves some float16 by their last digit
    assert preview.score(model, ranks) == pytest.approx(preview.score(model, Ranks()), abs=5e-3)


def test_a_training_reports_its_searched_previews(store_path: Path, tmp_path: Path) -> None:
    values = {**SEARCHED, "pretraining__enabled": False, "training__images": 16, "training__evaluations": 2}
    reports: list[dict[str, float]] = []
    asked: list[bool] = []

    def search(scorer: Scorer, config: ExperimentConfig, guided: bool) -> dict[str, float]:
        asked.append(guided)
        return scoring_search.preview(scorer, config, guided)

    train(tiny_config(**values), store_path, tmp_path, Hooks(report=reports.append, search=search))
    assert asked == [True, True]
    assert all(report[OBJECTIVE] > 0 for report in reports)


def test_a_search_of_previews_names_the_weights_only_where_it_chooses_them() -> None:
    def name(**values: Any) -> str:
        return stages.checkpoint_identity(tiny_config(**values), "s")[0]

    best = {"training__keep": "best-score"}
    assert name(**SEARCHED) == name()
    assert name(**SEARCHED, **best) != name(**best)
    assert name(**{**SEARCHED, "search__preview_trials": 9}, **best) != name(**SEARCHED, **best)


def test_settings_that_a_preview_does_not_read_are_none_of_its_settings() -> None:
    usual = preview_settings(tiny_config())
    for unread in ({"scoring__ssim_window": 7}, {"scoring__minimum_component_voxels": 9}, {"seed": 5}):
        assert preview_settings(tiny_config(**unread)) == usual
    ssim = {"scoring__residual": "ssim"}
    for read in (
        {"scoring__combine": "mean"},
        ssim,
        {**ssim, "scoring__ssim_window": 7},
        {"scoring__median_kernel": 5},
    ):
        assert preview_settings(tiny_config(**read)) != usual


def test_preview_is_fixed_and_leaves_the_mode_alone(model: Any, store: SliceStore) -> None:
    preview = Preview(tiny_config(), store)
    first = preview.score(model, Ranks())
    model.train()
    torch.manual_seed(99)
    assert preview.score(model, Ranks()) == first
    assert model.training
    model.eval()


def test_only_so_many_volumes(store: SliceStore) -> None:
    assert [v for _, v in Preview(tiny_config(training__validation_volumes=2), store).volumes] == store.cohort(
        "A", "val"
    )[:2]


@dataclasses.dataclass
class WithoutSomeLesions:
    """The store, but some volumes have lost their lesions (small ones vanish when volumes are downsampled)."""

    store: SliceStore
    empty: set[int]

    def segmentation(self, v: int) -> np.ndarray:
        return self.store.segmentation(v) * (v not in self.empty)

    def ignored(self, v: int) -> np.ndarray:
        return np.empty(0, np.int64)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.store, name)


def preview_without(store: SliceStore, empty: list[int], config: ExperimentConfig) -> Preview:
    return Preview(config, WithoutSomeLesions(store, set(empty)))


def test_volumes_without_lesion_are_passed_over(model: Any, store: SliceStore) -> None:
    first, *rest = store.cohort("A", "val")
    preview = preview_without(store, [first], tiny_config(training__validation_volumes=1))
    assert preview.volumes == [("A", rest[0])]
    assert preview.score(model, Ranks())[OBJECTIVE] > 0


@pytest.mark.parametrize("objective", ["dice", "auprc"])
def test_a_data_set_without_any_lesion_does_not_end_the_training(model: Any, store: SliceStore, objective: str) -> None:
    config = tiny_config(search__objective=objective)
    assert preview_without(store, store.cohort("A", "val"), config).score(model, Ranks()) == {OBJECTIVE: 0.0}
