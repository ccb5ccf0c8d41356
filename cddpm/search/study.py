"""The Optuna study of a sweep: one SQLite file that survives any death of the driver and says which trials are done.

Its pruner decides which trainings are stopped early, on previews at equal numbers of images.
"""

import contextlib
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeAlias

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.pruners import BasePruner, HyperbandPruner, MedianPruner, NopPruner, SuccessiveHalvingPruner
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial, TrialState, create_trial

from cddpm.config import ExperimentConfig, SearchConfig
from cddpm.errors import SearchError
from cddpm.search import space as spaces
from cddpm.search import trial as trials
from cddpm.search.sampler import Sampler, first_points
from cddpm.search.warm_start import Trial
from cddpm.seeds import seed_of


def pruner_of(config: ExperimentConfig) -> BasePruner:
    """Optuna's pruner of that name; a step of it is the number of images that a training has seen."""
    asha = config.search.asha
    grace, factor = asha.grace_images, asha.reduction_factor
    if config.search.scheduler == "none":
        return NopPruner()
    if config.search.scheduler == "asha":
        return SuccessiveHalvingPruner(min_resource=grace, reduction_factor=factor)
    if config.search.scheduler == "hyperband":
        # of the largest resource Optuna wants to know no more than how many brackets there are
        most = grace * factor ** (asha.brackets - 1) + 1
        return HyperbandPruner(min_resource=grace, max_resource=most, reduction_factor=factor)
    if config.search.scheduler == "median":
        return MedianPruner(n_warmup_steps=grace)
    raise ValueError(f"search.scheduler: {config.search.scheduler!r}; allowed are asha, hyperband, median and none")


def rungs(search: SearchConfig, images: int) -> list[list[int]]:
    """Images at which trials are compared, per bracket (the strictest first), before the budget of ``images`` ends.

    The brackets are those of Li et al. 2018 (Hyperband, algorithm 1). Empty where there are no rungs.
    """
    grace, factor = search.asha.grace_images, search.asha.reduction_factor
    count = {"asha": 1, "hyperband": search.asha.brackets}.get(search.scheduler, 0)
    found = list[list[int]]()
    for bracket in range(count):
        rung = grace * factor**bracket
        found.append([])
        while rung < images:
            found[-1].append(rung)
            rung *= factor
    return found


def compared_at(search: SearchConfig, images: int) -> int:
    """The images at which a validation after ``images`` is compared with those of other trials.

    Trials of other batch sizes or budgets are validated a little before or after one another; what they have in common is
    the rung that they have reached, or of the median the multiple of ``grace_images``. Before the first, and where nothing
    is pruned, these are ``images`` themselves.
    """
    grace = search.asha.grace_images
    if search.scheduler == "none" or images < grace:
        return images
    if search.scheduler == "median":
        return images // grace * grace
    rung = grace
    while rung * search.asha.reduction_factor <= images:
        rung *= search.asha.reduction_factor
    return rung


logger = logging.getLogger(__name__)

Asked: TypeAlias = optuna.trial.Trial | FrozenTrial
FILE = "study.db"
STUDY = "training"
EARLIER = "earlier"
"""Mark of a trial that another sweep ran; its value says which."""


def open_study(path: Path, config: ExperimentConfig, earlier: Sequence[Trial] = ()) -> optuna.Study:
    """Create or open the study at ``path``; only the driver does, and only one at a time.

    ``earlier`` trials of other sweeps enter it as completed ones, after the points that are tried first: trial 0 is the
    configuration as it is.

    Trials that were running when an earlier driver died wait to be run again under the same number, with the same
    parameters, before anything new is proposed; but those that it had stopped early stay stopped. Raises ``SearchError``
    for more trials than a grid has points.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    storage = _storage(path)
    level = config.search.training
    seed = seed_of(config.seed, "training search")
    study = optuna.create_study(
        storage=storage,
        study_name=STUDY,
        direction="maximize",
        load_if_exists=True,
        sampler=Sampler(level, seed),
        pruner=pruner_of(config),
    )
    in_storage = storage.get_study_id_from_name(STUDY)
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        trial_id = storage.get_trial_id_from_study_id_trial_number(in_storage, trial.number)
        if stop := trials.read_stop(trials.folder_of(path.parent, trial.number)):
            asked = optuna.Trial(study, trial_id)
            tell_stopped(study, asked, stop, config.search, logger.warning)
            continue
        storage.set_trial_state_values(trial_id, state=TrialState.WAITING)
        logger.info("trial %d was interrupted and will be continued", trial.number)
    there = len(own(study))  # a grid that was extended goes on where it ended
    first = first_points(level, config, seed)
    if level.sampler == "grid" and level.trials > len(first):
        raise SearchError(f"search.training.trials: {level.trials}, but the grid has {len(first)} points")
    for params in first[there : level.trials]:
        study.enqueue_trial(params)
    _enter(study, config, earlier)
    return study


def _enter(study: optuna.Study, config: ExperimentConfig, earlier: Sequence[Trial]) -> None:
    there = {t.user_attrs.get(EARLIER) for t in study.get_trials(deepcopy=False)}
    known = spaces.distributions(config.search.training.space)
    for trial in earlier:
        if trial.name not in there:
            distributions = {path: known[path] for path in trial.params}
            marked = {EARLIER: trial.name}
            done = create_trial(params=trial.params, distributions=distributions, value=trial.value, user_attrs=marked)
            study.add_trial(done)


def finished(study: optuna.Study) -> list[FrozenTrial]:
    """Trials of this sweep that are done: completed, stopped early or failed."""
    return [t for t in own(study) if t.state.is_finished()]


def own(study: optuna.Study) -> list[FrozenTrial]:
    """Trials of this sweep, not those of earlier ones that it learns from."""
    return [t for t in study.get_trials(deepcopy=False) if EARLIER not in t.user_attrs]


def ended(path: Path) -> int:
    """How many trials the study at ``path`` has seen end; 0 if there is none."""
    if not path.exists():
        return 0
    storage = _storage(path)
    names = [summary.study_name for summary in optuna.get_all_study_summaries(storage)]
    return len(finished(optuna.load_study(study_name=STUDY, storage=storage))) if STUDY in names else 0


def _storage(path: Path) -> RDBStorage:
    return RDBStorage(f"sqlite:///{path}", engine_kwargs={"connect_args": {"timeout": 60}})


def report(trial: optuna.Trial, search: SearchConfig, images: int, preview: float) -> None:
    """Keep a preview as an intermediate value of the study, at the images at which trials are compared.

    Of several there the first stays: by it the pruner decides. After a resume a point may come twice.
    """
    with warnings.catch_warnings(action="ignore"):  # Optuna warns of the second
        trial.report(preview, compared_at(search, images))


def tell(study: optuna.Study, trial: Asked, value: float | None, warn: Callable[[str], None]) -> None:
    """End a trial with its value, or as failed without one."""
    with _told_once(trial, warn):
        study.tell(trial.number, value, state=TrialState.FAIL if value is None else TrialState.COMPLETE)


def tell_stopped(
    study: optuna.Study, trial: optuna.Trial, stop: trials.Stop, search: SearchConfig, warn: Callable[[str], None]
) -> None:
    """End a trial that was stopped early as pruned, with the preview that it was stopped by.

    A preview is no result: Optuna never ranks it among those, but behind them, by how far the trial came.
    """
    with _told_once(trial, warn):
        report(trial, search, int(stop.images), stop.objective)
        study.tell(trial.number, state=TrialState.PRUNED)


@contextlib.contextmanager
def _told_once(trial: Asked, warn: Callable[[str], None]) -> Iterator[None]:
    try:
        yield
    except (ValueError, UpdateFinishedTrialError) as error:  # already told by an earlier driver
        warn(f"trial {trial.number}: {error}")
