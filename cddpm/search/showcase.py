"""What a trial shows of its validation volumes at its best setting: a table with a row per volume, and a picture."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cddpm import artifact
from cddpm.config import ExperimentConfig
from cddpm.scoring.figures import overview, overview_rows
from cddpm.scoring.score import Row, Scorer, evaluate
from cddpm.search import scoring_search
from cddpm.search.point import Point

VOLUMES, PICTURE = "val_volumes.json", "val_volumes.png"


def keep(folder: Path, scorer: Scorer, config: ExperimentConfig, best: Point) -> None:
    """Write both into ``folder``: every validation volume measured, and the best, median and worst of them drawn.

    No picture without a lesion to draw. Raises ``StorageError`` if the disk refuses.
    """
    scoring = scoring_search.scoring_with(config, best.params)
    rows = evaluate(scorer, scoring, best.thresholds).rows
    rows = [{**row, "subject": scorer.store.volumes[row["volume_index"]].subject} for row in rows]
    artifact.write_text(folder / VOLUMES, json.dumps(table(rows)))
    if shown := overview_rows(scorer, scoring, rows):
        overview(shown, folder / PICTURE)


def table(rows: Sequence[Row]) -> dict[str, list[Any]]:
    """Rows as MLflow keeps a table: ``{"columns": [...], "data": [[...], ...]}``; what is no number is None."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    return {"columns": columns, "data": [[_cell(row.get(name)) for name in columns] for row in rows]}


def _cell(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
