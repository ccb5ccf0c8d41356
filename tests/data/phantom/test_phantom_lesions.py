import numpy as np
import pytest
from scipy import ndimage

from cddpm.data.phantom.subject import DATASETS, Drawing, Focus, Subject, draw

pytestmark = pytest.mark.slow

COUNT = 4


def drawings(dataset: str, contrasts: tuple[str, ...]) -> list[Drawing]:
    return [draw(Subject(0, dataset, index, 2.0), contrasts) for index in range(COUNT)]


@pytest.fixture(scope="module")
def ill() -> dict[str, list[Drawing]]:
    return {dataset: drawings(dataset, ("t1", "t2")) for dataset in DATASETS[1:]}


def healthy_tissue(drawing: Drawing) -> np.ndarray:
    return (drawing.mask > 0) & (drawing.segmentation == 0)


def components_mm3(drawing: Drawing) -> np.ndarray:
    labels, _ = ndimage.label(drawing.segmentation)
    return np.bincount(labels.ravel())[1:] * 8.0


@pytest.mark.parametrize("dataset", DATASETS[1:])
def test_every_segmentation_is_binary_and_inside_the_brain(ill, dataset):
    for drawing in ill[dataset]:
        assert drawing.segmentation.dtype == np.uint8
        assert set(np.unique(drawing.segmentation)) == {0, 1}
        assert not drawing.segmentation[drawing.mask == 0].any()


def test_lesions_have_the_sizes_of_their_disease(ill):
    median = {d: np.median([components_mm3(x).sum() for x in ill[d]]) / 1000 for d in ill}  # ml

    assert 15 < median["Brats21"] < 140
    assert 0.5 < median["MSLUB"] < 8
    assert 2 < median["ATLAS_v2"] < 80
    assert 3 < median["WMH"] < 50


def test_plaques_are_many_and_small(ill):
    for drawing in ill["MSLUB"]:
        volumes = components_mm3(drawing)
        assert len(volumes) >= 5
        assert np.median(volumes) < 4 / 3 * np.pi * 5**3


SHOWN_BY = [("Brats21", "t2"), ("Brats21", "t1"), ("MSLUB", "t2"), ("ATLAS_v2", "t1"), ("WMH", "t1")]


@pytest.mark.parametrize(("dataset", "contrast"), SHOWN_BY)
def test_lesion_intensities_overlap_with_healthy_tissue(ill, dataset, contrast):
    for drawing in ill[dataset]:
        image = drawing.scans[contrast]
        bins = np.linspace(0, image.max(), 41)
        lesion, healthy = (np.histogram(image[m], bins)[0] for m in (drawing.segmentation > 0, healthy_tissue(drawing)))
        overlap = np.minimum(lesion / lesion.sum(), healthy / healthy.sum()).sum()
        assert overlap > 0.2


def test_tumours_are_brighter_than_most_tissue_but_darker_than_fluid_on_t2(ill):
    for drawing in ill["Brats21"]:
        image, lesion = drawing.scans["t2"], drawing.segmentation > 0
        healthy = image[healthy_tissue(drawing)]
        assert np.quantile(healthy, 0.6) < np.median(image[lesion]) < np.quantile(healthy, 0.995)


def test_a_threshold_on_t2_finds_tumours_only_in_part(ill):
    best = [best_dice_of_a_threshold(drawing) for drawing in ill["Brats21"]]

    assert 0.25 < np.mean(best) < 0.65


def best_dice_of_a_threshold(drawing: Drawing) -> float:
    inside = ndimage.binary_erosion(drawing.mask, iterations=2)
    score = ndimage.median_filter(drawing.scans["t2"], 5)[inside]
    hits = np.cumsum(drawing.segmentation[inside][np.argsort(-score, kind="stable")])
    return float((2 * hits / (np.arange(1, len(hits) + 1) + hits[-1])).max())


@pytest.mark.parametrize("dataset", ["Brats21", "MSLUB", "ATLAS_v2", "WMH"])
def test_lesions_are_darker_than_the_white_matter_on_t1(ill, dataset):
    for drawing in ill[dataset]:
        image = drawing.scans["t1"]
        assert np.median(image[drawing.segmentation > 0]) < np.quantile(image[healthy_tissue(drawing)], 0.85)


def test_the_lesion_changes_the_scan_only_where_it_lies_or_pushes():
    subject = Subject(0, "WMH", 1, 2.0)
    drawing = draw(subject, ("t1",))

    again = draw(subject, ("t1", "t2"))

    np.testing.assert_array_equal(drawing.scans["t1"], again.scans["t1"])
    np.testing.assert_array_equal(drawing.segmentation, again.segmentation)


def test_the_mass_effect_pushes_away_from_the_focus_and_fades():
    focus = Focus((20.0, 0.0, 5.0), radius=12.0, push=0.25)
    mesh = np.array([[20, 26, 20], [0, 0, 90], [5, 5, 5]], np.float32)

    seen = focus.displace(mesh.copy(), mesh)

    np.testing.assert_allclose(seen[:, 0], mesh[:, 0])  # the centre stays
    assert 20 < seen[0, 1] < 26  # tissue seen at 6 mm lay nearer to the centre
    np.testing.assert_allclose(seen[:, 2], mesh[:, 2], atol=0.01)
