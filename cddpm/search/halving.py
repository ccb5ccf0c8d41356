"""Rungs and brackets of successive halving: where weak trainings are stopped, and which trial is judged from when on."""

import numpy as np

from cddpm.config import AshaConfig, SearchConfig
from cddpm.models.noise import slice_seed


def brackets(search: SearchConfig) -> int:
    """How many brackets the scheduler has; 0 for none."""
    if search.scheduler == "none":
        return 0
    if search.scheduler == "asha":
        return 1
    if search.scheduler == "hyperband":
        return search.asha.brackets
    raise ValueError(f"search.scheduler: {search.scheduler!r}; allowed are asha, hyperband and none")


def rungs(asha: AshaConfig, bracket: int, images: int) -> list[int]:
    """Images seen at which trials of ``bracket`` (0 is the strictest) are compared, before the budget of ``images`` ends."""
    found, rung = [], asha.grace_images * asha.reduction_factor**bracket
    while rung < images:
        found.append(rung)
        rung *= asha.reduction_factor
    return found


def compared_at(search: SearchConfig, images: int) -> int:
    """The images at which a validation after ``images`` is compared with those of other trials: its rung.

    Trials of other batch sizes or budgets are validated a little before or after one another; what they have in common is
    the rung that they have reached. Before the first rung, and without a scheduler, these are ``images`` themselves.
    """
    if not brackets(search):
        return images
    return max(rungs(search.asha, 0, images + 1), default=images)


def bracket_of(seed: int, number: int, asha: AshaConfig, count: int) -> int:
    """The bracket of trial ``number`` out of ``count``; the same in every process.

    Stricter brackets get more trials, so that each costs about the same: in proportion to eta^s / (s + 1), s = count - 1
    for the strictest (Li et al. 2018, Hyperband, algorithm 1, line 2).
    """
    strictness = np.arange(count - 1, -1, -1)
    weights = float(asha.reduction_factor) ** strictness / (strictness + 1)
    random = np.random.default_rng(slice_seed(seed, "bracket", number))
    return int(random.choice(count, p=weights / weights.sum()))
