"""Preparing trees of raw scans as the command does, in this process."""

import json
from pathlib import Path
from typing import Any

from raw_trees import STEPS

from cddpm.artifact import file_digest
from cddpm.data.many import in_threads
from cddpm.data.raw import tables
from cddpm.data.raw.depot import Depot
from cddpm.data.raw.head import Step
from cddpm.data.raw.names import Names
from cddpm.data.raw.run import Job, Outcome, Work, jobs_of, prepare
from cddpm.data.raw.survey import survey

IXI = {f"IXI{number:03d}-HH-{1200 + number}": ("t1", "t2") for number in range(1, 7)}


def jobs(dataset: str, raw: Path, out: Path, *modalities: str) -> list[Job]:
    (found,) = survey(dataset, raw, modalities)
    return jobs_of(found, raw, Names.open(out.with_suffix(".names.json"), out))


def run(dataset: str, raw: Path, out: Path, *steps: Step, threads: int = 1) -> list[Outcome]:
    (found,) = survey(dataset, raw)
    work = Work(Depot(str(out)), steps or STEPS)
    outcomes = list(prepare(work, jobs(dataset, raw, out), in_threads(threads)))
    done = [one.row for one in outcomes if one.state != "failed"]
    tables.write(work.depot, found.dataset, found.healthy, done, found.shares)
    return outcomes


def digests(out: Path) -> dict[str, str]:
    return {str(path.relative_to(out)): file_digest(path) for path in sorted(out.rglob("*")) if path.is_file()}


def manifest(out: Path, name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "manifests" / f"{name}.json").read_text())
    return found
