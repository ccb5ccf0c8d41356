"""The stages of one trial, as each process of a worker group goes through them; and tasks that predict a cohort."""

import gc
import math
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from cddpm import shelf
from cddpm.cluster import Board, capacity
from cddpm.config import ComputeConfig, ExperimentConfig
from cddpm.data.store import SliceStore
from cddpm.errors import SearchError
from cddpm.reconstruct.cohort import Cohort, slices_of
from cddpm.reconstruct.predict import Networks, pass_seconds
from cddpm.reconstruct.reconstruction import Reconstruction
from cddpm.scoring.calibration import Calibration
from cddpm.scoring.score import Scorer
from cddpm.training import prediction, stages
from cddpm.training.loop import Hooks, InnerSearch, Interrupted
from cddpm.training.preview import OBJECTIVE
from cddpm.training.ranks import Ranks
from cddpm.training.watch import StageRecord, Watch, keep_record

SPENT = "spent"
"""Beside the stop file: the sweep's budget is used up, which ends trainings as a request to stop does."""


def stop_asked(stop_file: Path) -> bool:
    """Whether all trainings shall save their state and end: somebody asked for it, or the budget is spent."""
    return stop_file.exists() or stop_file.with_name(SPENT).exists()


@dataclass(frozen=True)
class Assignment:
    """One trial's training; pickles."""

    config: ExperimentConfig
    place: stages.Place
    trial: int
    stop_file: Path
    """Its appearance asks the training to save its state and end."""
    board: Board | None = None
    search: InnerSearch | None = None
    """Of previews (``search.preview_trials``); a function of a module, so that a worker finds it."""
    stop_of_trial: Path | None = None
    """Asks this training alone: it was pruned."""

    @property
    def campaign(self) -> Path:
        """Folder of the sweep or evaluation: what was computed is written down there."""
        return self.stop_file.parent

    @property
    def stop_files(self) -> list[Path]:
        """What asks this training, alone or with all others, to save its state and end, on the driver's disk."""
        alone = [] if self.stop_of_trial is None else [self.stop_of_trial]
        return [self.stop_file, self.stop_file.with_name(SPENT), *alone]

    def asked_to_stop(self) -> bool:
        """Whether this training shall save its state and end, as seen on the driver's node."""
        return any(file.exists() for file in self.stop_files)

    def stop_watch(self) -> Callable[[], bool]:
        """Asks the same, on any node."""
        return self.asked_to_stop if self.board is None else self.board.watch(self.stop_files)

    def keep_record(self, record: StageRecord) -> None:
        """Write down on the driver's disk what a stage has cost."""
        if self.board is None:
            keep_record(self.campaign, record, self.trial)
        else:
            self.board.keep(keep_record, self.campaign, record, self.trial)


@dataclass(frozen=True)
class Outcome:
    """What the worker group left behind; None if it was asked to stop before the end."""

    made: stages.Made
    reconstruction: Path
    pass_seconds: float | None = None
    """See ``reconstruct.predict.pass_seconds``; measured only if the search asks for it."""

    def at(self, place: stages.Place) -> "Outcome":
        """The same at ``place``, fetched to this node if another has made it."""
        if not place.storage:
            return self
        shelf = place.shelf

        def here(path: Path | None) -> Path | None:
            return None if path is None else shelf.need(shelf.path(path.parent.name, path.name))

        made = self.made
        checkpoint = here(made.checkpoint)
        assert checkpoint is not None  # it was given
        found = replace(made, checkpoint=checkpoint, encoder=here(made.encoder), guide=here(made.guide))
        return replace(self, made=found, reconstruction=prediction.fetched(place, self.reconstruction.name))


def on_gpu(compute: ComputeConfig, gpus: float) -> bool:
    """Whether workers train on GPUs, of which the cluster has ``gpus``."""
    if compute.device == "auto":
        return gpus > 0
    return compute.device == "cuda"


def resources_per_worker(compute: ComputeConfig, gpus: float) -> dict[str, float]:
    """What one worker books."""
    needed = {"CPU": compute.cpus_per_worker}
    return {**needed, "GPU": compute.gpus_per_worker} if on_gpu(compute, gpus) else needed


def check_capacity(compute: ComputeConfig, available: dict[str, float]) -> int:
    """How many trainings fit into the cluster at once. Raises ``SearchError`` if not even one does."""
    needed = resources_per_worker(compute, available.get("GPU", 0.0))
    fits = {name: int(available.get(name, 0.0) // (compute.workers * amount)) for name, amount in needed.items()}
    for name, count in fits.items():
        if count < 1:
            raise SearchError(
                f"compute.workers: {compute.workers} workers need {compute.workers * needed[name]:g} {name}, "
                f"the cluster has {available.get(name, 0.0):g}; lower compute.workers or compute.{name.lower()}s_per_worker"
            )
    return min(fits.values())


def fresh_name(folder: Path, word: str) -> str:
    """``attempt-03``: a name for a run of Ray that is new below ``folder``.

    Ray would resume one of the same name from its own files; the study and the artifacts are all we resume from.
    """
    return f"{word}-{len(list(folder.glob(f'{word}-*'))):02d}"


def ranks_of_group() -> Ranks:
    """This process among those of its worker group of Ray Train."""
    from ray import train
    from ray.train.torch import get_device

    context = train.get_context()
    return Ranks(context.get_world_rank(), context.get_world_size(), get_device())


def work(assignment: Assignment, ranks: Ranks, report: Callable[[dict[str, float]], None]) -> Outcome | None:
    """What each process of a worker group does of a training: train, then predict the validation volumes.

    None if it was asked to stop. ``report`` gets validations, but for the last. Nothing of it stays in the process.
    """
    config = assignment.config
    torch.set_num_threads(config.compute.threads_per_worker or max(1, int(config.compute.cpus_per_worker)))
    hooks = Hooks(
        report=_reporter(config, report),
        progress=_progress(assignment),
        stop=assignment.stop_watch(),
        search=assignment.search,
        made=assignment.keep_record,
    )
    try:
        with _warnings(assignment):
            return run_stages(config, assignment.place.here(), ranks, hooks)
    except Interrupted:
        return None
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
        raise SearchError(_too_large(error)) from error
    finally:
        shelf.release()
        gc.collect()  # layers and their hooks refer to each other
        if ranks.device.type == "cuda":
            torch.cuda.empty_cache()


def out_of_memory(error: BaseException) -> bool:
    """Whether a process or a GPU had no memory left: torch says so on a GPU by a type, on a CPU by words only."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def _too_large(error: BaseException) -> str:
    first = next(iter(str(error).strip().splitlines()), type(error).__name__)
    return (
        f"out of memory: {first}; lower training.batch_size, pretraining.batch_size or reconstruction.batch_size, or take a "
        "smaller model"
    )


def _reporter(
    config: ExperimentConfig, report: Callable[[dict[str, float]], None]
) -> Callable[[dict[str, float]], None]:
    """Passes validations on, but for the last: no trial is to be stopped between its training and its search."""
    budget = config.training.images // config.training.batch_size * config.training.batch_size

    def forward(metrics: dict[str, float]) -> None:
        if metrics["images"] < budget:
            report(plain_metrics(metrics, OBJECTIVE, final=False))

    return forward


def run_stages(config: ExperimentConfig, place: stages.Place, ranks: Ranks, hooks: Hooks) -> Outcome:
    """Train (or find) the model and predict (or find) its validation volumes."""
    made = stages.train(config, place, ranks, hooks)
    store = SliceStore.open(place.store, verify=False)
    volumes = Cohort.of(store, config.data, "val").volumes
    path = prediction.reconstruct(config, place, made.checkpoint, volumes, ranks, hooks)
    if not ranks.first or not any(aim.metric == "seconds_per_volume" for aim in config.search.aims):
        return Outcome(made, path)
    model, _ = stages.load_model(made.checkpoint, ranks.device)
    return Outcome(made, path, pass_seconds(Networks(config, model, device=ranks.device), slices_of(store, volumes[0])))


def plain_metrics(metrics: Mapping[str, Any], objective: str, final: bool) -> dict[str, float]:
    """What Ray Tune is told: plain finite numbers, an ``objective`` always, and how many values were unfit (``flagged``).

    ``objective`` names the metric that becomes it. Ray takes no NumPy scalar, no tensor and no missing objective, and NaN
    breaks its next resume: what is not a finite number is left out, an unfit objective counts as 0, the worst.
    """
    numbers = {name: _number(value) for name, value in metrics.items()}
    finite = {name: value for name, value in numbers.items() if value is not None}
    flagged = len(numbers) - len(finite) + (objective not in numbers)
    return {**finite, "objective": finite.get(objective, 0.0), "flagged": float(flagged), "final": float(final)}


def _number(value: Any) -> float | None:
    try:
        number = float(value)
    except (TypeError, ValueError, RuntimeError):  # None, text, a tensor of several values
        return None
    return number if math.isfinite(number) else None


def _progress(assignment: Assignment) -> Callable[[str, int, int, float], None]:
    board, trial = assignment.board, assignment.trial
    if board is None:
        return lambda stage, images, budget, loss: None
    return lambda stage, images, budget, loss: board.post(trial, stage, images, budget, loss)


def _warnings(assignment: Assignment) -> AbstractContextManager[None]:
    board = assignment.board
    return board.warnings(f"trial {assignment.trial:04d}") if isinstance(board, Board) else nullcontext()


def scorer_on_test(assignment: Assignment, checkpoint: Path, gpus: float, calibrated: Calibration | None) -> Scorer:
    """The test cohort as ``checkpoint`` reconstructs it, with healthy statistics as of validation (``calibrated``)."""
    cohort = Cohort.of(SliceStore.open(assignment.place.store, verify=False), assignment.config.data, "test")
    path = predict_cohort(assignment, checkpoint, cohort.volumes, gpus)
    return cohort.scorer(Reconstruction.open(path), threads=2, calibrated=calibrated)


def predict_cohort(assignment: Assignment, checkpoint: Path, volumes: list[int], gpus: float) -> Path:
    """Predict ``volumes`` with a checkpoint in as many Ray tasks as the cluster holds; returns their reconstruction."""
    import ray

    config = assignment.config
    needed = resources_per_worker(config.compute, gpus)
    task = ray.remote(_predict).options(num_cpus=needed["CPU"], num_gpus=needed.get("GPU", 0), max_retries=2)
    count = max(1, min(int(capacity().get(name, 0.0) // amount) for name, amount in needed.items()))
    assignment.place.shelf.need(checkpoint)
    missing = prediction.unpredicted(config, assignment.place, checkpoint, volumes)
    parts = [part for part in (missing[i::count] for i in range(count)) if part]
    with Watch(torch.device("cpu")) as watch:
        try:
            ray.get([task.remote(assignment, checkpoint, part, "GPU" in needed) for part in parts])
        except ray.exceptions.RayTaskError as error:
            raise error.cause from None
        path = prediction.reconstruct(config, assignment.place, checkpoint, volumes, Ranks(), Hooks())
    if missing:
        record = watch.record(prediction.STAGE, path.name, len(parts), len(parts) * needed.get("GPU", 0.0))
        keep_record(assignment.campaign, record, assignment.trial)
    return path


def _predict(assignment: Assignment, checkpoint: Path, part: list[int], gpu: bool) -> None:
    config = assignment.config
    torch.set_num_threads(config.compute.threads_per_worker or max(1, int(config.compute.cpus_per_worker)))
    place = assignment.place.here()
    there = place.shelf.need(place.shelf.path(checkpoint.parent.name, checkpoint.name))
    wanted = prediction.wanted_of(config, place, there, part)
    prediction.complete(wanted, Ranks(device=torch.device("cuda" if gpu else "cpu")), Hooks())
