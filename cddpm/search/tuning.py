"""Ray Tune: trials proposed and pruned by the study, each with a nested Ray Train worker group."""

import logging
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

import optuna
from ray import tune
from ray.tune.search import Searcher

from cddpm import artifact, cluster
from cddpm.config import ExperimentConfig
from cddpm.errors import CddpmError
from cddpm.search import budget
from cddpm.search import space as spaces
from cddpm.search import study as studies
from cddpm.search import trial as trials
from cddpm.search.budget import Failures
from cddpm.training import stages, worker

logger = logging.getLogger(__name__)

OBJECTIVE, IMAGES, FINAL = "objective", "images", "final"


class Listener(Protocol):
    """Who is told about trials, in the driver."""

    def started(self, number: int, params: dict[str, Any]) -> None:
        """A trial starts, or is continued."""

    def reported(self, number: int, metrics: dict[str, Any]) -> None:
        """A validation of a trial in training."""

    def ended(self, number: int, how: str) -> None:
        """A trial is over: ``finished``, ``stopped``, ``failed`` or ``interrupted``."""


class StudySearch(Searcher):
    """Ray's searcher over a study that outlives the driver.

    A proposal carries the study's trial number, which names everything of that trial. A trial that the study's pruner gives
    up is asked to save its state and end. Trials that a stop of the sweep interrupts are not told to the study: they wait for
    the next start.
    """

    def __init__(
        self, study: optuna.Study, config: ExperimentConfig, folder: Path, failures: Failures | None = None
    ) -> None:
        super().__init__(metric=OBJECTIVE, mode="max")
        self._study, self._config, self._folder, self._failures = study, config, folder, failures or Failures(None)
        self._running: dict[str, optuna.Trial] = {}

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the study is on the disk, and a run of Tune is never restored."""

    def suggest(self, trial_id: str) -> dict[str, Any] | str:  # type: ignore[override]  # as Ray takes it: FINISHED is text
        """The next trial: its number and its settings by dotted path; ``FINISHED`` once the sweep shall end."""
        spent = budget.read(self._folder).exceeded(self._config.search)
        if worker.stop_asked(self._folder / "stop") or self._failures.met or spent:
            return str(Searcher.FINISHED)
        trial = self._running[trial_id] = self._study.ask()
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


class _Events(tune.Callback):
    """Writes into a trial's folder why it failed, and tells the listener how each one ended."""

    def __init__(self, sweep: Path, listener: Listener, failures: Failures) -> None:
        self._sweep, self._listener, self._failures = sweep, listener, failures

    def __getstate__(self) -> dict[str, Any]:
        """Ray keeps callbacks in its snapshots; the terminal and the lab book do not belong there."""
        return {"_sweep": self._sweep}

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._listener.started(trial.config["number"], trial.config["params"])

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        if not result.get(FINAL):
            self._listener.reported(trial.config["number"], result)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._end(trial, error=False)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._end(trial, error=True)

    def _end(self, trial: Any, error: bool) -> None:
        number = trial.config["number"]
        how = trials.ending(trials.folder_of(self._sweep, number), error)
        folder = trials.folder_of(self._sweep, number)
        if how == "failed" and not (folder / trials.FAILED).exists():
            artifact.write_json(folder / trials.FAILED, {"number": number, "error": _last_line(trial.error_file)})
        self._count(folder, number, how)
        self._listener.ended(number, how)

    def _count(self, folder: Path, number: int, how: str) -> None:
        if how == "failed":
            fault = trials.read_ending(folder, trials.FAILED) or {}
            self._failures.failed(number, str(fault.get("error", "")))
        elif how != "interrupted":
            self._failures.ended_well()


def _last_line(error_file: str | None) -> str:
    try:
        lines = Path(error_file or "").read_text().strip().splitlines()
    except OSError:
        return "the trial's process died"
    return lines[-1] if lines else "the trial's process died"


def _trainable(
    proposal: dict[str, Any], sweep: Path, base: ExperimentConfig, place: stages.Place, gpus: float, board: Any
) -> None:
    job = trials.TrialJob(sweep, proposal["number"], proposal["params"], base, place, gpus)
    try:
        with board.warnings(f"trial {job.number:04d}"):
            if trials.run(job, board, tune.report) is not None:
                return
    except CddpmError as error:  # a user's fault is the same at a second try
        artifact.write_json(job.folder / trials.FAILED, {"number": job.number, "error": str(error)})
    # a trial that ends without having reported its objective would end the whole sweep
    tune.report(worker.plain_metrics({IMAGES: 0}, OBJECTIVE, final=True))


def run(
    config: ExperimentConfig,
    study: optuna.Study,
    sweep: Path,
    place: stages.Place,
    concurrent: int,
    board: cluster.Board,
    failures: Failures,
    listener: Listener,
) -> None:
    """Run the trials that are still missing.

    Returns when all are done, the budget is spent, ``failures`` are met, or after a requested stop.
    """
    missing = config.search.training.trials - len(studies.finished(study))
    if missing <= 0 or budget.read(sweep).exceeded(config.search):
        return
    searcher = StudySearch(study, config, sweep, failures)
    gpus = cluster.capacity().get("GPU", 0.0)
    trainable = tune.with_parameters(_trainable, sweep=sweep, base=config, place=place, gpus=gpus, board=board)
    tuner = tune.Tuner(
        tune.with_resources(trainable, {"cpu": 0, cluster.HEAD: 1}),
        tune_config=tune.TuneConfig(
            search_alg=searcher,
            num_samples=missing,
            max_concurrent_trials=min(concurrent, missing),
            reuse_actors=True,  # a trial that ended well leaves its process, with all that is imported, to the next
        ),
        run_config=tune.RunConfig(
            name=_fresh_name(sweep / "ray"),
            storage_path=str(sweep / "ray"),
            callbacks=[_Events(sweep, listener, failures)],
            failure_config=tune.FailureConfig(max_failures=1),
            verbose=0,
        ),
    )
    with cluster.janitor():
        tuner.fit()


def _fresh_name(folder: Path) -> str:
    """Ray would resume a run of the same name from its own files; the study and the artifacts are all we resume from."""
    return f"start-{len(list(folder.glob('start-*'))):03d}"
