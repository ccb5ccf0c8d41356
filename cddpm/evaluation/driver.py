"""An evaluation from raw data to one table: every method on every cohort and fold. The driver of ``launch/benchmark.py``.

A table of one method is what ``launch/evaluate.py`` makes. Runs that are finished are found; a stopped evaluation goes on.
"""

import json
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from rich.markup import escape

from cddpm import cluster, events
from cddpm.campaign import FINISHED, Campaign
from cddpm.config import DataConfig, ExperimentConfig, to_dict, with_values
from cddpm.data.layout import read_layout
from cddpm.data.store import build_store
from cddpm.errors import CddpmError, SearchError
from cddpm.evaluation import fold, mirror, report
from cddpm.evaluation.fold import FoldRun, Outcome
from cddpm.evaluation.plan import Plan
from cddpm.evaluation.shift import Shift, contrast_store
from cddpm.search.display import Display
from cddpm.search.preparation import backup_of, join, prepare_data, settle, slice_store
from cddpm.text import Console
from cddpm.tracking.lab import Lab
from cddpm.tracking.provenance import surroundings
from cddpm.training import stages

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Summary:
    """What a finished evaluation leaves."""

    folder: Path
    outcomes: list[Outcome]
    files: report.Files
    tracking_uri: str
    undelivered: int


def run_in_terminal(plan: Plan, resume: bool, address: str | None, console: Console) -> None:
    """``run``, with what a person sees before, while and after."""
    report.opening(plan, console)
    summary = run(plan, resume, address, Display(console, "run"))
    report.closing(plan, summary.files, summary.undelivered, console)


def run(plan: Plan, resume: bool, address: str | None, display: Display) -> Summary:
    """Make every run of ``plan``, then the tables. Raises ``SearchError`` if a run failed (after the others are done)."""
    cluster.check_answers(address)
    campaign = Campaign(plan.kind, plan.name, plan.folder, plan.identity)
    backup = backup_of(plan.first, plan.folder)
    if resume and (line := backup.restored()):
        display.say(escape(line))
    display.warn(plan.doubt)
    with backup.following(), campaign.held(resume, display.stop):
        if resume:
            backup.withdraw(FINISHED)  # from here on others see that it runs
        every = [config for configs in plan.methods.values() for config in configs]
        joined = join(address, every, display) if cluster.elsewhere(address) else None
        roots = _roots(plan, display)
        ray = joined or join(address, every, display)
        plan = _settled(plan, campaign, ray.available, display)
        runs = _runs(plan, roots, ray.gpus, display)
        with Lab.open(plan.first, plan.folder, mirror.EvaluationMirror(plan.folder).runs) as lab:
            display.warn(lab.away)
            campaign.begin(surroundings())
            backup.start()
            mirror.keep(plan.folder, plan.kind, plan.name, plan.first, runs)
            lab.wake()
            outcomes = _carry_out(runs, ray.fits, lab, display)
            if campaign.stopped:
                raise campaign.stopped_error()
            with display.stage("tables"):
                files = report.write(plan, outcomes)
            undelivered = lab.close()
            return Summary(plan.folder, outcomes, files, lab.uri, undelivered)


def _settled(plan: Plan, campaign: Campaign, available: Mapping[str, float], display: Display) -> Plan:
    """``plan`` in the number formats of the cluster's workers."""
    every = [config for configs in plan.methods.values() for config in configs]
    found = iter(settle(campaign, every, available, display, []))
    return replace(plan, methods={label: [next(found) for _ in configs] for label, configs in plan.methods.items()})


def _data_key(config: ExperimentConfig) -> str:
    """Of equal slice stores, which hold all folds; but landmarks are of one."""
    data = config.data if config.data.learns_landmarks else config.data.model_copy(update={"fold": 0})
    return json.dumps(to_dict(data), sort_keys=True)


def _root_key(config: ExperimentConfig) -> str:
    """Of equal scans and equal checks of them."""
    plain = DataConfig()
    same = {
        name: getattr(plain, name)
        for name in ("fold", "intensities", "landmarks", "white_matter_peak", "standard_range")
    }
    return json.dumps(to_dict(config.data.model_copy(update=same)), sort_keys=True)


def _roots(plan: Plan, display: Display) -> dict[str, Path]:
    """The checked data root of each different data section."""
    roots: dict[str, Path] = {}
    for configs in plan.methods.values():
        for config in configs:
            for one in (config, *_transfer(config)):
                if _root_key(one) not in roots:
                    roots[_root_key(one)] = prepare_data(one, display)
    return roots


def _transfer(config: ExperimentConfig) -> list[ExperimentConfig]:
    """The experiment on the other modality, if it is asked for."""
    other = config.evaluation.transfer_modality
    if other is None or config.method != "diffusion":
        return []
    if other == config.data.modality:
        raise SearchError(f"evaluation.transfer_modality: {other} is the training's own modality; name another")
    # prepared as the model's own scans are: another modality would have another peak
    own = {"data.white_matter_peak": config.data.known_peak} if config.data.intensities == "white-stripe" else {}
    return [with_values(config, {"data.modality": other, **own}, "transfer")]


def _runs(plan: Plan, roots: Mapping[str, Path], gpus: float, display: Display) -> list[FoldRun]:
    places: dict[str, stages.Place] = {}

    def place(config: ExperimentConfig) -> stages.Place:
        key = _data_key(config)
        if key not in places:
            places[key] = slice_store(config, roots[_root_key(config)], display, plan.folder)
        return places[key]

    runs: list[FoldRun] = []
    for k in plan.folds:
        for label, configs in plan.methods.items():
            for config in configs:
                own = config.model_copy(update={"data": config.data.model_copy(update={"fold": k})})
                home = place(own)
                own = stages.as_prepared(own, home)
                scanners = _scanners(own, home, roots[_root_key(own)], display)
                shifts = (*_shifts(own, home, place), *scanners)
                runs.append(FoldRun(len(runs), label, own, plan.folder, home, shifts, gpus))
    return runs


def _shifts(config: ExperimentConfig, home: stages.Place, place: Any) -> tuple[Shift, ...]:
    if config.method != "diffusion":
        return ()
    contrasts = [
        Shift(f"power {power:g}", contrast_store(home.store, power, home.shelf))
        for power in config.evaluation.contrast_powers
    ]
    return (*contrasts, *(Shift(f"modality {c.data.modality}", place(c).store) for c in _transfer(config)))


def _scanners(config: ExperimentConfig, home: stages.Place, root: Path, display: Display) -> Iterator[Shift]:
    """Test scans as other scanners would have made them, prepared as the model's own."""
    changes = config.evaluation.scanner_changes if config.method == "diffusion" else ()
    rows = [row for row in read_layout(config.data, root).rows if row.split == "test"] if changes else []
    for change in changes:
        with display.stage(f"test scans, scanner {change}"):
            path = build_store(config.data, root, rows, home.shelf, cluster.over_scans(config), change)
        yield Shift(f"scanner {change}", path)


def _carry_out(runs: list[FoldRun], fits: int, lab: Lab, display: Display) -> list[Outcome]:
    found = {run.number: known for run in runs if (known := fold.read_outcome(run.folder))}
    ended = {event.number for event in events.read(runs[0].campaign) if event.kind == "trial ended"} if runs else set()
    for number in found.keys() - ended:  # an earlier driver died before it could say so
        lab.started(number, {})
        lab.ended(number, "finished")
    board, roster, faults = cluster.Board(), cluster.Roster(), list[str]()

    def started(run: FoldRun) -> None:
        data = run.config.data
        display.started(run.number, {"run.method": run.method, "run.modality": data.modality, "run.fold": data.fold})
        lab.started(run.number, {})

    missing = [run for run in runs if run.number not in found]

    def news() -> list[str]:
        return roster.told() + board.told()

    with display.tuning(len(runs), len(found), None, board.look, news, roster.waiting), cluster.janitor():
        for run, outcome in cluster.drive(partial(fold.evaluate, board=board), missing, fits, started):
            board.clear(run.number)
            if isinstance(outcome, BaseException):
                faults.append(f"{run.name}: {outcome}")
                lab.ended(run.number, "failed", str(outcome))
                display.ended(run.number, "failed")
                if not isinstance(outcome, CddpmError):
                    logger.error("%s", run.name, exc_info=outcome)
            elif outcome is None:
                display.ended(run.number, "interrupted")
                lab.ended(run.number, "interrupted")
            else:
                found[run.number] = outcome
                lab.ended(run.number, "finished")
                display.ended(run.number, "finished", outcome.validation)
    if faults:
        raise SearchError("\n".join([f"{len(faults)} of {len(runs)} runs failed; --resume tries them again:", *faults]))
    return [found[number] for number in sorted(found)]
