"""Which trainings are stopped early: decided by Optuna's pruners, on previews at equal numbers of images."""

from optuna.pruners import BasePruner, HyperbandPruner, MedianPruner, NopPruner, SuccessiveHalvingPruner

from cddpm.config import ExperimentConfig, SearchConfig


def of(config: ExperimentConfig) -> BasePruner:
    """Optuna's pruner of that name; a step of it is the number of images that a training has seen."""
    asha = config.search.asha
    grace, factor = asha.grace_images, asha.reduction_factor
    if config.search.scheduler == "none":
        return NopPruner()
    if config.search.scheduler == "asha":
        return SuccessiveHalvingPruner(min_resource=grace, reduction_factor=factor)
    if config.search.scheduler == "hyperband":
        # of the largest resource Optuna wants to know no more than how many brackets there are
        most = grace * factor ** (asha.brackets - 1) + 1
        return HyperbandPruner(min_resource=grace, max_resource=most, reduction_factor=factor)
    if config.search.scheduler == "median":
        return MedianPruner(n_warmup_steps=grace)
    raise ValueError(f"search.scheduler: {config.search.scheduler!r}; allowed are asha, hyperband, median and none")


def rungs(search: SearchConfig, images: int) -> list[list[int]]:
    """Images at which trials are compared, per bracket (the strictest first), before the budget of ``images`` ends.

    The brackets are those of Li et al. 2018 (Hyperband, algorithm 1). Empty where there are no rungs.
    """
    grace, factor = search.asha.grace_images, search.asha.reduction_factor
    count = {"asha": 1, "hyperband": search.asha.brackets}.get(search.scheduler, 0)
    found = list[list[int]]()
    for bracket in range(count):
        rung = grace * factor**bracket
        found.append([])
        while rung < images:
            found[-1].append(rung)
            rung *= factor
    return found


def compared_at(search: SearchConfig, images: int) -> int:
    """The images at which a validation after ``images`` is compared with those of other trials.

    Trials of other batch sizes or budgets are validated a little before or after one another; what they have in common is
    the rung that they have reached, or of the median the multiple of ``grace_images``. Before the first, and where nothing
    is pruned, these are ``images`` themselves.
    """
    grace = search.asha.grace_images
    if search.scheduler == "none" or images < grace:
        return images
    if search.scheduler == "median":
        return images // grace * grace
    rung = grace
    while rung * search.asha.reduction_factor <= images:
        rung *= search.asha.reduction_factor
    return rung
