"""Ignored voxels count neither way: every number is the one of arrays from which they are taken out after the prediction."""

from types import SimpleNamespace

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from cddpm.config import EvaluationConfig, ScoringConfig
from cddpm.errors import DataError
from cddpm.published.scoring import ReferenceVolume, healthy_reference_metrics, reference_metrics
from cddpm.scoring.component_tree import filtered_counts
from cddpm.scoring.figures import overview_rows
from cddpm.scoring.measures import measure
from cddpm.scoring.metrics import dice
from cddpm.scoring.operating_point import histogram, threshold_value
from cddpm.scoring.postprocess import ComponentRule, remove_small_components
from cddpm.scoring.score import HEALTHY, Scorer

COHORT, HEALTHY_VOLUMES = {"A": [0, 1, 2], "B": [3, 4]}, [5, 6]
SCORING = ScoringConfig(median_kernel=3, minimum_component_voxels=3, operating_point="val-dice")


class Ignoring:
    """The cohort of ``store``, with a box of each volume (brain, background, some of the lesion) that counts neither way."""

    def __init__(self, store, box=np.s_[3:6, 8:18, 8:14]) -> None:
        geometry = SimpleNamespace(working_voxel_size_mm=(2.0, 2.0, 2.0), beyond=None)
        self.volumes = [SimpleNamespace(id=r.id, dataset=r.dataset, geometry=geometry) for r in store.volumes]
        self.image, self.mask, self._store = store.image, store.mask, store
        self.hidden = np.zeros(store.mask(0).shape, bool)
        self.hidden[box] = True
        self.hidden[0, 0, :4] = True

    def segmentation(self, v: int) -> np.ndarray:
        return self._store.segmentation(v) * ~self.hidden

    def ignored(self, v: int) -> np.ndarray:
        return np.flatnonzero(self.hidden)


@pytest.fixture(scope="module")
def ignoring(store) -> Ignoring:
    return Ignoring(store)


@pytest.fixture(scope="module")
def scorer(ignoring, reconstructions) -> Scorer:
    return Scorer(ignoring, reconstructions, COHORT, HEALTHY_VOLUMES)


def test_the_map_is_that_of_a_prediction_which_knows_of_nothing(scorer, store, reconstructions) -> None:
    plain = Scorer(store, reconstructions, COHORT, HEALTHY_VOLUMES)
    for v in range(7):
        np.testing.assert_array_equal(scorer.anomaly_map(v, SCORING), plain.anomaly_map(v, SCORING))


@pytest.mark.slow
@pytest.mark.parametrize("operating_point", ["val-dice", "val-dice-filtered", "seed-search", "healthy-fpr"])
def test_thresholds_and_rows_are_those_of_the_other_voxels(scorer, ignoring, operating_point: str) -> None:
    scoring = SCORING.model_copy(update={"operating_point": operating_point})
    thresholds, left = scorer.thresholds(scoring), ~ignoring.hidden
    for row in scorer.rows(scoring, thresholds, ["A", "B"], oracle=True):
        v = row["volume_index"]
        scores, truth = scorer.anomaly_map(v, scoring), ignoring.segmentation(v)[left] > 0
        found = scorer.segmentation(v, scoring, row["threshold"])[left]
        brain = ignoring.mask(v)[left] > 0
        assert row["lesion_voxels"] == truth.sum()
        assert row["predicted_voxels"] == found.sum()
        assert row["false_positive_rate"] == pytest.approx(found[brain & ~truth].mean())
        if truth.any():
            assert row["dice"] == pytest.approx(dice(found, truth))
            assert row["auprc"] == pytest.approx(average_precision_score(truth, scores[left]))
            assert row["auroc"] == pytest.approx(roc_auc_score(truth, scores[left]))
            every = [dice(scorer.segmentation(v, scoring, float(t))[left], truth) for t in np.unique(scores)]
            assert row["oracle_dice"] == pytest.approx(max(every))
    if operating_point == "val-dice-filtered":
        best = thresholds["A"]
        means = {}
        for t in {best, *np.unique(scorer.anomaly_map(0, scoring))[::7].tolist()}:
            pairs = [
                (scorer.segmentation(v, scoring, t)[left], ignoring.segmentation(v)[left] > 0) for v in COHORT["A"]
            ]
            means[t] = np.mean([dice(found, truth) for found, truth in pairs if truth.any()])
        assert means[best] == pytest.approx(max(means.values()))
    if operating_point == "healthy-fpr":
        pooled = np.concatenate(
            [scorer.anomaly_map(v, scoring)[left & (ignoring.mask(v) > 0)] for v in HEALTHY_VOLUMES]
        )
        assert (pooled > thresholds["all"]).mean() <= scoring.healthy_false_positive_rate


def test_no_measure_depends_on_what_is_found_there(scorer, ignoring, reconstructions) -> None:
    """A prediction that hits the whole box, or nothing of it, is measured alike."""
    thresholds = scorer.thresholds(SCORING)
    told = []
    for everything in (False, True):
        other = Scorer(ignoring, reconstructions, COHORT, HEALTHY_VOLUMES)
        plain = other.segmentation

        def found(v, scoring, threshold, plain=plain, everything=everything):
            return np.where(ignoring.hidden, everything, plain(v, scoring, threshold))

        other.segmentation = found  # type: ignore[method-assign]
        measured = measure(other, SCORING, thresholds, EvaluationConfig(), scorer)
        told.append((measured.rows, measured.datasets))
    assert told[0] == told[1]


@pytest.mark.parametrize("connectivity", [6, 26])
@pytest.mark.parametrize("size", ["filled", "voxels"])
def test_components_are_those_of_the_prediction_and_counts_of_the_rest(connectivity, size) -> None:
    random = np.random.default_rng(3)
    scores = (np.round(np.maximum(random.normal(size=(6, 9, 8)), 0) * 6) / 64).astype(np.float16)
    truth, hidden = random.random((2, 6, 9, 8)) < np.array([0.2, 0.3]).reshape(2, 1, 1, 1)
    truth &= ~hidden
    rule = ComponentRule(connectivity, size)
    counts = filtered_counts(scores, np.flatnonzero(truth), 5, rule, np.flatnonzero(hidden))
    for b in np.unique(scores.view(np.uint16))[:-1]:
        kept = remove_small_components(scores > threshold_value(int(b)), 5, rule) & ~hidden
        assert (counts.predicted[b], counts.true_positive[b]) == (kept.sum(), (kept & truth).sum())
    rest = histogram(scores[~hidden], truth[~hidden])
    ours = histogram(scores, truth, np.flatnonzero(hidden))
    np.testing.assert_array_equal(ours.lesion, rest.lesion)
    np.testing.assert_array_equal(ours.normal, rest.normal)


def test_the_published_numbers_leave_them_out_too() -> None:
    """Only what lies there differs between the two volumes; erosion and median are off, as they look at neighbours."""
    random, shape = np.random.default_rng(4), (6, 12, 10)
    image, truth, hidden = random.random(shape), random.random(shape) < 0.2, random.random(shape) < 0.2
    scoring = ScoringConfig(median_kernel=1, erosion_divisor=None, minimum_component_voxels=0)
    told = []
    for value in (0.0, 0.9):
        changed = np.where(hidden, value, image)
        mask, segmentation = np.ones(shape, np.uint8), (truth & ~hidden).astype(np.uint8)
        one = ReferenceVolume(changed, np.zeros(shape), mask, segmentation, 1.0, np.flatnonzero(hidden))
        told.append((reference_metrics([one], scoring, 0.5), healthy_reference_metrics([one], scoring)))
    np.testing.assert_equal(told[0], told[1])


def test_nothing_is_drawn_as_found_there(scorer, ignoring) -> None:
    for row in overview_rows(scorer, SCORING, scorer.rows(SCORING, scorer.thresholds(SCORING), ["A"])):
        assert not row.segmentation[ignoring.hidden].any()
        assert not row.anomaly_map[ignoring.hidden].any()


def test_a_brain_that_is_ignored_whole_is_an_error(store, reconstructions) -> None:
    with pytest.raises(DataError, match="all of its brain is ignored"):
        Scorer(Ignoring(store, np.s_[:, :, :]), reconstructions, {"A": [0]})


def test_the_cases_of_healthy_brains_leave_them_out(scorer, ignoring) -> None:
    for case in scorer.cases(HEALTHY):
        assert not ignoring.hidden.ravel()[case.brain].any()
