"""The preprint's table: complete, and spot-checked against its text; and what others got."""

from cddpm.published.numbers import CDDPM, CDDPM_ENSEMBLE, DDPM, PUBLISHED, RERUN, THRESHOLD, published, rerun


def test_five_methods_on_four_data_sets_have_dice_and_auprc() -> None:
    assert len(PUBLISHED) == 5 * 4 * 2
    assert len({method for method, _, _ in PUBLISHED}) == 5
    assert all(0 < number.mean < 100 and number.std is None for number in PUBLISHED.values())


def test_numbers_stand_under_their_own_method_data_set_and_measure() -> None:
    def value(*key: str) -> float | None:
        number = published(*key)
        return number.mean if number else None

    assert value(THRESHOLD, "ATLAS_v2", "auprc") == 1.71
    assert value(DDPM, "MSLUB", "dice") == 4.80
    assert value(CDDPM_ENSEMBLE, "Brats21", "dice") == 53.37
    assert value(CDDPM_ENSEMBLE, "WMH", "auprc") == 9.33
    assert value("pDDPM", "Brats21", "auprc") == 54.70


def test_every_number_names_its_source() -> None:
    assert {number.source for number in PUBLISHED.values()} == {"Behrendt et al., preprint arXiv 2312.04215 v1"}


def test_what_nobody_published_is_none() -> None:
    assert published("DDPM", "Brats21", "hd95") is None
    assert published("ddpm", "Brats21", "dice") is None


def test_what_others_got_stands_beside_a_published_number_and_far_below_it() -> None:
    """BraTS21 41.5 for 51.3, MSLUB 5.6 for 10.7."""
    assert {place: number.mean for place, number in RERUN.items()} == {
        (CDDPM, "Brats21", "dice"): 41.5,
        (CDDPM, "MSLUB", "dice"): 5.6,
    }
    for place, number in RERUN.items():
        assert PUBLISHED[place].mean - number.mean > 5
        assert "2409.19623" in number.source
    assert rerun(CDDPM, "Brats21", "auprc") is None
