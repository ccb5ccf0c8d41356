"""Failures that are alike end a sweep; others do not."""

import pickle

import pytest

from cddpm.search.budget import Failures, kind_of


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("the loss became nan after 512 images", "the loss became nan after 1,024 images"),
        ("/a/b c: no space left", "/x/y.z c: no space left"),
        ("out of memory: tried 1.5e9 bytes", "out of memory: tried 77 bytes"),
        ("checkpoint 0123456789abcdef is gone", "checkpoint fedcba9876543210 is gone"),
        ("trial 3: training.images: -5\nmore about 3", "trial 12: training.images: -6\nother words"),
    ],
)
def test_messages_that_differ_in_numbers_and_paths_only_are_alike(one: str, other: str) -> None:
    assert kind_of(one) == kind_of(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("the loss became nan", "the loss became inf"),
        ("KeyError: 'a'", "KeyError: 'b'"),
        ("OSError: gone", "ValueError: gone"),
        ("feedback of a decade is gone", "feedback is gone"),  # words are no fingerprints
    ],
)
def test_other_words_are_another_failure(one: str, other: str) -> None:
    assert kind_of(one) != kind_of(other)


def test_so_many_alike_in_a_row_are_enough() -> None:
    failures = Failures(3)
    for number in (0, 1):
        failures.failed(number, f"no space for {number} bytes")
        assert failures.met is None
    failures.failed(2, "something else")
    assert failures.met is None
    failures.failed(3, "no space for 3 bytes")
    assert failures.met == "3 trials in a row failed alike (0000, 0001, 0003): no space for 0 bytes"
    failures.ended_well()  # one that was running meanwhile changes nothing any more
    assert failures.met is not None


def test_a_trial_that_ends_well_begins_the_count_anew() -> None:
    failures = Failures(2)
    failures.failed(0, "gone")
    failures.ended_well()
    failures.failed(2, "gone")
    assert failures.met is None
    failures.failed(3, "gone")
    assert failures.met == "2 trials in a row failed alike (0002, 0003): gone"


def test_without_a_limit_nothing_is_enough() -> None:
    failures = Failures(None)
    for number in range(100):
        failures.failed(number, "gone")
    assert failures.met is None


def test_one_failure_can_be_enough_and_survives_a_snapshot() -> None:
    failures = Failures(1)
    failures.failed(7, "")
    assert pickle.loads(pickle.dumps(failures)).met == "1 trials in a row failed alike (0007): "
