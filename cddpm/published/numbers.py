"""The numbers that the method's authors published, and what others got with their code, to stand beside ours."""

from dataclasses import dataclass

SOURCE = "Behrendt et al., preprint arXiv 2312.04215 v1"
"""Where ``PUBLISHED`` comes from: real data, mean over folds, in percent."""
RERUN_SOURCE = "Trivedi et al. 2024 (MCDDPM), preprint arXiv 2409.19623"
"""Where ``RERUN`` comes from: the published code, trained and tested again by another group on the same splits."""

THRESHOLD = "intensity threshold"
DDPM = "DDPM"
PDDPM = "pDDPM"
CDDPM = "cDDPM"
CDDPM_ENSEMBLE = "cDDPM, pretrained + noise ensemble"


@dataclass(frozen=True)
class Published:
    """A published number in percent; ``std`` over folds is none where our notes of the source do not hold it."""

    mean: float
    std: float | None = None
    source: str = SOURCE


_DATASETS = ("Brats21", "MSLUB", "ATLAS_v2", "WMH")
_MEASURES = ("dice", "auprc")
_TABLE = {  # per data set: Dice, AUPRC
    THRESHOLD: ((19.69, 20.27), (6.21, 4.23), (4.41, 1.71), (9.38, 4.72)),
    DDPM: ((44.25, 49.98), (4.80, 6.36), (12.90, 15.67), (10.03, 8.86)),
    PDDPM: ((49.36, 54.70), (9.40, 9.88), (12.95, 17.37), (8.03, 7.78)),
    CDDPM: ((51.34, 56.84), (10.71, 10.13), (19.06, 20.98), (9.94, 9.28)),
    CDDPM_ENSEMBLE: ((53.37, 58.84), (11.51, 11.13), (19.99, 22.21), (9.88, 9.33)),
}

PUBLISHED: dict[tuple[str, str, str], Published] = {
    (method, dataset, measure): Published(value)
    for method, pairs in _TABLE.items()
    for dataset, pair in zip(_DATASETS, pairs, strict=True)
    for measure, value in zip(_MEASURES, pair, strict=True)
}
"""By (method, data set, measure)."""

RERUN: dict[tuple[str, str, str], Published] = {
    (CDDPM, "Brats21", "dice"): Published(41.5, source=RERUN_SOURCE),
    (CDDPM, "MSLUB", "dice"): Published(5.6, source=RERUN_SOURCE),
}
"""By (method, data set, measure), as told there: with one decimal."""


def published(method: str, dataset: str, measure: str) -> Published | None:
    """The published number under exactly these names; none if there is none."""
    return PUBLISHED.get((method, dataset, measure))


def rerun(method: str, dataset: str, measure: str) -> Published | None:
    """What another group got for exactly these names with the published code; none if nobody told it."""
    return RERUN.get((method, dataset, measure))
