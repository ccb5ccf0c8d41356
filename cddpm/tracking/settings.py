"""With which settings a registered version was made, as the runs of its sweep and trial say."""

import json
from collections.abc import Iterable, Mapping
from typing import Any

from cddpm.tracking import names
from cddpm.tracking.catalogue import Catalogue, RunRecord
from cddpm.tracking.version import Version


def settings_of(versions: Iterable[Version], catalogue: Catalogue) -> dict[int, dict[str, str]]:
    """Setting by dotted path, as text, by version number: the sweep's over the defaults, and over those the trial's.

    Of a run that is gone nothing is known.
    """
    wanted = {version.number: version.run_id for version in versions}
    trials = catalogue.runs(wanted.values())
    parents = catalogue.runs({run.tags[names.PARENT] for run in trials.values() if names.PARENT in run.tags})
    defaults = _defaults() if trials else {}
    return {number: _settings(trials.get(run_id), parents, defaults) for number, run_id in wanted.items()}


def texts(config: Mapping[str, Any]) -> dict[str, str]:
    """Plain JSON data by dotted path, each value as the text that the lab book keeps."""
    from cddpm.config import flat  # a fifth of a second, for conditions on settings alone

    return {path: value if isinstance(value, str) else json.dumps(value) for path, value in flat(config).items()}


def _settings(run: RunRecord | None, parents: dict[str, RunRecord], defaults: dict[str, str]) -> dict[str, str]:
    if run is None:
        return {}
    parent = parents.get(run.tags.get(names.PARENT, ""))
    return {**defaults, **(parent.params if parent else {}), **run.params}


def _defaults() -> dict[str, str]:
    """Runs keep only what differs from these."""
    from cddpm.config import ExperimentConfig, to_dict

    return texts(to_dict(ExperimentConfig(name="defaults")))
