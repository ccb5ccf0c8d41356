"""A sweep as one HTML page that opens anywhere: no network, no other file."""

from pathlib import Path

import yaml

from cddpm import artifact
from cddpm.config import ExperimentConfig, to_dict
from cddpm.report import course, landscape, standing, viewer
from cddpm.report.document import (
    Block,
    Cell,
    Details,
    Facts,
    Section,
    Table,
    Tiles,
    Words,
    described,
    page,
)
from cddpm.search import record as records
from cddpm.search.record import SweepRecord, TrialRecord
from cddpm.text.numbers import duration, number, score


def write(folder: Path, path: Path) -> Path:
    """Write the page of the sweep in ``folder`` to the file ``path``; returns it.

    Raises ``SearchError`` for a damaged sweep, ``StorageError`` if the disk refuses.
    """
    artifact.write_text(path, html(records.read(folder)))
    return path


def html(record: SweepRecord) -> str:
    """The page of a sweep in whatever state."""
    sections = [
        standing.leaderboard(record),
        standing.gap(record),
        course.history(record),
        landscape.importance(record),
        landscape.slices(record),
        landscape.tradeoff(record),
        standing.operation(record),
        viewer.section(record),
        course.training(record),
        course.cost(record),
        origin(record),
    ]
    return page(f"Sweep {record.config.name}", _head(record), sections)


def _head(record: SweepRecord) -> list[Block]:
    search, best = record.config.search, record.champion
    names = ", ".join(record.config.objective_datasets)
    what = "Champion" if record.contenders else "Best so far"
    return [
        Words(
            f"{_state(record)} Objective: {search.objective} on validation, mean over volumes, then over {names}. Nothing was "
            "chosen on test."
        ),
        *(Words(text, "missing") for text in missing(record)),
        _tiles(record),
        *([Words(f"{what}: trial {best.name}, {described(record.settings(best))}.")] if best else []),
    ]


def _state(record: SweepRecord) -> str:
    if record.running:
        return "Running while this page was made."
    return "Finished." if record.complete else "Stopped before its end; --resume continues it."


def missing(record: SweepRecord) -> list[str]:
    """What a finished sweep would have and this one has not."""
    wanted, ended = record.config.search.training.trials, len(record.ended)
    found = []
    if ended < wanted:
        going = sum(t.state == "running" for t in record.trials)
        more = f", {going} under way" if going else ""
        found.append(f"{ended} of {wanted} training trials have ended{more}. All below is of those.")
    if not record.contenders:
        found.append("Test was not scored yet: there is no champion, no test score and no picture of a test volume.")
    elif ended >= wanted and record.champion is not None and record.champion is not record.finished[0]:
        found.append("A better trial has finished since test was scored; --resume scores it.")
    if record.origin is None:
        found.append("This sweep was begun before machine, commit and versions were entered.")
    return found


def _tiles(record: SweepRecord) -> Tiles:
    best, metric = record.champion, record.config.search.objective
    seconds = [t.result.seconds for t in record.finished if t.result]
    tested = record.contenders[0].metric(record.config.objective_datasets, metric) if record.contenders else None
    return Tiles(
        {
            f"best validation {metric}": score(best.objective if best else None),
            f"champion's test {metric}": score(tested),
            "training trials ended": f"{len(record.ended)} of {record.config.search.training.trials}",
            "scoring settings tried": number(sum(len(t.points) for t in record.trials)),
            "time of finished trials": duration(sum(seconds) if seconds else None),
        }
    )


def origin(record: SweepRecord) -> Section:
    """Where everything comes from: data, code, machine, configuration."""
    blocks: list[Block] = [Facts(_fingerprints(record, record.champion))]
    if record.origin is not None:
        lines = [
            [Cell(s.when), Cell(s.commit), Cell(s.machine), Cell(_versions(s.versions)), Cell("; ".join(s.forced))]
            for s in record.origin.starts
        ]
        columns = ["start", "commit", "driver's machine", "versions", "changed (--force)"]
        blocks.append(Table("Every start of the sweep's driver (UTC).", columns, lines, sortable=False))
    blocks.append(Details("Configuration of the sweep as YAML", _yaml(record.config)))
    if (best := record.champion) is not None:
        own = _yaml(record.trial_config(best))
        blocks.append(Details(f"Training configuration of trial {best.name} as YAML", own))
    return Section("origin", "Provenance", blocks)


def _yaml(config: ExperimentConfig) -> str:
    return yaml.safe_dump(to_dict(config), sort_keys=False, allow_unicode=True)


def _fingerprints(record: SweepRecord, best: TrialRecord | None) -> dict[str, str]:
    found = {"sweep's folder": str(record.folder)}
    if record.origin is not None:
        found["data (slice store)"] = record.origin.store
    result = best.result if best else None
    if best is None or result is None:
        return found
    of = f"of trial {best.name}"
    beside = {f"encoder {of}": result.encoder, f"guide {of}": result.guide}
    return {
        **found,
        f"checkpoint {of}": result.checkpoint,
        f"validation reconstructions {of}": result.reconstruction,
        **{name: value for name, value in beside.items() if value},
    }


def _versions(versions: dict[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in versions.items())
