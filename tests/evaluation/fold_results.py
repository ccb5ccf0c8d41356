"""Small results to make tables of."""

from cddpm.evaluation.result import FoldResult
from cddpm.scoring.metrics import mean


def fold_result(
    method: str, fold: int, values: dict[str, float | None], dataset: str = "D", measure: str = "dice"
) -> FoldResult:
    """One volume per subject with its value; the data set's number is their mean."""
    rows = [{"volume": subject, measure: value} for subject, value in values.items()]
    return FoldResult(method, dataset, fold, rows, {measure: mean(values.values())})
