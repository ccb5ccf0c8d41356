"""Packed volumes: at every threshold on offer their counts are those of the map, and nothing that counts is left out."""

import base64
import dataclasses
import gzip
import json
from typing import Any

import numpy as np
import pytest
from drawn_exhibit import SHAPE, drawn
from numpy.typing import NDArray

from cddpm.report import viewer
from cddpm.report.viewer import LESION, SEGMENTED, Exhibit
from cddpm.scoring import metrics


def unpacked(made: Exhibit) -> tuple[dict[str, Any], NDArray[np.uint8]]:
    """What is known of a packed volume, and its four blocks (4, X, Y, Z)."""
    found = json.loads(viewer.packed(made))
    steps = np.frombuffer(gzip.decompress(base64.b64decode(found["voxels"])), np.uint8)
    blocks = np.cumsum(steps, dtype=np.uint8).reshape(4, *found["shape"][::-1])
    return found, blocks.transpose(0, 3, 2, 1)


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("threshold", [0.0, 0.1, 0.33325195, 5.0])  # 0.1 is no float32 number, 5 is above all scores
def test_above_a_stop_is_the_same_in_levels_and_in_scores(kind: type, threshold: float) -> None:
    scores = np.random.default_rng(0).gamma(1.0, 0.1, 20_000).astype(kind)
    scores[:500] = 0
    stops = viewer.stops(scores, threshold)
    scores[500 : 500 + stops.size] = stops.astype(kind)  # scores that are equal to a stop, or its nearest neighbour
    stops = viewer.stops(scores, threshold)
    levels = viewer.levels(scores, stops)
    assert threshold in stops
    assert stops.size <= viewer.MOST_STOPS
    assert (np.diff(stops) > 0).all()
    for index, stop in enumerate(stops):
        np.testing.assert_array_equal(levels > index, scores.astype(np.float64) > stop)


def test_the_last_stop_has_nothing_above_it_and_the_first_every_score() -> None:
    scores = np.array([0.0, 0.1, 0.7], np.float32)
    assert viewer.levels(scores, viewer.stops(scores, 0.3)).tolist()[0] == 0
    stops = viewer.stops(scores, 0.3)
    assert (stops[0], stops[-1]) == (0.0, float(np.float32(0.7)))
    nothing = np.zeros(4, np.float16)
    assert viewer.stops(nothing, 0.0).tolist() == [0.0]
    assert viewer.levels(nothing, viewer.stops(nothing, 0.0)).tolist() == [0, 0, 0, 0]


def test_dice_of_the_packed_counts_is_dice_of_the_map() -> None:
    made = drawn()
    assert made.truth is not None
    found, (_, _, levels, marks) = unpacked(made)
    lesions = int((marks & LESION > 0).sum())
    assert lesions == made.truth.sum()
    for index, stop in enumerate(found["stops"]):
        above = levels > index
        dice = 2 * int((above & (marks & LESION > 0)).sum()) / (int(above.sum()) + lesions)
        assert dice == metrics.dice(made.anomaly_map.astype(np.float64) > stop, made.truth)
    assert found["kept_dice"] == metrics.dice(made.segmentation, made.truth)


def test_what_is_packed_is_the_volume_inside_a_box() -> None:
    made = drawn()
    found, (image, reconstruction, _, marks) = unpacked(made)
    box = tuple(slice(first, first + size) for first, size in zip(found["first"], found["shape"], strict=True))
    assert all(size < whole for size, whole in zip(found["shape"], SHAPE, strict=True))
    assert found["whole"] == list(SHAPE)
    np.testing.assert_allclose(image / 255, np.clip(made.image[box], 0, 1), atol=0.5 / 255 + 1e-6)
    np.testing.assert_allclose(reconstruction / 255, made.reconstruction[box], atol=0.5 / 255 + 1e-6)
    np.testing.assert_array_equal(marks & SEGMENTED > 0, made.segmentation[box])
    for whole in (made.image != 0, made.anomaly_map > 0, made.segmentation, made.truth):
        assert whole is not None
        assert whole[box].sum() == whole.sum()


def test_a_lesion_outside_of_the_brain_is_kept() -> None:
    truth = np.zeros(SHAPE, bool)
    truth[0, 0, 0] = truth[-1, -1, -1] = True
    found, (_, _, _, marks) = unpacked(dataclasses.replace(drawn(), truth=truth))
    assert found["shape"] == list(SHAPE)
    assert (marks & LESION > 0).sum() == 2


@pytest.mark.parametrize(("truth", "wanted"), [(True, 5), (False, 3)])
def test_it_opens_where_most_is_to_see(truth: bool, wanted: int) -> None:
    kept, lesion = np.zeros(SHAPE, bool), np.zeros(SHAPE, bool)
    kept[8:12, 8:12, 3] = lesion[8:12, 8:12, 5] = True
    found, _ = unpacked(dataclasses.replace(drawn(), segmentation=kept, truth=lesion if truth else None))
    assert found["slice"] + found["first"][2] == wanted


def test_a_name_cannot_end_the_script_that_it_stands_in() -> None:
    packed = viewer.packed(dataclasses.replace(drawn(), name="</script><script>alert(1)"))
    assert "<" not in packed
    assert json.loads(packed)["name"] == "</script><script>alert(1)"


def test_the_same_volume_gives_the_same_bytes() -> None:
    assert viewer.packed(drawn()) == viewer.packed(drawn())
