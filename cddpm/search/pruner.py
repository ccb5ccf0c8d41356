"""Which trainings are stopped early: decided by Optuna's pruners, on previews at equal numbers of images."""

import math

from optuna.pruners import BasePruner, HyperbandPruner, MedianPruner, NopPruner, SuccessiveHalvingPruner

from cddpm.config import ExperimentConfig, SearchConfig


def of(config: ExperimentConfig) -> BasePruner:
    """Optuna's pruner of that name; a step of it is the number of images that a training has seen."""
    search, most = config.search, max(config.training.images, config.search.pruning.grace_images)
    grace, factor = search.pruning.grace_images, search.pruning.reduction_factor
    if search.pruner == "none":
        return NopPruner()
    if search.pruner == "successive-halving":
        return SuccessiveHalvingPruner(min_resource=grace, reduction_factor=factor)
    if search.pruner == "hyperband":
        return HyperbandPruner(min_resource=grace, max_resource=most, reduction_factor=factor)
    if search.pruner == "median":
        return MedianPruner(n_warmup_steps=grace)
    raise ValueError(f"search.pruner: {search.pruner!r}; allowed are successive-halving, hyperband, median and none")


def rungs(search: SearchConfig, images: int) -> list[list[int]]:
    """Images at which trials are compared, per bracket (the strictest first), before the budget of ``images`` ends.

    The brackets are those of Li et al. 2018 (Hyperband, algorithm 1), as Optuna counts them. Empty for other pruners.
    """
    grace, factor = search.pruning.grace_images, search.pruning.reduction_factor
    count = {"successive-halving": 1, "hyperband": _power(max(images, grace) / grace, factor) + 1}.get(search.pruner, 0)
    found = [
        [grace * factor**power for power in range(_power(images / grace, factor) + 1)] if images > grace else []
    ] * count
    return [[rung for rung in row[bracket:] if rung < images] for bracket, row in enumerate(found)]


def compared_at(search: SearchConfig, images: int) -> int:
    """The images at which a validation after ``images`` is compared with those of other trials.

    Trials of other batch sizes or budgets are validated a little before or after one another; what they have in common is
    the rung that they have reached, or of the median the multiple of ``grace_images``. Before the first, and where nothing
    is pruned, these are ``images`` themselves.
    """
    grace, factor = search.pruning.grace_images, search.pruning.reduction_factor
    if search.pruner == "none" or images < grace:
        return images
    if search.pruner == "median":
        return images // grace * grace
    return grace * factor ** _power(images / grace, factor)


def _power(ratio: float, factor: int) -> int:
    """The largest whole power of ``factor`` that is at most ``ratio`` (at least 1), safe from rounding."""
    power = max(0, round(math.log(ratio, factor)))
    return power if factor**power <= ratio else power - 1
