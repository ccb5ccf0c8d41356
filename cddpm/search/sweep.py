"""A sweep from raw data to a promoted model: check, store, trials, champion, registry. The driver of ``launch/sweep.py``."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.markup import escape

from cddpm import campaign as campaigns
from cddpm import cluster
from cddpm.campaign import FINISHED, Campaign
from cddpm.config import ExperimentConfig, flat, recorded
from cddpm.data.layout import read_layout
from cddpm.errors import SearchError
from cddpm.search import budget, champion, leaderboard, record, study
from cddpm.search.display import Display
from cddpm.search.leaderboard import Row
from cddpm.search.mirror import SweepMirror
from cddpm.search.preparation import backup_of, join, prepare_data, settle, slice_stores
from cddpm.search.registering import Registered, register
from cddpm.tracking.lab import Lab
from cddpm.tracking.provenance import surroundings
from cddpm.training import stages


@dataclass(frozen=True)
class Summary:
    """What a finished sweep leaves: its folder, the leaderboard, the registered version and where things are."""

    folder: Path
    rows: list[Row]
    contenders: list[champion.Contender]
    registered: Registered
    tracking_uri: str
    a_scan: Path
    """A test scan to try ``cddpm predict`` on."""
    front: list[dict[str, Any]]
    """Pareto front over all points of all trials, if there are several objectives; see ``leaderboard.front_members``."""


def folder_of(config: ExperimentConfig) -> Path:
    """Where a sweep keeps everything but artifacts and the lab book."""
    return config.output_dir / "sweeps" / config.name


def is_begun(config: ExperimentConfig) -> bool:
    """Whether there is something to resume, here or in the storage. Raises ``StorageError``."""
    folder = folder_of(config)
    return campaigns.is_begun(folder) or backup_of(config, folder).exists()


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
    backup = backup_of(config, folder)
    if (resume or extend) and (line := backup.restored()):
        display.say(escape(line))
    with backup.following(), campaign.held(resume or extend != 0, display.stop, force) as changed:
        if resume or extend:
            backup.withdraw(FINISHED)  # from here on others see that it runs
        if extend:
            budget.extend(folder, config, extend, study.ended(folder / study.FILE))
        config = budget.extended(folder, config)
        # what does not fit on a cluster is told at once; on this machine a fault in the data is, before Ray starts
        joined = join(address, [config], display) if cluster.elsewhere(address) else None
        root = prepare_data(config, display)
        ray = joined or join(address, [config], display)
        config = settle(campaign, [config], ray.available, display, changed, force)[0]
        place = slice_stores(config, root, display, folder)
        changed += _other_data(campaign, place, force)
        for line in changed:
            display.warn(f"--force: {line}")
        with Lab.open(config, folder, SweepMirror(folder).runs) as lab:
            display.warn(lab.away)
            campaign.begin(surroundings())
            backup.start()
            record.enter(folder, config, place.store.name, changed, [path.name for _, path in place.stores])
            lab.wake()
            from cddpm.search import tuning  # Ray Tune reads its environment when it is imported

            with cluster.janitor():
                tuning.run(config, folder, place, ray.fits, lab, display)
                if campaign.stopped:
                    raise campaign.stopped_error()
                return _finish(config, folder, place, root, lab, display)


def _other_data(campaign: Campaign, place: stages.Place, force: bool) -> list[str]:
    """Scans may change under an unchanged configuration; their store's fingerprint then is another."""
    entered, name = record.read_origin(campaign.folder), "data (slice store)"
    return campaign.changes("data", {name: entered.store}, {name: place.store.name}, force) if entered else []


def _finish(
    config: ExperimentConfig, folder: Path, place: stages.Place, root: Path, lab: Lab, display: Display
) -> Summary:
    results = record.results(folder)
    if not results:
        if spent := budget.read(folder).exceeded(config.search):
            raise SearchError(f"sweep '{config.name}': no trial finished; {spent}: a higher limit and --resume go on")
        failed = [row.note for row in leaderboard.rows(folder) if row.state == "failed"]
        raise SearchError(
            f"sweep '{config.name}': no trial finished; {failed[0] if failed else 'all were stopped early'}\n"
            "Mend that, then --extend N runs N more trials"
        )
    with display.stage("scoring on test") as say:
        contenders = champion.measure(config, folder, place, results, cluster.capacity().get("GPU", 0.0))
        say(f"champion is trial {results[0].number:04d}")
    rows = leaderboard.with_test(config, leaderboard.rows(folder), contenders)
    leaderboard.write_csv(folder / "leaderboard.csv", rows)
    front = leaderboard.front_members(folder, config) if config.search.objectives else []
    if front:
        leaderboard.save_front(folder, config, front)
    with display.stage("registry") as say:
        registered = register(config, place, lab, results, contenders[0])
        say(escape(registered.said))
    return Summary(folder, rows, contenders, registered, lab.uri, _a_scan(config, root), front)


def _a_scan(config: ExperimentConfig, root: Path) -> Path:
    """An image file of the test cohort of the first unhealthy data set."""
    dataset, folds = config.data.unhealthy[0], (None, config.data.fold)
    rows = read_layout(config.data, root).rows
    return next(row.image for row in rows if row.dataset == dataset and row.split == "test" and row.fold in folds)


def _identity(config: ExperimentConfig) -> dict[str, Any]:
    """Versions, and settings by dotted path, but those that may change between two starts without changing any number."""
    free = (
        "output_dir",
        "storage",
        "tracking.",
        "search.concurrent_trials",
        "search.logged_points",
        "search.maximum_",
        "search.equal_failures",
        "compute.maximum_failures",
        "slurm.",
        "training.precision",  # compared once it is settled
        "reconstruction.precision",
    )
    return {**{k: v for k, v in flat(recorded(config)).items() if not k.startswith(free)}, **record.versions()}
