"""The scorer equals the same arithmetic written plainly, whatever it remembers and however many threads it has."""

import json
import math
import re
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy import ndimage

from cddpm.config import ScoringConfig
from cddpm.errors import ArtifactError, DataError
from cddpm.published.scoring import reference_metrics, reference_threshold, reference_volumes, search_array
from cddpm.reconstruct import part, reconstruction
from cddpm.scoring.metrics import dice
from cddpm.scoring.postprocess import component_rule, remove_small_components
from cddpm.scoring.score import Evaluation, Scorer, evaluate

COHORT = {"A": [0, 1, 2], "B": [3, 4]}
HEALTHY = [5, 6]
SETTINGS = [
    ScoringConfig(),
    ScoringConfig(noise_levels=(500,), residual="l2", median_kernel=3, erosion_divisor=None),
    ScoringConfig(noise_levels=(500, 250), residual="positive", guidance_scale=1.7, minimum_component_voxels=0),
    ScoringConfig(residual="negative", guidance_scale=0.0, median_kernel=1, erosion_divisor=13),
]


def plain_map(store, predictions, v: int, scoring: ScoringConfig) -> np.ndarray:
    """Anomaly map from the predictions themselves: x0(s) = u + s (c - u), mean, residual, mask, median."""
    arrays, s = predictions[store.volumes[v].id], scoring.guidance_scale
    levels = scoring.noise_levels or (250, 500)
    x0 = np.mean(
        [arrays["u", k, n] + s * (arrays["c", k, n] - arrays["u", k, n]) for k in levels for n in (0, 7)], axis=0
    )
    difference = store.image(v).astype(np.float32) - x0
    residual = {
        "l1": np.abs(difference),
        "l2": difference**2,
        "positive": np.maximum(difference, 0),
        "negative": np.maximum(-difference, 0),
    }[scoring.residual]
    mask = store.mask(v) > 0
    steps = mask.shape[2] // scoring.erosion_divisor if scoring.erosion_divisor else 0
    for s_index in range(len(mask) if steps else 0):
        mask[s_index] = ndimage.binary_erosion(mask[s_index], iterations=steps)
    return ndimage.median_filter(residual * mask, scoring.median_kernel)


@pytest.fixture
def scorer(store, reconstructions) -> Scorer:
    return Scorer(store, reconstructions, COHORT, HEALTHY)


@pytest.mark.parametrize("scoring", SETTINGS)
def test_anomaly_map_equals_plain_arithmetic(scorer, store, predictions, scoring):
    for v in (0, 4):
        ours = scorer.anomaly_map(v, scoring)
        assert ours.dtype == np.float16
        assert np.abs(ours - plain_map(store, predictions, v, scoring)).max() < 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("scoring", SETTINGS)
def test_dice_before_the_filter_is_the_exact_optimum(scorer, store, scoring):
    score = scorer.score(scoring)
    for name, volumes in COHORT.items():
        maps = [scorer.anomaly_map(v, scoring) for v in volumes]
        truths = [store.segmentation(v) > 0 for v in volumes]
        candidates = np.unique(np.concatenate([m.ravel() for m in maps]))[:-1]
        means = [np.mean([dice(m > t, truth) for m, truth in zip(maps, truths, strict=True)]) for t in candidates]
        assert score.datasets[name]["dice_before_component_filter"] == pytest.approx(max(means), abs=1e-12)
        assert score.thresholds[name] == candidates[int(np.argmax(means))]


def test_objective_is_the_mean_dice_after_the_filter_at_the_threshold(scorer, store):
    scoring = ScoringConfig(median_kernel=3, minimum_component_voxels=12)
    score = scorer.score(scoring)
    means = []
    for name, volumes in COHORT.items():
        above = [scorer.anomaly_map(v, scoring) > np.float16(score.thresholds[name]) for v in volumes]
        kept = [remove_small_components(a, 12) for a in above]
        means.append(np.mean([dice(k, store.segmentation(v) > 0) for k, v in zip(kept, volumes, strict=True)]))
    assert score.objective == pytest.approx(np.mean(means), abs=1e-12)
    assert scorer.score(scoring, "auprc").objective == pytest.approx(
        np.mean([score.datasets[name]["auprc"] for name in COHORT])
    )


FILTERS = [(minimum, *rule) for minimum in (3, 12, 30) for rule in ((6, "filled"), (18, "voxels"), (26, "filled"))]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("minimum", "connectivity", "size"),
    [
        case if number % 4 == 0 else pytest.param(*case, marks=pytest.mark.nightly)
        for number, case in enumerate(FILTERS)
    ],
)
def test_dice_after_the_filter_is_the_exact_optimum_if_it_is_asked_for(scorer, store, minimum, connectivity, size):
    settings = {"median_kernel": 1, "minimum_component_voxels": minimum, "connectivity": connectivity}
    scoring = ScoringConfig(operating_point="val-dice-filtered", component_size=size, **settings)
    score, rule = scorer.score(scoring), component_rule(scoring)
    maps = {v: scorer.anomaly_map(v, scoring) for v in range(5)}
    candidates = np.unique(np.concatenate([m.ravel() for m in maps.values()]))[:-1]
    candidates = candidates[:: max(1, len(candidates) // 150)]  # some hundred are enough to find a better one
    candidates = np.unique(np.append(candidates, [np.float16(t) for t in score.thresholds.values()]))

    def best(groups):
        means = [np.mean([np.mean([filtered(v, t) for v in volumes]) for volumes in groups]) for t in candidates]
        return max(means), float(candidates[int(np.argmax(means))])

    def filtered(v, t):
        return dice(remove_small_components(maps[v] > t, minimum, rule), store.segmentation(v) > 0)

    for name, volumes in COHORT.items():
        assert (score.datasets[name]["dice"], score.thresholds[name]) == (
            pytest.approx(best([volumes])[0], abs=1e-12),
            best([volumes])[1],
        )
    assert score.thresholds["all"] == best(COHORT.values())[1]
    before = scorer.score(scoring.model_copy(update={"operating_point": "val-dice"}))
    assert score.objective >= before.objective


def test_the_objectives_of_a_search_are_named(store, reconstructions):
    class InMillimetres(type(store)):
        """Voxels of 2 x 3 x 4 mm."""

        def __init__(self) -> None:
            super().__init__()
            geometry = SimpleNamespace(working_voxel_size_mm=(2.0, 3.0, 4.0), beyond=None)
            self.volumes = [SimpleNamespace(id=r.id, dataset=r.dataset, geometry=geometry) for r in self.volumes]

    scorer = Scorer(InMillimetres(), reconstructions, COHORT, HEALTHY, seconds_per_pass=0.5)
    score = scorer.score(ScoringConfig(noise_levels=(250,)))
    assert score.values["dice"] == score.objective
    assert score.values["auprc"] == scorer.score(ScoringConfig(noise_levels=(250,)), "auprc").objective
    segmented = [scorer.segmentation(v, ScoringConfig(noise_levels=(250,)), score.thresholds["all"]) for v in HEALTHY]
    assert score.values["healthy_false_positive_ml"] == pytest.approx(np.mean([s.sum() for s in segmented]) * 0.024)
    assert score.values["seconds_per_volume"] == 0.5 * 2  # one level, two seeds
    both = scorer.score(ScoringConfig(guidance_scale=2.0)).values
    assert both["seconds_per_volume"] == 0.5 * 2 * 2 * 2  # both levels, and both branches


def test_objectives_that_are_not_known_are_absent(store, reconstructions):
    assert set(Scorer(store, reconstructions, COHORT).score(ScoringConfig()).values) == {"dice", "auprc", "auroc"}


@pytest.mark.slow
def test_memo_threads_and_order_change_nothing(store, reconstructions):
    def fresh(threads=1, memory=2**28):
        return Scorer(store, reconstructions, COHORT, HEALTHY, threads, memory)

    warm, crowded, threaded = fresh(), fresh(memory=50_000), fresh(threads=3)
    for scoring in [*SETTINGS, *SETTINGS[::-1]]:
        expected = fresh().score(scoring)
        for other in (warm, crowded, threaded):
            found = other.score(scoring)
            assert (found.objective, found.thresholds, found.datasets) == (
                expected.objective,
                expected.thresholds,
                expected.datasets,
            )


def test_data_sets_may_be_chosen(scorer):
    only = scorer.score(ScoringConfig(), datasets=["B"])
    assert set(only.datasets) == {"B", "healthy"}
    assert only.thresholds["all"] == only.thresholds["B"] == scorer.score(ScoringConfig()).thresholds["B"]
    with pytest.raises(DataError, match="'MSLUB' is not in this cohort; there are A, B"):
        scorer.score(ScoringConfig(), datasets=["MSLUB"])


def test_healthy_operating_point_keeps_its_rate(scorer, store):
    scoring = ScoringConfig(operating_point="healthy-fpr", healthy_false_positive_rate=0.02, minimum_component_voxels=0)
    thresholds = scorer.thresholds(scoring)
    assert len(set(thresholds.values())) == 1
    scores = np.concatenate([scorer.anomaly_map(v, scoring)[store.mask(v) > 0] for v in HEALTHY])
    assert np.mean(scores > np.float16(thresholds["all"])) <= 0.02
    below = np.nextafter(np.float16(thresholds["all"]), np.float16(0))
    assert np.mean(scores > below) > 0.02
    rate = evaluate(scorer, scoring, thresholds).aggregates["healthy"]["false_positive_rate"]
    assert rate == pytest.approx(np.mean(scores > np.float16(thresholds["all"])))


def test_healthy_operating_point_needs_healthy_volumes(store, reconstructions):
    with pytest.raises(DataError, match="needs healthy validation volumes"):
        Scorer(store, reconstructions, COHORT).score(ScoringConfig(operating_point="healthy-fpr"))


def test_fixed_operating_point_is_taken_as_it_is(scorer):
    scoring = ScoringConfig(operating_point="fixed", threshold=0.123456)
    assert scorer.score(scoring).thresholds == {"A": 0.123456, "B": 0.123456, "all": 0.123456}


def test_evaluation_uses_given_thresholds_and_all_where_one_is_missing(scorer):
    found = evaluate(scorer, ScoringConfig(), {"A": 0.1, "all": 0.2})
    assert [row["threshold"] for row in found.rows] == [0.1] * 3 + [0.2] * 4
    assert [row["volume"] for row in found.rows] == ["A/0", "A/1", "A/2", "B/0", "B/1", "IXI/0", "IXI/1"]
    with pytest.raises(DataError, match="no threshold for data set 'B' and none for 'all'"):
        evaluate(scorer, ScoringConfig(), {"A": 0.1})


def test_evaluation_at_the_own_thresholds_repeats_the_score_and_oracle_bounds_it(scorer):
    score = scorer.score(ScoringConfig())
    again = evaluate(scorer, ScoringConfig(), score.thresholds)
    for name, found in again.aggregates.items():
        assert {
            key: value for key, value in found.items() if not re.match("oracle_dice(_std|_volumes)?$", key)
        } == score.datasets[name]


@pytest.mark.slow
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.floats(0, 1),
    st.sampled_from([0, 1, 7, 60]),
    st.sampled_from([6, 18, 26]),
    st.sampled_from(["voxels", "filled"]),
    st.sampled_from([1, 3, 5]),
)
def test_no_result_is_above_its_oracle(scorer, threshold, minimum, connectivity, size, median) -> None:
    """Whatever the threshold and the post-processing, which the bound shares; and some threshold reaches it."""
    scoring = ScoringConfig(
        minimum_component_voxels=minimum, connectivity=connectivity, component_size=size, median_kernel=median
    )
    for row in evaluate(scorer, scoring, {"all": threshold}).rows[:5]:
        assert row["oracle_dice"] >= row["dice"]
        assert row["oracle_dice_before_component_filter"] >= row["dice_before_component_filter"]
        again = evaluate(scorer, scoring, {"all": row["oracle_threshold"]}, [row["dataset"]]).rows
        assert row["oracle_dice"] in [other["dice"] for other in again]


def all_finite(value) -> bool:
    if isinstance(value, dict):
        return all(all_finite(v) for v in value.values())
    return value is None or isinstance(value, str) or (type(value) in (int, float) and math.isfinite(value))


def test_everything_is_plain_and_finite_even_where_nothing_is_found(scorer):
    for thresholds in ({"all": 0.0}, {"all": 60000.0}):
        found: Evaluation = evaluate(scorer, ScoringConfig(), thresholds)
        assert all(all_finite(row) for row in found.rows)
        assert all_finite(found.aggregates)
        json.dumps([found.rows, found.aggregates], allow_nan=False)
    assert found.aggregates["A"]["dice"] == 0
    assert "precision" not in found.aggregates["A"]  # nothing was predicted
    assert "dice" not in found.aggregates["healthy"]


def test_guidance_moves_the_map_only_where_branches_differ(store, predictions, tmp_path: Path):
    path = tmp_path / "cache"
    arrays = {("c", 250, 0): predictions["A/0"]["c", 250, 0], ("u", 250, 0): predictions["A/0"]["c", 250, 0]}
    part.write_part(reconstruction.parts_directory(path), "A/0", arrays)
    reconstruction.finish(path, ["A/0"], "x", {"volumes": ["A/0"]})
    scorer = Scorer(store, reconstruction.Reconstruction.open(path), {"A": [0]})
    plain, guided = (scorer.anomaly_map(0, ScoringConfig(guidance_scale=s)) for s in (1.0, 3.0))
    assert np.array_equal(plain, guided)


def test_what_was_not_reconstructed_is_named(store, scorer, predictions, tmp_path: Path):
    with pytest.raises(ArtifactError, match=r"noise level 750 .* there are levels \[250, 500\]"):
        scorer.anomaly_map(0, ScoringConfig(noise_levels=(750,)))
    path = tmp_path / "cache"
    part.write_part(reconstruction.parts_directory(path), "A/0", {("c", 250, 0): predictions["A/0"]["c", 250, 0]})
    reconstruction.finish(path, ["A/0"], "x", {"volumes": ["A/0"]})
    unguided = Scorer(store, reconstruction.Reconstruction.open(path), {"A": [0]})
    with pytest.raises(ArtifactError, match="only guidance scale 1 is possible"):
        unguided.anomaly_map(0, ScoringConfig(guidance_scale=2))


def test_cohorts_that_cannot_be_scored_are_refused(store, reconstructions):
    with pytest.raises(DataError, match="'C': none of its 2 volumes has a lesion"):
        Scorer(store, reconstructions, {"C": HEALTHY})
    with pytest.raises(DataError, match="'all': this name is taken"):
        Scorer(store, reconstructions, {"all": [0]})


def test_a_volume_without_lesion_in_an_unhealthy_data_set_is_left_out(store, reconstructions):
    with_empty = Scorer(store, reconstructions, {"A": [0, 1, 2, 5]}).score(ScoringConfig()).datasets["A"]
    without = Scorer(store, reconstructions, {"A": [0, 1, 2]}).score(ScoringConfig()).datasets["A"]
    assert (with_empty["volumes"], with_empty["dice_volumes"]) == (4, 3)
    assert with_empty["dice"] == without["dice"]


def test_baseline_scores_the_image_itself(store):
    scoring = ScoringConfig(median_kernel=1, erosion_divisor=None, minimum_component_voxels=0)
    score = Scorer(store, None, COHORT).score(scoring)
    image, truth = np.maximum(store.image(3) * (store.mask(3) > 0), 0), store.segmentation(3) > 0
    best = max(dice(image > t, truth) for t in np.unique(image)[:-1])
    row = evaluate(Scorer(store, None, COHORT), scoring, score.thresholds).rows[3]
    assert row["oracle_dice"] == pytest.approx(best)
    assert score.datasets["B"]["dice"] <= 1


@dataclass(frozen=True)
class Pair:
    """The published code's two volumes as a store and as reconstructions, of the number type asked for."""

    arrays: dict
    dtype: type
    volumes: tuple
    levels = (250,)
    seeds = (0,)

    def image(self, v: int) -> np.ndarray:
        return self.arrays["ab"[v] + "_orig"].astype(self.dtype)

    def mask(self, v: int) -> np.ndarray:
        return self.arrays["ab"[v] + "_mask"]

    def segmentation(self, v: int) -> np.ndarray:
        return self.arrays["ab"[v] + "_seg"]

    def ignored(self, v: int) -> np.ndarray:
        return np.empty(0, np.int64)

    def c(self, volume: str, level: int, seed: int) -> np.ndarray:
        index = next(i for i, record in enumerate(self.volumes) if record.id == volume)
        return self.arrays["ab"[index] + "_reco"].astype(self.dtype)


@pytest.mark.slow
@pytest.mark.parity
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_equals_the_published_evaluation(published, rounding, reference_dir, store, dtype):
    """Exactly on the published numbers, and within one of B's predicted voxels (or 1 %) if images are float16."""
    expected = json.loads((reference_dir / "postprocess_evaldict.json").read_text())
    both, test_b = expected["val_brats21_A_then_B"], expected["test_brats21_B"]
    predicted = test_b["FNPerVol"][0] + test_b["TNPerVol"][0]  # true and false positives under their published names
    tolerance = max(1e-9, rounding) if dtype == np.float32 else max(1 / max(predicted, 1), 0.01)
    pair = Pair(published, dtype, tuple(store.volumes[:2]))
    scorer = Scorer(pair, pair, {"Brats21": [0, 1]})
    rows = evaluate(scorer, ScoringConfig(), {"all": expected["val_threshold_total"]}).rows
    for ours, theirs in {"auprc": "AUPRCPerVol", "auroc": "AUCPerVol"}.items():
        assert [row[ours] for row in rows] == pytest.approx(both[theirs], abs=tolerance)
    for row, searched in zip(rows, both["BestDicePerVol"], strict=True):
        assert (
            row["oracle_dice_before_component_filter"] >= searched - tolerance
        )  # the published ten steps need not find the optimum
    for ours, theirs in {"dice": "DiceScorePerVol", "recall": "TPRPerVol", "false_discovery_rate": "FPRPerVol"}.items():
        published_number = None if math.isnan(test_b[theirs][0]) else pytest.approx(test_b[theirs][0], abs=tolerance)
        assert rows[1][ours] == published_number


def test_published_search_pools_the_voxels_of_each_data_set_and_of_all(scorer, store):
    scoring = ScoringConfig(operating_point="seed-search")
    found = scorer.thresholds(scoring)
    for name, volumes in (COHORT | {"all": [0, 1, 2, 3, 4]}).items():
        scores = np.concatenate([scorer.anomaly_map(v, scoring).ravel() for v in volumes])
        truth = np.concatenate([store.segmentation(v).ravel() > 0 for v in volumes])
        assert found[name] == search_array(scores, truth).threshold
    assert scorer.score(scoring).objective <= scorer.score(ScoringConfig()).objective + 0.02


def test_whole_reconstruction_is_the_reconstruction_and_goes_on_outside_of_the_brain(scorer, store, predictions):
    for scoring in (ScoringConfig(), ScoringConfig(guidance_scale=1.7, noise_levels=(500,))):
        box, whole = scorer.reconstruction(3, scoring), scorer.whole_reconstruction(3, scoring)
        inside = box != 0
        np.testing.assert_array_equal(whole[inside], box[inside])
        assert whole[~inside].any()


@pytest.mark.slow
def test_published_numbers_of_a_scorer(scorer, store):
    volumes = list(reference_volumes(scorer, ScoringConfig(), "A"))
    assert len(volumes) == 3
    threshold = reference_threshold(volumes, ScoringConfig())
    pooled = scorer.thresholds(ScoringConfig(operating_point="seed-search"))["A"]
    assert threshold == pytest.approx(pooled, rel=0.01)  # float16 maps there, float32 here
    found = reference_metrics(reference_volumes(scorer, ScoringConfig(), "A"), ScoringConfig(), threshold)
    rows = evaluate(scorer, ScoringConfig(), {"all": threshold}, ["A"]).rows[:3]
    assert found["DiceScorePerVol"] == pytest.approx([row["dice"] for row in rows], abs=0.02)
    assert len(list(reference_volumes(scorer, ScoringConfig(), "healthy"))) == 2
