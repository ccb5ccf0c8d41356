"""Ray Tune: trials proposed and pruned by the study, each with a nested Ray Train worker group."""

import logging
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import optuna
from ray import tune
from ray.tune.search import Searcher

from cddpm import artifact, cluster
from cddpm.config import ExperimentConfig, with_values
from cddpm.errors import SearchError
from cddpm.search import budget, record, warm_start
from cddpm.search import space as spaces
from cddpm.search import study as studies
from cddpm.search import trial as trials
from cddpm.search.budget import Failures, Meter
from cddpm.search.display import Display
from cddpm.tracking.lab import Lab
from cddpm.training import worker
from cddpm.training.stages import Place

logger = logging.getLogger(__name__)

OBJECTIVE, IMAGES, FINAL = "objective", "images", "final"


class StudySearch(Searcher):
    """Ray's searcher over a study that outlives the driver.

    A proposal carries the study's trial number, which names everything of that trial. A trial that the study's pruner gives
    up is asked to save its state and end. Trials that a stop of the sweep interrupts are not told to the study: they wait for
    the next start.
    """

    def __init__(
        self, study: optuna.Study, config: ExperimentConfig, folder: Path, missing: int, board: Any, failures: Failures
    ) -> None:
        super().__init__(metric=OBJECTIVE, mode="max")
        self._study, self._config, self._folder, self._failures = study, config, folder, failures
        self._missing, self._board = missing, board
        self._running: dict[str, optuna.Trial] = {}

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the study is on the disk, and a run of Tune is never restored."""

    def suggest(self, trial_id: str) -> dict[str, Any] | str:  # type: ignore[override]  # as Ray takes it: FINISHED is text
        """The next trial: its number and its settings by dotted path; ``FINISHED`` once the sweep shall end."""
        spent = budget.read(self._folder).exceeded(self._config.search)
        if worker.stop_asked(self._folder / "stop") or self._failures.met or spent:
            return str(Searcher.FINISHED)
        trial = self._running[trial_id] = self._study.ask()
        self._missing -= 1
        if self._missing == 0:
            self._board.leave(trials.ALL_PROPOSED, trial.number)
        return {
            "number": trial.number,
            "params": spaces.suggest(self._config.search.training.space, trial, self._config),
        }

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Keep a preview as an intermediate value of the study, and ask the trial to end if its pruner gives it up.

        What a trial ends with is no preview: the best of a search, which none could keep up with.
        """
        if result[FINAL]:
            return
        trial, images = self._running[trial_id], int(result[IMAGES])
        studies.report(trial, self._config.search, images, result[OBJECTIVE])
        place = trials.folder_of(self._folder, trial.number) / trials.STOPPED
        if trial.should_prune() and not place.exists():
            params = spaces.values(self._config.search.training.space, trial.params)
            artifact.write_json(place, asdict(trials.Stop(trial.number, params, result[OBJECTIVE], result[IMAGES])))

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Tell the study how the trial ended."""
        trial = self._running.pop(trial_id, None)
        if trial is None:
            return
        how = trials.ending(trials.folder_of(self._folder, trial.number), error)
        if how == "stopped":
            stop = trials.read_stop(trials.folder_of(self._folder, trial.number))
            assert stop is not None
            studies.tell_stopped(self._study, trial, stop, self._config.search, logger.warning)
        elif how != "interrupted":
            value = None if how == "failed" or not result else float(result[OBJECTIVE])
            studies.tell(self._study, trial, value, logger.warning)


class Events(tune.Callback):
    """Hears how trials begin and end: tells the person and the lab book, and counts what they hold and how they fail."""

    def __init__(
        self,
        folder: Path,
        store_of: Callable[[dict[str, Any]], str],
        lab: Lab,
        display: Display,
        meter: Meter,
        failures: Failures,
    ) -> None:
        self._folder, self._store_of, self._lab, self._display = folder, store_of, lab, display
        self._meter, self._failures = meter, failures

    def __getstate__(self) -> dict[str, Any]:
        """Ray keeps callbacks in its snapshots; the terminal and the lab book do not belong there."""
        return {"_folder": self._folder}

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A trial starts, or is continued."""
        number, params = trial.config["number"], trial.config["params"]
        self._meter.hold(number)
        self._display.started(number, params)
        self._lab.started(number, params, self._store_of(params))

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """A validation of a trial in training."""
        if not result.get(FINAL):
            self._display.reported(trial.config["number"], result)
            self._lab.wake()

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A trial is over: ``finished``, ``stopped``, ``failed`` or ``interrupted``."""
        self._end(trial.config["number"], trial, error=False)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A trial's process died, or raised what no trial should."""
        self._end(trial.config["number"], trial, error=True)

    def _end(self, number: int, trial: Any, error: bool) -> None:
        folder = trials.folder_of(self._folder, number)
        how = trials.ending(folder, error)
        if how == "failed":
            if not (folder / trials.FAILED).exists():
                artifact.write_json(folder / trials.FAILED, {"number": number, "error": _last_line(trial.error_file)})
            fault = trials.read_ending(folder, trials.FAILED) or {}
            self._failures.failed(number, str(fault.get("error", "")))
        elif how != "interrupted":
            self._failures.ended_well()
        self._meter.release(number)
        result = trials.read_result(folder) if how == "finished" else None
        self._display.ended(number, how, result.objective if result else None)
        self._lab.ended(number, how)


def _last_line(error_file: str | None) -> str:
    try:
        lines = Path(error_file or "").read_text().strip().splitlines()
    except OSError:
        return "the trial's process died"
    return lines[-1] if lines else "the trial's process died"


def run(config: ExperimentConfig, folder: Path, place: Place, fits: int, lab: Lab, display: Display) -> None:
    """Run the trials of the sweep in ``folder`` that are still missing, ``fits`` of them at a time at most.

    Returns when all are done, the budget is spent, or after a requested stop. Raises ``SearchError`` when as many trials in a
    row failed alike as ``search.equal_failures`` allows.
    """
    given = warm_start.earlier(folder, config, place.store.name)
    for line in given.said:
        display.warn(line)
    config = warm_start.with_scoring_points(config, given.scoring)
    search, compute = config.search, config.compute
    study = studies.open_study(folder / studies.FILE, config, given.trials)
    ended = len(studies.finished(study))
    best = next(((r.objective, r.number) for r in record.results(folder)), None)

    gpus = cluster.capacity().get("GPU", 0.0)
    booked = worker.resources_per_worker(compute, gpus)
    meter = Meter(folder, {name: compute.workers * amount for name, amount in booked.items()}, limits=search)
    board, roster, failures = cluster.Board(), cluster.Roster(), Failures(search.equal_failures)
    missing = search.training.trials - ended

    def store_of(params: dict[str, Any]) -> str:
        return place.of(with_values(config, params)).store.name if place.stores else place.store.name

    trainable = tune.with_parameters(
        trials.run, sweep=folder, base=config, place=place, gpus=gpus, board=board, report=tune.report
    )
    with (
        display.tuning(
            search.training.trials, ended, best, board.look, lambda: roster.told() + board.told(), roster.waiting
        ),
        meter.running(),
    ):
        if missing > 0 and not budget.read(folder).exceeded(search):
            tune.Tuner(
                tune.with_resources(trainable, {"cpu": 0, cluster.HEAD: 1}),
                tune_config=tune.TuneConfig(
                    search_alg=StudySearch(study, config, folder, missing, board, failures),
                    num_samples=missing,
                    max_concurrent_trials=min(fits, search.concurrent_trials or fits, missing),
                    reuse_actors=True,  # a trial that ended well leaves its process, with all that is imported, to the next
                ),
                run_config=tune.RunConfig(
                    name=worker.fresh_name(folder / "ray", "start"),
                    storage_path=str(folder / "ray"),
                    callbacks=[Events(folder, store_of, lab, display, meter, failures)],
                    failure_config=tune.FailureConfig(max_failures=1),
                    verbose=0,
                ),
            ).fit()

    if failures.met:
        raise SearchError(_alike(config, failures.met, len(studies.finished(study))))
    if reason := budget.read(folder).exceeded(search):
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
