"""What a trial shows of its validation volumes at its best setting: a table with a row per volume, and a picture."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from cddpm import artifact
from cddpm.config import ExperimentConfig
from cddpm.scoring.score import Scorer, evaluate
from cddpm.search import scoring_search
from cddpm.search.point import Point
from cddpm.tracking.mirror import table

VOLUMES, PICTURE = "val_volumes.json", "val_volumes.png"


def keep(folder: Path, scorer: Scorer, config: ExperimentConfig, best: Point) -> Point:
    """Write both into ``folder``: every validation volume measured, and the best, median and worst of them drawn.

    No picture without a lesion to draw. Gives ``best`` with all that an evaluation measures. Raises ``StorageError`` if the
    disk refuses.
    """
    from cddpm.scoring.figures import overview, overview_rows  # a training that begins does not wait for Matplotlib

    scoring = scoring_search.scoring_with(config, best.params)
    evaluation = evaluate(scorer, scoring, best.thresholds)
    rows = [{**row, "subject": scorer.store.volumes[row["volume_index"]].subject} for row in evaluation.rows]
    artifact.write_text(folder / VOLUMES, json.dumps(table(rows)))
    if shown := overview_rows(scorer, scoring, rows):
        overview(shown, folder / PICTURE)
    return replace(best, datasets=evaluation.aggregates)


def rows(folder: Path) -> list[dict[str, Any]]:
    """The table that ``keep`` wrote, a row per volume; empty where it did not."""
    file = folder / VOLUMES
    if not file.exists():
        return []
    found = json.loads(file.read_text())
    return [dict(zip(found["columns"], values, strict=True)) for values in found["data"]]
