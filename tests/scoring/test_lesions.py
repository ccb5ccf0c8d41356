"""Detection lesion by lesion: the rule by hand, and against flood filling in plain Python."""

from itertools import product

import numpy as np
import pytest

from cddpm.scoring.metrics import Components, Detection, components, detect, overlapping, pooled, strata


def flood(mask: np.ndarray) -> list[set[tuple[int, ...]]]:
    """Components as sets of voxels, neighbours in all 26 directions."""
    left, found = {tuple(map(int, v)) for v in np.argwhere(mask)}, []
    while left:
        todo, part = [left.pop()], set()
        while todo:
            voxel = todo.pop()
            part.add(voxel)
            for step in product((-1, 0, 1), repeat=3):
                near = tuple(a + b for a, b in zip(voxel, step, strict=True))
                if near in left:
                    left.remove(near)
                    todo.append(near)
        found.append(part)
    return found


def plain(prediction: np.ndarray, truth: np.ndarray, overlap: float) -> Detection:
    ill, told = flood(truth), flood(prediction)
    everything_ill, everything_told = set().union(*ill), set().union(*told)
    found = sum(len(part & everything_told) / len(part) > overlap for part in ill)
    right = sum(len(part & everything_ill) / len(part) > overlap for part in told)
    return Detection(len(ill), found, len(told), right)


def ours(prediction: np.ndarray, truth: np.ndarray, overlap: float) -> Detection:
    return detect(components(prediction), components(truth), overlap)


def lines(*runs: tuple[int, int, int]) -> np.ndarray:
    """Runs of voxels (row, first, last) in a volume (1, 9, 20)."""
    mask = np.zeros((1, 9, 20), bool)
    for row, first, last in runs:
        mask[0, row, first : last + 1] = True
    return mask


@pytest.mark.parametrize("overlap", [0.0, 0.1, 0.5, 0.9])
@pytest.mark.parametrize("seed", range(4))
def test_equals_flood_filling(seed, overlap):
    random = np.random.default_rng(seed)
    prediction, truth = random.random((6, 7, 8)) > 0.92, random.random((6, 7, 8)) > 0.9
    assert ours(prediction, truth, overlap) == plain(prediction, truth, overlap)


def test_hand_worked_counts():
    truth = lines((0, 0, 9), (3, 0, 3), (6, 0, 0), (6, 5, 6))  # 10, 4, 1 and 2 voxels
    prediction = lines(
        (0, 0, 2), (0, 6, 6), (3, 3, 8), (8, 15, 19)
    )  # of the first lesion 4 in two parts, 1 of the second
    found = ours(prediction, truth, 0.0)
    assert found == Detection(lesions=4, found=2, components=4, right=3)
    assert (found.recall, found.precision) == (0.5, 0.75)
    assert found.f1 == pytest.approx(0.6)
    # more than 0.25: the first lesion has 4 of 10, the second 1 of 4, which is not more; its component has 1 of 6
    assert ours(prediction, truth, 0.25) == Detection(lesions=4, found=1, components=4, right=2)


def test_touching_corners_are_one_lesion():
    mask = np.zeros((3, 3, 3), bool)
    mask[0, 0, 0] = mask[1, 1, 1] = mask[2, 2, 2] = True
    assert components(mask).voxels.tolist() == [3]


def test_exactly_the_fraction_is_not_more_than_it():
    parts = Components(np.ones((1, 10, 10), np.int32), np.array([100]))
    for percent in range(1, 100):  # 0.29 * 100 is 28.999999999999996
        covered = (np.arange(100) < percent).reshape(1, 10, 10)
        assert not overlapping(parts, covered, percent / 100)[0]
        assert overlapping(parts, covered, (percent - 1) / 100)[0]


def test_prediction_and_truth_change_roles():
    random = np.random.default_rng(9)
    one, other = random.random((5, 9, 9)) > 0.95, random.random((5, 9, 9)) > 0.9
    forth, back = ours(one, other, 0.2), ours(other, one, 0.2)
    assert (forth.recall, forth.precision) == (back.precision, back.recall)
    assert forth.f1 == pytest.approx(back.f1)


def test_perfect_missing_and_needless_predictions():
    nothing, something = lines(), lines((0, 0, 3), (5, 5, 5))
    perfect = ours(something, something, 0.99)
    assert (perfect.recall, perfect.precision, perfect.f1) == (1, 1, 1)
    missing = ours(nothing, something, 0.0)
    assert (missing.recall, missing.precision, missing.f1) == (0, None, 0)
    needless = ours(something, nothing, 0.0)
    assert (needless.recall, needless.precision, needless.f1) == (None, 0, None)
    elsewhere = ours(lines((2, 9, 9)), something, 0.0)
    assert (elsewhere.recall, elsewhere.precision, elsewhere.f1) == (0, 0, 0)


def test_pooling_is_laying_volumes_side_by_side():
    random = np.random.default_rng(3)
    pairs = [(random.random((4, 6, 6)) > 0.9, random.random((4, 6, 6)) > 0.9) for _ in range(3)]
    side_by_side = [np.concatenate([np.pad(m, 1) for m in masks]) for masks in zip(*pairs, strict=True)]
    assert pooled(ours(p, t, 0.0) for p, t in pairs) == ours(*side_by_side, 0.0)
    assert pooled([]) == Detection(0, 0, 0, 0)


def test_every_lesion_is_in_one_stratum_and_a_limit_in_the_larger():
    volumes_ml = np.array([0.001, 0.0999, 0.1, 0.5, 1.0, 9.99, 10.0, 5000.0])
    found = strata((10.0, 0.1, 1.0, 1.0))
    assert [s.name for s in found] == ["below_0.1ml", "0.1_to_1ml", "1_to_10ml", "from_10ml"]
    assert [s.holds(volumes_ml).tolist().count(True) for s in found] == [2, 2, 2, 2]
    assert np.sum([s.holds(volumes_ml) for s in found], axis=0).tolist() == [1] * 8
    assert found[1].holds(volumes_ml).tolist() == [False, False, True, True, False, False, False, False]


def test_without_limits_there_is_one_stratum():
    (everything,) = strata(())
    assert everything.name == "from_0ml"
    assert everything.holds(np.array([1e-9, 1e9])).all()


def test_shapes_must_agree():
    with pytest.raises(ValueError, match=r"components \(1, 9, 20\) and mask \(1, 9, 21\)"):
        overlapping(components(lines((0, 0, 1))), np.zeros((1, 9, 21), bool), 0.0)
