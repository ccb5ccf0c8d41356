"""Seeds: stable on every machine, told apart by all that names them, and each deciding its own draws alone."""

import numpy as np
import pytest

from cddpm.seeds import generator, seed_of, step_seed, uniform


def test_seeds_are_stable_across_machines_and_versions():
    assert seed_of(0, "IXI105-HH-1471_t1", 25, 500) == 4403194929165586847


def test_seeds_tell_their_parts_apart():
    seeds = {seed_of(0, "1", 2), seed_of(0, 1, 2), seed_of(0, 12), seed_of(0, "12"), seed_of(1, "1", 2)}
    assert len(seeds) == 5
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert seed_of(np.int64(3), np.int64(4)) == seed_of(3, 4)


def test_a_step_has_the_seed_that_it_always_had() -> None:
    assert step_seed(3, 64) == 3_000_073
    assert 0 <= step_seed(2**62, 5) < 2**63


@pytest.mark.parametrize("seed", [-1, 0, 2**63 - 1])
def test_every_row_of_uniform_numbers_is_its_own_seeds_alone(seed: int) -> None:
    rows = uniform([5, seed], 7)
    assert np.array_equal(rows[1], np.random.default_rng(seed % 2**64).random(7))
    assert np.array_equal(rows[0], uniform([5], 7)[0])


def test_generators_are_keyed_by_all_bits() -> None:
    first, *others = (generator(seed).random() for seed in (1, 1 + 2**40, -1))
    assert first == generator(1).random()
    assert first not in others
