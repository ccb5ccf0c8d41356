"""The Optuna study of a sweep: one SQLite file that survives any death of the driver and says which trials are done."""

import logging
from collections.abc import Callable
from pathlib import Path

import optuna
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial, TrialState

from cddpm.config import ExperimentConfig
from cddpm.errors import SearchError
from cddpm.models.noise import slice_seed
from cddpm.search.sampler import Sampler, first_points

logger = logging.getLogger(__name__)

STUDY = "training"


def open_study(path: Path, config: ExperimentConfig) -> optuna.Study:
    """Create or open the study at ``path``; only the driver does, and only one at a time.

    Trials that were running when an earlier driver died wait to be run again under the same number, with the same
    parameters, before anything new is proposed. Raises ``SearchError`` for more trials than a grid has points.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    storage = RDBStorage(f"sqlite:///{path}", engine_kwargs={"connect_args": {"timeout": 60}})
    level = config.search.training
    seed = slice_seed(config.seed, "training search")
    study = optuna.create_study(
        storage=storage,
        study_name=STUDY,
        direction="maximize",
        load_if_exists=True,
        sampler=Sampler(level, seed),
        pruner=optuna.pruners.NopPruner(),
    )
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        storage.set_trial_state_values(trial._trial_id, state=TrialState.WAITING)
        logger.info("trial %d was interrupted and will be continued", trial.number)
    there = len(study.get_trials(deepcopy=False))  # a grid that was extended goes on where it ended
    first = first_points(level, config, seed)
    if level.sampler == "grid" and level.trials > len(first):
        raise SearchError(f"search.training.trials: {level.trials}, but the grid has {len(first)} points")
    for params in first[there : level.trials]:
        study.enqueue_trial(params)
    return study


def finished(study: optuna.Study) -> list[FrozenTrial]:
    """Trials that are done: completed, stopped early or failed."""
    return [t for t in study.get_trials(deepcopy=False) if t.state.is_finished()]


def tell(study: optuna.Study, trial: optuna.Trial, value: float | None, warn: Callable[[str], None]) -> None:
    """End a trial with its value, or as failed without one."""
    state = TrialState.FAIL if value is None else TrialState.COMPLETE
    try:
        study.tell(trial, value, state=state)
    except ValueError as error:  # already told by an earlier driver
        warn(f"trial {trial.number}: {error}")
