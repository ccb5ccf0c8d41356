"""A sweep from raw data to a promoted model: check, store, trials, champion, registry. The driver of ``launch/sweep.py``."""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.markup import escape

from cddpm import cluster
from cddpm.campaign import Campaign
from cddpm.config import ExperimentConfig, flat, recorded, with_values
from cddpm.data.layout import read_layout
from cddpm.errors import SearchError
from cddpm.search import budget, champion, leaderboard, origin, study, warm_start
from cddpm.search.budget import Failures, Meter
from cddpm.search.display import Display
from cddpm.search.leaderboard import Row
from cddpm.search.mirror import SweepMirror
from cddpm.search.preparation import join, prepare_data, settle, slice_store
from cddpm.search.registering import Registering
from cddpm.search.trial import TrialResult
from cddpm.tracking.lab import Lab
from cddpm.tracking.provenance import surroundings
from cddpm.training import stages, worker

logger = logging.getLogger(__name__)

STUDY_FILE = "study.db"


@dataclass(frozen=True)
class Summary:
    """What a finished sweep leaves: its folder, the leaderboard, the registered version and where things are."""

    folder: Path
    rows: list[Row]
    contenders: list[champion.Contender]
    version: int | None
    """None: its registration waits for MLflow."""
    picture: Path
    tracking_uri: str
    undelivered: int
    a_scan: Path
    """A test scan to try ``cddpm predict`` on."""
    front: list[dict[str, Any]]
    """Pareto front over all points of all trials, if there are several objectives; see ``leaderboard.front_members``."""
    promoted: bool = True
    """Whether the champion of the registry is this sweep's; false if a better one, or one of other data, stays."""


def folder_of(config: ExperimentConfig) -> Path:
    """Where a sweep keeps everything but artifacts and the lab book."""
    return config.output_dir / "sweeps" / config.name


def extended(config: ExperimentConfig, more: int = 0) -> ExperimentConfig:
    """``config`` with all trials that were added to the sweep of its name, and ``more``; nothing is written."""
    return budget.extended(folder_of(config), config, more)


def run(
    config: ExperimentConfig,
    resume: bool,
    address: str | None,
    display: Display,
    extend: int = 0,
    force: bool = False,
) -> Summary:
    """Run a sweep to its end; ``extend`` adds so many trials to a finished one.

    ``force`` goes on although configuration, data or versions have changed, and enters that. Raises ``SearchError`` if a
    sweep of this name exists and ``resume`` is not asked for (or the other way round), if any of them was another, or if
    another process is running it; ``StoppedError`` when it was stopped and can be resumed.
    """
    cluster.check_answers(address)
    folder = folder_of(config)
    campaign = Campaign("sweep", config.name, folder, _identity(config), forceable=True)
    with campaign.held(resume or extend != 0, display.stop, force) as changed:
        if extend:
            budget.extend(folder, config, extend, study.ended(folder / STUDY_FILE))
        config = budget.extended(folder, config)
        root = prepare_data(config, display)
        ray = join(address, [config], config.output_dir, display)
        config = settle(campaign, [config], ray.available, display, changed, force)[0]
        place = slice_store(config, root, display, folder)
        changed += _other_data(campaign, place, force)
        for line in changed:
            display.warn(f"--force: {line}")
        with Lab.open(config, folder, SweepMirror(folder).runs) as lab:
            display.warn(lab.away)
            campaign.begin(surroundings())
            origin.enter(folder, config, place.store.name, changed)
            lab.wake()
            _tune(config, folder, place, ray.fits, lab, display)
            if campaign.stopped:
                raise campaign.stopped_error()
            return _finish(config, folder, place, root, lab, display)


def _other_data(campaign: Campaign, place: stages.Place, force: bool) -> list[str]:
    """Scans may change under an unchanged configuration; their store's fingerprint then is another."""
    entered, name = origin.read(campaign.folder), "data (slice store)"
    return campaign.changes("data", {name: entered.store}, {name: place.store.name}, force) if entered else []


@dataclass
class _All:
    """Tells the person and the lab book, and counts what trials hold."""

    lab: Lab
    display: Display
    folder: Path
    meter: Meter
    store: str

    def started(self, number: int, params: dict[str, Any]) -> None:
        self.meter.hold(number)
        self.display.started(number, params)
        self.lab.started(number, params, self.store)

    def reported(self, number: int, metrics: dict[str, Any]) -> None:
        self.display.reported(number, metrics)
        self.lab.wake()

    def ended(self, number: int, how: str) -> None:
        self.meter.release(number)
        result = {r.number: r for r in leaderboard.results(self.folder)}.get(number)
        self.display.ended(number, how, result.objective if result else None)
        self.lab.ended(number, how)


def _tune(config: ExperimentConfig, folder: Path, place: stages.Place, fits: int, lab: Lab, display: Display) -> None:
    from cddpm.search import tuning  # Ray Tune reads its environment when it is imported

    given = warm_start.earlier(folder, config, place.store.name)
    for line in given.said:
        display.warn(line)
    config = warm_start.with_scoring_points(config, given.scoring)
    trials = study.open_study(folder / STUDY_FILE, config, given.trials)
    done = study.finished(trials)
    best = max(((r.objective, r.number) for r in leaderboard.results(folder)), default=None)
    board, failures = cluster.Board(), Failures(config.search.equal_failures)
    concurrent = min(fits, config.search.concurrent_trials or fits)
    booked = worker.resources_per_worker(config.compute, cluster.capacity().get("GPU", 0.0))
    each = {name: config.compute.workers * amount for name, amount in booked.items()}
    meter = Meter(folder, each, limits=config.search)
    with display.tuning(config.search.training.trials, len(done), best, board.look, board.told), meter.running():
        tuning.run(
            config,
            trials,
            folder,
            place,
            concurrent,
            board,
            failures,
            _All(lab, display, folder, meter, place.store.name),
        )
    if failures.met:
        raise SearchError(_alike(config, failures.met, len(study.finished(trials))))
    if reason := budget.read(folder).exceeded(config.search):
        display.say(
            f"[yellow]{reason}; no new training starts, and those that ran have saved their state. A higher limit and --resume "
            "go on[/]"
        )


def _alike(config: ExperimentConfig, failures: str, ended: int) -> str:
    missing, limit = config.search.training.trials - ended, config.search.equal_failures
    then = f"--resume runs the {missing} trials that are missing" if missing else "--extend N runs N more trials"
    return (
        f"sweep '{config.name}': {failures}\nNo new trial was started (search.equal_failures: {limit}). Mend what the "
        f"message says; then {then}"
    )


def trial_config(config: ExperimentConfig, result: TrialResult) -> ExperimentConfig:
    """The sweep's configuration with a trial's settings."""
    return with_values(config, result.params, f"trial {result.number}")


def _finish(
    config: ExperimentConfig, folder: Path, place: stages.Place, root: Path, lab: Lab, display: Display
) -> Summary:
    results = leaderboard.results(folder)
    if not results:
        if spent := budget.read(folder).exceeded(config.search):
            raise SearchError(f"sweep '{config.name}': no trial finished; {spent}: a higher limit and --resume go on")
        failed = [row.note for row in leaderboard.rows(folder) if row.state == "failed"]
        raise SearchError(
            f"sweep '{config.name}': no trial finished; {failed[0] if failed else 'all were stopped early'}\n"
            "Mend that, then --extend N runs N more trials"
        )
    best = results[0]
    gpus = cluster.capacity().get("GPU", 0.0)
    final = champion.Final(config, place, folder / "stop", None, gpus)
    with display.stage("scoring on test") as say:
        winner, scorer = final.champion(best, trial_config(config, best))
        contenders = [winner, *_beside(config, results, final)]
        champion.save(folder / champion.TEST, contenders)
        say(f"champion is trial {best.number:04d}")
    picture = folder / "champion.png"
    champion.draw(scorer, winner, picture)
    champion.draw_each(scorer, winner, folder / champion.PICTURES)
    rows = champion.table(config, leaderboard.rows(folder), contenders)
    leaderboard.write_csv(folder / "leaderboard.csv", rows)
    front = leaderboard.front_members(folder, config, results) if config.search.objectives else []
    if front:
        leaderboard.save_front(folder, config, front)
    with display.stage("registry") as say:
        registering = Registering(config, place, lab, SweepMirror(folder))
        registering.register(results, winner)
        undelivered, version = lab.close(), registering.version(best)
        say(escape(registering.verdict(best)))
    scan, promoted = _a_scan(config, root, final), registering.is_champion(best)
    return Summary(folder, rows, contenders, version, picture, lab.uri, undelivered, scan, front, promoted)


def _beside(config: ExperimentConfig, results: list[TrialResult], final: champion.Final) -> list[champion.Contender]:
    first = [r for r in results if r.number == 0]  # absent only if the first trial failed or was stopped early
    unswept = [final.unswept(r, trial_config(config, r)) for r in first]
    return [*unswept, final.intensity()]


def _a_scan(config: ExperimentConfig, root: Path, final: champion.Final) -> Path:
    """An image file of the test cohort of the first unhealthy data set."""
    record = final.store.volumes[final.cohort.unhealthy[config.data.unhealthy[0]][0]]
    rows = read_layout(config.data, root).rows
    return next(row.image for row in rows if (row.dataset, row.subject) == (record.dataset, record.subject))


def _identity(config: ExperimentConfig) -> dict[str, Any]:
    """Versions, and settings by dotted path, but those that may change between two starts without changing any number."""
    free = (
        "output_dir",
        "tracking.",
        "search.concurrent_trials",
        "search.logged_points",
        "search.maximum_",
        "search.equal_failures",
        "compute.maximum_failures",
        "training.precision",  # compared once it is settled
        "reconstruction.precision",
    )
    return {**{k: v for k, v in flat(recorded(config)).items() if not k.startswith(free)}, **origin.versions()}
