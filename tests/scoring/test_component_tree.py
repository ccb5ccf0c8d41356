"""The component tree equals removing small components at every threshold, one by one."""

import itertools

import numpy as np
import pytest
from scipy import ndimage

from cddpm.scoring.component_tree import best_filtered_dice, filtered_counts
from cddpm.scoring.metrics import dice
from cddpm.scoring.operating_point import best_dice, histogram, threshold_bits, threshold_value
from cddpm.scoring.postprocess import ComponentRule, remove_small_components


def scores_of(seed: int, shape=(8, 11, 10), smooth: float = 0.7, values: int = 20) -> np.ndarray:
    """Blobs with many ties, zero on about half of the voxels, up to the border."""
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=shape), smooth)
    return (np.round(np.maximum(noise / noise.std(), 0) * values / 3) / 64).astype(np.float16)


def lesion_of(seed: int, shape=(8, 11, 10)) -> np.ndarray:
    return np.random.default_rng(seed + 100).random(shape) < 0.2


def filtered_dice(scores: np.ndarray, truth: np.ndarray, threshold: float) -> float:
    return dice(remove_small_components(scores > threshold, 8), truth)


def hollow_shells() -> np.ndarray:
    """Shells of all sizes whose walls rise at different thresholds, one with something inside."""
    scores = np.zeros((14, 30, 16), np.float16)
    for i, (start, edge) in enumerate([(1, 3), (6, 4), (12, 5), (19, 6)]):
        box = np.s_[2 : 2 + edge, start : start + edge, 3 : 3 + edge]
        shell = np.full((edge,) * 3, 0.5 + 0.01 * i, np.float16)
        shell[1:-1, 1:-1, 1:-1] = 0.1
        shell[0, 0, 0] = 0.3  # closes last
        scores[box] = shell
    scores[4, 21, 6] = 0.6  # a hole is filled whatever lies in it
    return scores


@pytest.mark.slow
@pytest.mark.parametrize("connectivity", [6, 18, 26])
@pytest.mark.parametrize("size", ["filled", "voxels"])
@pytest.mark.parametrize("minimum", [0, 1, 8, 27, 50])
def test_equals_the_filter_at_every_threshold(connectivity, size, minimum):
    rule = ComponentRule(connectivity, size)
    for scores in (scores_of(minimum), scores_of(minimum + 1, smooth=1.5), hollow_shells()):
        truth = lesion_of(minimum, scores.shape)
        counts = filtered_counts(scores, np.flatnonzero(truth), minimum, rule)
        assert counts.lesion_voxels == truth.sum()
        assert counts.predicted.size == threshold_bits(scores.max()) + 1
        for t in np.unique(np.append(scores, np.float16(0))):
            kept = remove_small_components(scores > t, minimum, rule)
            b = threshold_bits(t)
            assert (counts.predicted[b], counts.true_positive[b]) == (kept.sum(), (kept & truth).sum())


def test_holes_decide_where_they_must():
    """A shell of 26 voxels around one: kept from 27 on only with its hole, and only once it is closed."""
    scores = hollow_shells()
    filled, voxels = (
        filtered_counts(scores, np.arange(1), 27, ComponentRule(26, size)) for size in ("filled", "voxels")
    )
    closed, open_ = threshold_bits(0.2), threshold_bits(0.4)
    assert filled.predicted[closed] - voxels.predicted[closed] == 26
    assert filled.predicted[open_] == voxels.predicted[open_]


def test_between_thresholds_nothing_changes():
    scores = scores_of(3)
    counts = filtered_counts(scores, np.flatnonzero(lesion_of(3)), 8, ComponentRule())
    values = np.unique(scores)
    for low, high in itertools.pairwise(values):
        assert len(set(counts.predicted[threshold_bits(low) : threshold_bits(high)])) == 1


def test_the_optimum_is_that_of_trying_every_threshold():
    volumes = [(scores_of(seed), lesion_of(seed)) for seed in range(5)]
    counts = [filtered_counts(s, np.flatnonzero(t), 8, ComponentRule()) for s, t in volumes]
    candidates = np.unique(np.concatenate([[0], *[s.ravel() for s, _ in volumes]]))
    for plan in ([[0]], [[0, 1, 2]], [[0, 1, 2], [3, 4]]):
        means = [
            np.mean(
                [
                    np.mean([dice(remove_small_components(volumes[i][0] > t, 8), volumes[i][1]) for i in group])
                    for group in plan
                ]
            )
            for t in candidates
        ]
        found = best_filtered_dice([[counts[i] for i in group] for group in plan])
        assert found.dice == pytest.approx(max(means), abs=1e-12)
        assert found.threshold == candidates[int(np.argmax(means))]


def test_without_a_filter_it_is_the_optimum_before_the_filter():
    scores, truth = scores_of(7), lesion_of(7)
    plain = best_dice([[histogram(scores, truth)]])
    assert best_filtered_dice([[filtered_counts(scores, np.flatnonzero(truth), 0, ComponentRule(6))]]) == plain


def test_nothing_scores():
    nothing = np.zeros((3, 4, 5), np.float16)
    counts = filtered_counts(nothing, np.array([7]), 8, ComponentRule())
    assert (counts.predicted.tolist(), counts.true_positive.tolist()) == ([0], [0])
    assert best_filtered_dice([[counts]]).dice == 0
    assert threshold_value(0) == 0


def test_impossible_scores_and_volumes_without_lesion_are_refused():
    with pytest.raises(ValueError, match="finite and >= 0"):
        filtered_counts(np.full((2, 2, 2), np.nan, np.float16), np.array([0]), 8, ComponentRule())
    counts = filtered_counts(scores_of(1), np.empty(0, np.int64), 8, ComponentRule())
    with pytest.raises(ValueError, match="no volume with lesion voxels"):
        best_filtered_dice([[counts]])
    with pytest.raises(ValueError, match="has no Dice curve"):
        counts.dice_curve(10)
