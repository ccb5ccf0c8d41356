"""Small results and tables of known numbers."""

from functools import cache

from cddpm.config import EvaluationConfig
from cddpm.evaluation.table import ResultTable, build_table
from cddpm.published.numbers import CDDPM, CDDPM_ENSEMBLE, DDPM
from cddpm.scoring.metrics import mean
from cddpm.scoring.statistics import FoldResult
from cddpm.tracking.provenance import Provenance

RULES = EvaluationConfig(folds=(0, 1), bootstrap_resamples=200, permutation_resamples=10_000)
PHANTOM = Provenance("phantom", False, "a machine", "abc", {"torch": "2"})
SUBJECTS = [f"s{i}" for i in range(8)]


def fold_result(
    method: str, fold: int, values: dict[str, float | None], dataset: str = "D", measure: str = "dice"
) -> FoldResult:
    """One volume per subject with its value; the data set's number is their mean."""
    rows = [{"volume": subject, measure: value} for subject, value in values.items()]
    return FoldResult(method, dataset, fold, rows, {measure: mean(values.values())})


def shifted(method: str, fold: int, shift: float, dataset: str = "D", measure: str = "dice") -> FoldResult:
    """Subject i has i / 10 + shift: every subject differs by the shift from that of another method."""
    return fold_result(method, fold, {s: i / 10 + shift for i, s in enumerate(SUBJECTS)}, dataset, measure)


def table_of(results: list[FoldResult], **named: object) -> ResultTable:
    """Their table under ``RULES``."""
    return build_table(results, RULES, PHANTOM, **named)  # type: ignore[arg-type]


@cache
def full_table() -> ResultTable:
    """Three methods of the preprint, its four data sets and two folds; each method gains 5 % on the one before."""
    results = []
    for i, method in enumerate((DDPM, CDDPM, CDDPM_ENSEMBLE)):
        for dataset in ("Brats21", "MSLUB", "ATLAS_v2", "WMH"):
            for fold in (0, 1):
                both = [shifted(method, fold, 0.05 * i + 0.01 * fold, dataset, m) for m in ("dice", "auprc")]
                rows = [{**a, **b} for a, b in zip(both[0].rows, both[1].rows, strict=True)]
                results.append(FoldResult(method, dataset, fold, rows, {**both[0].measures, **both[1].measures}))
    return build_table(results, RULES, PHANTOM, against=CDDPM_ENSEMBLE)
