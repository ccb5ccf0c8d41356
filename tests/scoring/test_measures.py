"""The thorough evaluation: every number against scikit-learn, SciPy or a plain loop, on a small cohort."""

import json
import math
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import pytest
from scipy import ndimage
from sklearn.metrics import average_precision_score, roc_auc_score

from cddpm.config import EvaluationConfig, ScoringConfig
from cddpm.errors import DataError
from cddpm.scoring.glossary import MEASURES, at_rate, describe
from cddpm.scoring.measures import Measured, measure, thresholds_at_rates
from cddpm.scoring.metrics import dice
from cddpm.scoring.postprocess import component_rule, segment
from cddpm.scoring.score import HEALTHY, Scorer, evaluate

pytestmark = pytest.mark.filterwarnings("ignore:.*always_return_as_numpy:FutureWarning")

COHORT, HEALTHY_VOLUMES = {"A": [0, 1, 2], "B": [3, 4]}, [5, 6]
SCORING = ScoringConfig(median_kernel=1, minimum_component_voxels=3)
EVALUATION = EvaluationConfig(healthy_false_positive_rates=(0.01, 0.2), lesion_size_limits_ml=(0.5, 0.7))
SIZE_MM = (2.5, 3.0, 2.0)
"""Along (X, Y, Z) = (H, W, S): 0.015 ml."""


@dataclass(frozen=True)
class Record:
    id: str
    dataset: str
    geometry: SimpleNamespace


class ScannedStore:
    """The cohort of ``store`` with voxel sizes, and a second lesion of two voxels in each volume of 'A'."""

    def __init__(self, store) -> None:
        geometry = SimpleNamespace(working_voxel_size_mm=SIZE_MM, beyond=None)
        self.volumes = [Record(record.id, record.dataset, geometry) for record in store.volumes]
        self.image, self.mask, self._store = store.image, store.mask, store

    def segmentation(self, v: int) -> np.ndarray:
        segmentation = self._store.segmentation(v).copy()
        if self.volumes[v].dataset == "A":
            segmentation[1, 2, 3:5] = 1
        return segmentation

    def ignored(self, v: int) -> np.ndarray:
        return np.empty(0, np.int64)


@pytest.fixture(scope="module")
def scanned(store) -> ScannedStore:
    return ScannedStore(store)


@pytest.fixture(scope="module")
def scorer(scanned, reconstructions) -> Scorer:
    return Scorer(scanned, reconstructions, COHORT, HEALTHY_VOLUMES)


@pytest.fixture(scope="module")
def thresholds(scorer) -> dict[str, float]:
    return scorer.thresholds(SCORING)


@pytest.fixture(scope="module")
def measured(scorer, thresholds) -> Measured:
    return measure(scorer, SCORING, thresholds, EVALUATION, scorer)


def truth(scanned, v: int) -> np.ndarray:
    return scanned.segmentation(v) > 0


def rows_of(measured: Measured, dataset: str) -> list[dict]:
    return [row for row in measured.rows if row["dataset"] == dataset]


def test_rows_begin_with_those_of_the_fast_evaluation(scorer, measured, thresholds):
    for ours, basic in zip(measured.rows, evaluate(scorer, SCORING, thresholds).rows, strict=True):
        assert {name: ours[name] for name in basic} == basic


def test_aggregates_hold_those_of_the_fast_evaluation(scorer, measured, thresholds):
    for name, basic in evaluate(scorer, SCORING, thresholds).aggregates.items():
        assert {key: measured.datasets[name][key] for key in basic} == basic


def test_every_column_is_explained(measured):
    for name in {*measured.rows[0], *measured.datasets["A"]}:
        assert describe(name).meaning, name
    assert all(row.keys() == measured.rows[0].keys() for row in measured.rows)
    assert all(numbers.keys() == measured.datasets["A"].keys() for numbers in measured.datasets.values())


def test_every_explained_measure_is_made(measured):
    made = {*measured.rows[0], *measured.datasets["A"]}
    for name in MEASURES:
        filled = {name.format(rate=rate, size=size) for rate in (1, 20) for size in ("below_0.5ml", "0.5_to_0.7ml")}
        assert filled <= made, name


def test_only_plain_defined_numbers(measured):
    json.dumps([measured.rows, measured.datasets], allow_nan=False)
    values = [v for table in (*measured.rows, *measured.datasets.values()) for v in table.values()]
    assert all(type(v) in (int, float, str, type(None)) for v in values)


def test_curves_over_brain_voxels_equal_scikit_learn(scorer, scanned, measured):
    for row in rows_of(measured, "A") + rows_of(measured, "B"):
        v = row["volume_index"]
        brain = scanned.mask(v) > 0
        ill, scores = truth(scanned, v)[brain], scorer.anomaly_map(v, SCORING)[brain].astype(float)
        assert row["auprc_brain"] == pytest.approx(average_precision_score(ill, scores), abs=1e-12)
        assert row["auroc_brain"] == pytest.approx(roc_auc_score(ill, scores), abs=1e-12)
        assert row["lesion_fraction"] == pytest.approx(ill.mean())


def test_pooled_curves_equal_scikit_learn_on_all_volumes_as_one(scorer, scanned, measured):
    for name, volumes in COHORT.items():
        ill = [truth(scanned, v) for v in volumes]
        scores = [scorer.anomaly_map(v, SCORING).astype(float) for v in volumes]
        brains = [scanned.mask(v) > 0 for v in volumes]
        for suffix, masks in {"": [np.ones_like(b) for b in brains], "_brain": brains}.items():
            labels = np.concatenate([i[m] for i, m in zip(ill, masks, strict=True)])
            ranks = np.concatenate([s[m] for s, m in zip(scores, masks, strict=True)])
            found = measured.datasets[name]
            assert found[f"auprc{suffix}_pooled"] == pytest.approx(average_precision_score(labels, ranks), abs=1e-12)
            assert found[f"auroc{suffix}_pooled"] == pytest.approx(roc_auc_score(labels, ranks), abs=1e-12)


@pytest.mark.slow
def test_oracle_is_the_best_mean_dice_at_one_threshold_after_the_filter(scorer, scanned, measured):
    def kept(scores, threshold):
        return segment(scores, threshold, SCORING.minimum_component_voxels, component_rule(SCORING))

    for name, volumes in COHORT.items():
        maps = [scorer.anomaly_map(v, SCORING) for v in volumes]
        candidates = np.unique(np.concatenate([m.ravel() for m in maps]))[:-1]
        means = [
            np.mean([dice(kept(m, t), truth(scanned, v)) for m, v in zip(maps, volumes, strict=True)])
            for t in candidates
        ]
        assert measured.datasets[name]["dataset_oracle_dice"] == pytest.approx(max(means), abs=1e-12)
        assert measured.datasets[name]["dataset_oracle_threshold"] == candidates[int(np.argmax(means))]


def test_thresholds_at_rates_come_from_healthy_validation(scanned, reconstructions, thresholds):
    validation = Scorer(scanned, reconstructions, {"A": [0]}, [5])
    test = Scorer(scanned, reconstructions, COHORT, [6])
    found = measure(test, SCORING, thresholds, EVALUATION, validation)
    scores = validation.anomaly_map(5, SCORING)[scanned.mask(5) > 0]
    for rate in EVALUATION.healthy_false_positive_rates:
        values = {numbers[at_rate("threshold", rate)] for numbers in (*found.rows, *found.datasets.values())}
        (threshold,) = values
        assert np.mean(scores > threshold) <= rate < np.mean(scores >= threshold)
        settings = {"operating_point": "healthy-fpr", "healthy_false_positive_rate": rate}
        assert threshold == validation.thresholds(SCORING.model_copy(update=settings))["all"]


def test_numbers_at_healthy_false_positive_rates(scorer, scanned, measured):
    for row in measured.rows:
        v = row["volume_index"]
        brain, ill = scanned.mask(v) > 0, truth(scanned, v)
        labels, lesions = ndimage.label(ill, np.ones((3, 3, 3)))
        for rate in EVALUATION.healthy_false_positive_rates:
            prediction = scorer.segmentation(v, SCORING, row[at_rate("threshold", rate)])
            found = sum(prediction[labels == i].any() for i in range(1, lesions + 1))
            assert row[at_rate("lesions_found", rate)] == found
            assert row[at_rate("lesion_recall", rate)] == (found / lesions if lesions else None)
            assert row[at_rate("dice", rate)] == (dice(prediction, ill) if lesions else None)
            outside = prediction & ~ill
            assert row[at_rate("false_positive_rate", rate)] == pytest.approx(
                outside[brain].sum() / (brain & ~ill).sum()
            )
            assert row[at_rate("false_positive_ml", rate)] == pytest.approx(0.015 * outside.sum())


def test_more_false_positives_are_allowed_more_lesions_are_found(measured):
    for numbers in measured.datasets.values():
        assert numbers["threshold_at_fpr_1pct"] > numbers["threshold_at_fpr_20pct"]
        assert numbers["lesions_found_at_fpr_1pct"] <= numbers["lesions_found_at_fpr_20pct"]
        assert numbers["false_positive_ml_at_fpr_1pct"] < numbers["false_positive_ml_at_fpr_20pct"]


def test_rates_need_healthy_validation_volumes(scanned, reconstructions, scorer, thresholds):
    validation = Scorer(scanned, reconstructions, COHORT)
    with pytest.raises(DataError, match=r"healthy_false_positive_rates: .*this cohort has none"):
        measure(scorer, SCORING, thresholds, EVALUATION, validation)
    assert thresholds_at_rates(validation, SCORING, ()) == {}


def test_lesions_of_a_volume_and_of_a_data_set(scorer, scanned, measured):
    every = {"lesions": 0, "lesions_found": 0, "components": 0, "components_right": 0}
    for row in rows_of(measured, "A"):
        prediction = scorer.segmentation(row["volume_index"], SCORING, row["threshold"])
        ill = truth(scanned, row["volume_index"])
        counts = []
        for mask, other in ((ill, prediction), (prediction, ill)):
            labels, count = ndimage.label(mask, np.ones((3, 3, 3)))
            counts += [count, sum(other[labels == i].any() for i in range(1, count + 1))]
        assert [row[name] for name in every] == counts
        for name in every:
            every[name] += row[name]
    found = measured.datasets["A"]
    assert {name: found[name] for name in every} == every
    assert found["lesion_recall_pooled"] == every["lesions_found"] / every["lesions"]
    assert found["lesion_precision_pooled"] == every["components_right"] / every["components"]
    recall, precision = found["lesion_recall_pooled"], found["lesion_precision_pooled"]
    assert found["lesion_f1_pooled"] == pytest.approx(2 / (1 / recall + 1 / precision))


def test_strata_hold_every_lesion_once(scanned, measured):
    names = ("below_0.5ml", "0.5_to_0.7ml", "from_0.7ml")
    for row in measured.rows:
        labels, _ = ndimage.label(truth(scanned, row["volume_index"]), np.ones((3, 3, 3)))
        sizes = np.bincount(labels.ravel())[1:] * 0.015
        expected = [np.sum(sizes < 0.5), np.sum((sizes >= 0.5) & (sizes < 0.7)), np.sum(sizes >= 0.7)]
        assert [row[f"lesions_{name}"] for name in names] == expected
        assert sum(row[f"lesions_found_{name}"] for name in names) == row["lesions_found"]
    found = measured.datasets["A"]
    assert found["lesions_below_0.5ml"] == 3  # the two voxels of each volume, in a corner that no brain reaches
    assert found["lesion_recall_below_0.5ml"] == 0
    assert measured.datasets["B"]["lesion_recall_below_0.5ml"] is None
    for name in names[1:]:
        there, met = found[f"lesions_{name}"], found[f"lesions_found_{name}"]
        assert found[f"lesion_recall_{name}"] == (met / there if there else None)


def test_a_stricter_overlap_finds_fewer(scorer, thresholds, measured):
    strict = EVALUATION.model_copy(update={"lesion_overlap": 0.95})
    for loose, tight in zip(measured.rows, measure(scorer, SCORING, thresholds, strict, scorer).rows, strict=True):
        assert tight["lesions_found"] <= loose["lesions_found"]
        assert tight["components_right"] <= loose["components_right"]
        assert tight["lesions"] == loose["lesions"]


def test_volumes_in_ml(scorer, measured):
    for row in measured.rows:
        assert row["lesion_ml"] == pytest.approx(0.015 * row["lesion_voxels"])
        assert row["predicted_ml"] == pytest.approx(0.015 * row["predicted_voxels"])
        right = round((row["recall"] or 0) * row["lesion_voxels"])
        assert row["false_positive_ml"] == pytest.approx(0.015 * (row["predicted_voxels"] - right))


def test_false_positives_on_healthy_scans_at_each_data_sets_operating_point(scorer):
    thresholds = {"A": 0.03, "B": 0.02, "all": 0.025}
    found = measure(scorer, SCORING, thresholds, EVALUATION, scorer).datasets
    for name, threshold in {"A": 0.03, "B": 0.02, HEALTHY: 0.025}.items():
        predicted = [scorer.segmentation(v, SCORING, threshold).sum() * 0.015 for v in HEALTHY_VOLUMES]
        assert found[name]["healthy_false_positive_ml"] == pytest.approx(np.mean(predicted))
        assert found[name]["healthy_false_positive_ml_volumes"] == 2
    assert found[HEALTHY]["healthy_false_positive_ml"] == found[HEALTHY]["false_positive_ml"]
    assert 0 < found["A"]["healthy_false_positive_ml"] < found["B"]["healthy_false_positive_ml"]


def test_hd95_knows_which_axis_has_which_voxel_size(scorer, scanned, measured):
    for row in rows_of(measured, "B"):
        prediction = scorer.segmentation(row["volume_index"], SCORING, row["threshold"])
        edges = []
        for mask in (prediction, truth(scanned, row["volume_index"])):
            inner = ndimage.binary_erosion(mask)
            edges.append(np.argwhere(mask & ~inner) * np.array((2.0, 2.5, 3.0)))
        distances = np.linalg.norm(edges[0][:, None] - edges[1][None], axis=2)
        expected = max(np.percentile(distances.min(axis), 95) for axis in (0, 1))
        assert row["hd95"] == pytest.approx(expected, rel=1e-5)


def test_fidelity_of_healthy_volumes_and_lesion_errors_of_others(scorer, scanned, measured):
    for row in measured.rows:
        v = row["volume_index"]
        brain, ill = scanned.mask(v) > 0, truth(scanned, v)
        difference = scanned.image(v).astype(float) - scorer.reconstruction(v, SCORING)
        if row["dataset"] == HEALTHY:
            assert row["l1"] == pytest.approx(np.abs(difference[brain]).mean())
            assert row["l2"] == pytest.approx((difference[brain] ** 2).mean())
            assert row["psnr"] == pytest.approx(-10 * np.log10(row["l2"]))
            assert 0 < row["ssim"] < 1
            assert row["l1_ratio"] is None
        else:
            lesion, tissue = np.abs(difference[brain & ill]).mean(), np.abs(difference[brain & ~ill]).mean()
            assert row["l1_ratio"] == pytest.approx(lesion / tissue)
            assert (row["l1_lesion"], row["l1_tissue"]) == (pytest.approx(lesion), pytest.approx(tissue))
            assert row["ssim"] is None


def test_means_leave_out_what_is_undefined_and_say_so(measured):
    healthy = measured.datasets[HEALTHY]
    assert (healthy["dice"], healthy["dice_std"], healthy["dice_volumes"]) == (None, None, 0)
    assert healthy["ssim_volumes"] == healthy["volumes"] == 2
    for name, numbers in measured.datasets.items():
        for column in ("dice", "hd95", "lesion_precision", "dice_at_fpr_1pct", "l1_ratio", "false_positive_ml"):
            defined = [row[column] for row in rows_of(measured, name) if row[column] is not None]
            assert numbers[f"{column}_volumes"] == len(defined)
            assert numbers[column] == (pytest.approx(np.mean(defined)) if defined else None)
            assert numbers[f"{column}_std"] == (pytest.approx(np.std(defined)) if defined else None)


def test_nothing_predicted_leaves_holes_and_no_nan(scorer):
    found = measure(scorer, SCORING, {"all": 60000.0}, EVALUATION, scorer)
    row = found.rows[0]
    assert (row["dice"], row["recall"], row["lesion_recall"], row["lesion_f1"]) == (0, 0, 0, 0)
    assert row["precision"] is row["lesion_precision"] is row["hd95"] is None
    assert (found.datasets["A"]["hd95"], found.datasets["A"]["hd95_volumes"]) == (None, 0)
    assert found.datasets["A"]["lesion_f1_pooled"] == 0


@pytest.mark.slow
def test_order_threads_and_memory_change_nothing(scanned, reconstructions, thresholds, measured):
    expected = {row["volume"]: row for row in measured.rows}
    orders = [[0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]]
    for i, order in enumerate(orders):
        threads, memory = ((1, 2**28), (3, 50_000))[i % 2]
        other = Scorer(scanned, reconstructions, {"B": [4, 3], "A": order}, HEALTHY_VOLUMES[::-1], threads, memory)
        found = measure(other, SCORING, thresholds, EVALUATION, other)
        assert {row["volume"]: row for row in found.rows} == expected
        assert [row["volume"] for row in found.rows] != [row["volume"] for row in measured.rows]
        assert found.datasets == measured.datasets  # to the last bit


def test_a_volume_knows_nothing_of_the_others(scanned, reconstructions, scorer, thresholds, measured):
    alone = Scorer(scanned, reconstructions, {"A": [1]})
    (row,) = measure(alone, SCORING, thresholds, EVALUATION, scorer).rows
    assert row == measured.rows[1]


def test_without_healthy_test_volumes_their_numbers_are_undefined(scanned, reconstructions, scorer, thresholds):
    found = measure(Scorer(scanned, reconstructions, COHORT), SCORING, thresholds, EVALUATION, scorer)
    assert set(found.datasets) == {"A", "B"}
    assert found.datasets["A"]["healthy_false_positive_ml"] is None
    assert found.datasets["A"]["healthy_false_positive_ml_volumes"] == 0


def test_the_intensity_baseline_restores_nothing(scanned):
    plain = Scorer(scanned, None, COHORT, HEALTHY_VOLUMES)
    found = measure(plain, SCORING, plain.thresholds(SCORING), EVALUATION, plain)
    assert 0 < found.datasets["A"]["dice"] < 1
    for name in ("l1", "l2", "ssim", "psnr", "l1_lesion", "l1_tissue", "l1_ratio"):
        assert all(row[name] is None for row in found.rows)
        assert found.datasets[HEALTHY][f"{name}_volumes"] == 0


def test_lesions_beyond_the_window_count_as_missed_where_they_were_counted(
    scanned, reconstructions, thresholds, measured
):
    """0.3 ml are 20 voxels of 0.015 ml; in 'B' there was nothing beyond, and healthy scans have no lesion anywhere."""
    beyond = SimpleNamespace(image=scanned.image, mask=scanned.mask, ignored=scanned.ignored)
    beyond.segmentation = lambda v: scanned.segmentation(v) * (v != 1)
    unseen = [(1.5, 0.3)] * 3 + [(0.0, 0.0)] * 2 + [(1.5, 0.0)] * 2
    beyond.volumes = [
        SimpleNamespace(**vars(record), brain_unseen_ml=brain, lesion_unseen_ml=lesion)
        for record, (brain, lesion) in zip(scanned.volumes, unseen, strict=False)
    ]
    scorer = Scorer(beyond, reconstructions, COHORT, HEALTHY_VOLUMES)
    found = measure(scorer, SCORING, thresholds, EVALUATION, scorer)
    for row, before in zip(found.rows, measured.rows, strict=True):
        assert before["dice_with_unseen"] is before["brain_unseen"] is None  # of a store that does not know
        if row["dataset"] == HEALTHY:
            assert row["dice_with_unseen"] is row["recall_with_unseen"] is None
            continue
        more = 20 if row["dataset"] == "A" else 0
        hits = round((row["recall"] or 0) * row["lesion_voxels"])
        wanted = 2 * hits / (row["predicted_voxels"] + row["lesion_voxels"] + more)
        assert row["dice_with_unseen"] == pytest.approx(wanted)
        assert row["recall_with_unseen"] == pytest.approx(hits / (row["lesion_voxels"] + more))
        assert more or row["dice_with_unseen"] == pytest.approx(row["dice"])
    alone = found.rows[1]  # all of its lesions lie beyond: no number of the window alone knows that anything was missed
    assert alone["dice"] is None
    assert alone["dice_with_unseen"] == alone["recall_with_unseen"] == 0
    brain = np.count_nonzero(scanned.mask(0)) * 0.015
    assert found.rows[0]["brain_unseen"] == pytest.approx(1.5 / (1.5 + brain))
    assert found.datasets["A"]["lesion_unseen_ml"] == pytest.approx(0.3)
    assert found.datasets["A"]["dice_with_unseen_volumes"] == 3


def test_no_rates_and_no_limits(scorer, thresholds, measured):
    bare = EVALUATION.model_copy(update={"healthy_false_positive_rates": (), "lesion_size_limits_ml": ()})
    found = measure(scorer, SCORING, thresholds, bare, scorer)
    assert not [name for name in found.rows[0] if "fpr" in name]
    assert found.datasets["A"]["lesion_recall_from_0ml"] == found.datasets["A"]["lesion_recall_pooled"]
    assert math.isclose(found.datasets["A"]["dice"], measured.datasets["A"]["dice"])
