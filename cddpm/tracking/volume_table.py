"""The rows of numbers, one per volume, that runs keep beside their metrics."""

import json
import tempfile
from pathlib import Path
from typing import Any

from cddpm.errors import ArtifactError
from cddpm.tracking import names, registered_files
from cddpm.tracking.catalogue import Catalogue, RunRecord
from cddpm.tracking.version import Version


def rows(catalogue: Catalogue, uri: str, version: Version, split: str) -> list[dict[str, Any]] | None:
    """Rows of a version's volumes of ``split``; None if its run keeps none. Of test only a sweep's champion has any.

    Raises ``ArtifactError`` for a damaged table, ``TrackingError`` if MLflow at ``uri`` does not answer.
    """
    run = _run(catalogue, version.run_id)
    if run is not None and split == "test":
        sweep = _run(catalogue, run.tags.get(names.PARENT, ""))
        run = sweep if sweep is not None and sweep.tags.get(names.CHAMPION) == version.trial_name else None
    if run is None:
        return None
    with tempfile.TemporaryDirectory(prefix="cddpm-") as folder:
        content = registered_files.read_file(run.artifacts, names.VOLUMES[split], Path(folder), uri)
    return None if content is None else _champions(_table(content, run.id))


def _run(catalogue: Catalogue, run_id: str) -> RunRecord | None:
    return catalogue.runs([run_id]).get(run_id) if run_id else None


def _table(content: bytes, run: str) -> list[dict[str, Any]]:
    try:
        table = json.loads(content)
        return [dict(zip(table["columns"], row, strict=True)) for row in table["data"]]
    except (ValueError, KeyError, TypeError) as error:
        raise ArtifactError(f"run {run}: its table of volumes is damaged ({error})") from error


def _champions(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Without the rows of what the champion had to beat."""
    return [row for row in found if row.get("contender") in (None, names.CONTENDER)]
