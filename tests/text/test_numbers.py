"""Numbers as people read them."""

import time

import pytest

from cddpm.text.numbers import (
    about,
    age,
    clock,
    counted,
    duration,
    extent,
    fine_score,
    first_few,
    number,
    percent,
    score,
    setting,
    size,
)


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (None, "-"),
        (True, "yes"),
        (12345, "12,345"),
        (0.00012345, "0.000123"),
        (2.0, "2"),
        (20000.0, "20,000"),
        (1123.6, "1,124"),
        ([250, 500], "250, 500"),
        ([], "none"),
        ("l1", "l1"),
    ],
)
def test_numbers_are_short(value: object, shown: str) -> None:
    assert number(value) == shown


@pytest.mark.parametrize(
    ("seconds", "shown"), [(None, "-"), (0.25, "0.25 s"), (119.0, "119 s"), (150.0, "2.5 min"), (9000.0, "2.5 h")]
)
def test_durations_have_a_unit(seconds: float | None, shown: str) -> None:
    assert duration(seconds) == shown


@pytest.mark.parametrize(
    ("found", "shown"),
    [
        (score(0.12345), "0.123"),
        (score(None), "-"),
        (score(None, ""), ""),
        (fine_score(0.12345), "0.1235"),
        (fine_score(None), "-"),
        (setting(0.00012345), "0.000123"),
        (setting(20000), "20000"),
        (setting(None), "None"),
        (percent(0.00123), "0.123 %"),
        (counted(1, "trial"), "1 trial"),
        (counted(2000, "trial"), "2,000 trials"),
        (first_few([1, 2, 3]), "1, 2, 3"),
        (first_few(range(7)), "0, 1, 2, 3, 4, 5, ... (7)"),
        (extent((192, 192, 100)), "192x192x100"),
        (size(12), "12 B"),
        (size(1536), "1.5 KiB"),
        (size(3 * 2**50), "3072.0 TiB"),
        (about(200), "about 3 min 20 s"),
        (about(18720), "about 5 h 12 min"),
        (clock(727.9), "12:07"),
    ],
)
def test_every_kind_has_its_own_form(found: str, shown: str) -> None:
    assert found == shown


@pytest.mark.parametrize(
    ("seconds", "shown"), [(40, "40 s"), (720, "12 min"), (5 * 3600, "5 h"), (3 * 86400, "3 d"), (-9, "0 s")]
)
def test_an_age_has_the_largest_unit_that_fits(seconds: float, shown: str) -> None:
    assert age(time.time() - seconds) == shown
