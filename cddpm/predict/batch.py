"""Many scans: one after another in this process, or by the processes of a Ray cluster. The files come out equal.

A scan that cannot be used is an outcome with an error; the others go on. Only what concerns all of them is raised.
"""

import functools
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from cddpm import cluster, host
from cddpm.data.volume import read_image, read_mask
from cddpm.errors import CddpmError, ConfigError, SearchError, StorageError
from cddpm.predict import result
from cddpm.predict.coverage import Window, looked_at
from cddpm.predict.predictor import Prediction, Predictor
from cddpm.predict.scans import Job
from cddpm.tracking.package import Package

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Outcome:
    """What became of one job."""

    job: Job
    error: str | None = None
    warnings: tuple[str, ...] = ()
    summary: str = ""
    """What was found, as one line."""
    kept: bool = False
    """An earlier run had done it."""
    scores: Mapping[str, float] | None = None
    """``Prediction.scores`` and the ``threshold``; None for a scan that was kept or failed."""


@dataclass(frozen=True)
class Work:
    """How scans are worked on. Called, it loads the model and gives the function that works on one."""

    package: Package
    found: dict[str, Any]
    """Where the model was found, for the results' provenance (JSON data)."""
    device: str = "cpu"
    resume: bool = False
    """Keep whole results of the same model, settings and files."""
    write: bool = True
    """Whether the results become files."""
    window: Window = "whole"

    def __call__(self) -> Callable[[Job], Outcome]:
        """The model, loaded in this process, as a function of one job."""
        return functools.partial(work_on, Predictor(self.package, self.device, self.window), self)


def here(work: Work, jobs: Sequence[Job]) -> Iterator[Outcome]:
    """Work on the jobs in this process, in their order. Raises ``StorageError`` when the disk refuses."""
    yield from map(work(), jobs)


def on_ray(work: Work, jobs: Sequence[Job], device: str, address: str) -> Iterator[Outcome]:
    """Work on the jobs with the cluster at ``address`` (``local``: one on this machine); outcomes as they come.

    One process per GPU, or per CPU where there is none or ``device`` is ``cpu``; each loads the model once. A scan whose
    process dies is tried once more and then reported. All nodes must see the scans and the folder of results. Raises
    ``SearchError`` if the cluster does not answer, ``ConfigError`` if it lacks the device.
    """
    cluster.connect(address)
    there = cluster.capacity()
    gpus, cpus = int(there.get("GPU", 0)), int(there.get("CPU", 0))
    if device == "cuda" and not gpus:
        raise ConfigError(f"--device cuda: the cluster at '{address}' has no GPU; allowed are auto and cpu")
    on_gpu = bool(gpus) and device != "cpu"
    count = max(1, min(len(jobs), gpus if on_gpu else cpus))
    work = replace(work, device="cuda" if on_gpu else "cpu")
    with cluster.ActorPool(work, count, gpus=int(on_gpu)) as pool:
        for number, done in pool.each([_absolute(job) for job in jobs]):
            job = jobs[number]
            yield Outcome(job, told(job, done)) if isinstance(done, SearchError) else replace(done, job=job)


def _absolute(job: Job) -> Job:
    """Processes of a cluster have working directories of their own."""
    mask = job.mask.absolute() if job.mask else None
    return replace(job, scan=job.scan.absolute(), mask=mask, folder=job.folder.absolute())


def work_on(predictor: Predictor, work: Work, job: Job) -> Outcome:
    """Look at one scan; whatever else is wrong with it is its outcome.

    Raises ``StorageError`` when the disk refuses, ``ConfigError`` for an unknown data set: these concern all scans.
    """
    try:
        identity = _identity(work, job)
        if work.resume and identity is not None and result.is_done(job.folder, identity):
            return Outcome(job, kept=True)
        image = read_image(job.scan)
        mask = read_mask(job.mask) if job.mask else None
        prediction = predictor.predict_scan(image, mask, job.key, job.dataset)
        if work.write:
            assert identity is not None  # both files could be read
            result.write(job.folder, image, prediction, identity, result.provenance(predictor, job, work.found))
    except (StorageError, ConfigError):
        raise
    except Exception as error:  # a fault that nobody foresaw must not hide the other scans
        logger.debug("%s", job.scan, exc_info=True)
        return Outcome(job, told(job, error))
    scores = {**prediction.scores, "threshold": prediction.threshold}
    return Outcome(job, None, prediction.warnings, _summary(prediction), scores=scores)


def told(job: Job, error: Exception) -> str:
    """Why a scan cannot be used, in one line that names it."""
    line = " ".join(str(error).split())
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        line = "too large for the memory here"
    elif isinstance(error, OSError):
        line = str(host.fault(error, [job.scan]))
    elif not isinstance(error, CddpmError):
        line = f"{job.scan}: cannot be worked on ({type(error).__name__}: {line})"
    named = any(str(path) in line for path in (job.scan, job.mask) if path)
    return line if named else f"{job.scan}: {line}"


def _identity(work: Work, job: Job) -> result.Identity | None:
    try:
        return result.Identity.of(work.package.fingerprint, job, looked_at(work.window, work.package.config.data))
    except OSError:
        return None  # reading the scan says better what is wrong with it


def _summary(prediction: Prediction) -> str:
    scores = prediction.scores
    places = "1 place" if scores["components"] == 1 else f"{scores['components']:.0f} places"
    return f"{scores['segmented_ml']:.1f} ml in {places} above {prediction.threshold:.4g}"
