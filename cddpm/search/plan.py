"""What a sweep would do and cost, and what of it is there already; told before anything starts, without Ray.

How long it takes is told by earlier trainings like its own; where there are none, by a ``Probe`` of the device they would run on,
of the largest networks and batches that the training space holds.
"""

import json
import statistics
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cddpm import artifact
from cddpm.config import ExperimentConfig, to_dict, value_at
from cddpm.data.layout import read_layout, root_of
from cddpm.data.phantom.folder import LABEL
from cddpm.data.split import ScanRow
from cddpm.data.store import SliceStore, store_fingerprint
from cddpm.models import precision
from cddpm.reconstruct import reconstruction
from cddpm.reconstruct.cohort import Cohort
from cddpm.reconstruct.part import parts_of
from cddpm.reconstruct.tiling import Tiling
from cddpm.search import budget, forecast, leaderboard, record, sampler, study
from cddpm.search import trial as trials
from cddpm.search.preparation import phantom_folder
from cddpm.search.sweep import folder_of
from cddpm.shelf import Shelf
from cddpm.training import checkpoint, diffusion, pretraining, stages
from cddpm.training.probe import Probe
from cddpm.training.stages import guide_config

STORE = "store"


@dataclass(frozen=True)
class Stage:
    """A stage of the first trial, which is the configuration as it is."""

    kind: str
    fingerprint: str
    there: bool
    note: str = ""


@dataclass(frozen=True)
class Work:
    """Upper bounds over all trials, as if none were stopped early and nothing were there."""

    training_images: int
    pretraining_images: int
    predicted_slices: int
    """Forward passes of single slices on validation: levels x noise seeds x branches x slices x volumes x trials."""
    scoring_points: int
    preview_points: int
    """At the validations of trainings: scoring settings on a few volumes."""


@dataclass(frozen=True)
class Speed:
    """How fast the same work was here before; None where nothing tells it."""

    training_images_per_second: float | None
    pretraining_images_per_second: float | None
    scoring_point_seconds: float | None
    forward_pass_seconds: float | None = None
    """Of a slice, in one of the workers."""
    told_by: str = "as earlier ones like it here"


@dataclass(frozen=True)
class Plan:
    """What ``--dry-run`` shows."""

    config: ExperimentConfig
    validation_volumes: int
    work: Work
    speed: Speed
    stages: tuple[Stage, ...] | None
    """None while the data are not there: fingerprints begin with them."""
    rungs: tuple[tuple[int, ...], ...]
    """Images at which trials are compared, per bracket of the pruner."""
    spent: budget.Spent
    ended: int
    """Trials of this sweep that have ended already."""
    memory: forecast.Memory | None = None
    """None where no device was measured."""

    @property
    def seconds(self) -> dict[str, float | None]:
        """Estimated time of each kind of work, one training at a time; None where no speed is known."""
        work, speed = self.work, self.speed
        points = speed.scoring_point_seconds
        return {
            "training": _time(work.training_images, speed.training_images_per_second),
            "pretraining": _time(work.pretraining_images, speed.pretraining_images_per_second),
            "reconstruction": _of(work.predicted_slices, speed.forward_pass_seconds, self.config.compute.workers),
            "scoring": _of(work.scoring_points, points),
        }

    @property
    def faults(self) -> tuple[str, ...]:
        """What cannot fit into memory, each with the setting that makes it fit."""
        return () if self.memory is None else tuple(forecast.lacks(self.config, self.memory))


def _time(amount: int, per_second: float | None) -> float | None:
    if amount == 0:
        return 0.0
    return amount / per_second if per_second else None


def _of(amount: int, seconds: float | None, workers: int = 1) -> float | None:
    return None if seconds is None else amount * seconds / workers


def make(config: ExperimentConfig, probe: Probe | None = None) -> Plan:
    """Look at data, artifacts and earlier sweeps of ``config``; nothing is written.

    ``probe`` is that of ``forecast.largest(config)`` on the device of its workers. Fingerprints are those of work done by this
    machine's processor. Raises ``DataError`` for data that are named but cannot be used.
    """
    config = precision.settled_for(config, _device(config))
    rows = _rows(config)
    store = None if rows is None else store_fingerprint(config.data, rows, _in_threads)
    volumes = _validation_volumes(config, rows)
    search, sweep = config.search, folder_of(config)
    speed = _speed(config, store)
    return Plan(
        config=config,
        validation_volumes=volumes,
        work=_work(config, volumes),
        speed=speed if probe is None else _measured(config, speed, probe, volumes),
        stages=None if store is None else tuple(_stages(config, store)),
        rungs=tuple(map(tuple, study.rungs(search, config.training.images))),
        spent=budget.read(sweep),
        ended=len(leaderboard.rows(sweep)),
        memory=None if probe is None else forecast.memory(config, probe),
    )


def _measured(config: ExperimentConfig, known: Speed, probe: Probe, volumes: int) -> Speed:
    """What is known, and for the rest what ``probe`` says."""
    workers, encoder = config.compute.workers, probe.encoder
    return Speed(
        known.training_images_per_second or workers / probe.diffusion.seconds,
        known.pretraining_images_per_second or (workers / encoder.seconds if encoder else None),
        known.scoring_point_seconds or forecast.point_seconds(config, volumes),
        probe.diffusion.forward_seconds,
        f"as measured on {probe.device}" if known.training_images_per_second is None else known.told_by,
    )


def _device(config: ExperimentConfig) -> precision.Device:
    import torch

    device = config.compute.device
    return ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device


def _in_threads(function: Any, items: list[Any]) -> list[Any]:
    with ThreadPoolExecutor() as pool:  # digests of files: hashing lets go of the interpreter's lock
        return list(pool.map(function, items))


def _rows(config: ExperimentConfig) -> tuple[ScanRow, ...] | None:
    """Rows of the split files; None for a phantom that is not made yet."""
    data = config.data
    if data.data_dir is None and data.table is None:
        if not (phantom_folder(config) / LABEL).exists():
            return None
        data = data.model_copy(update={"data_dir": str(phantom_folder(config))})
    return read_layout(config.data, root_of(data)).rows


def _validation_volumes(config: ExperimentConfig, rows: tuple[ScanRow, ...] | None) -> int:
    data = config.data
    if rows is None:
        return data.phantom.healthy_val + len(data.unhealthy) * data.phantom.unhealthy_val
    return sum(row.split == "val" and row.fold in (None, data.fold) for row in rows)


def _work(config: ExperimentConfig, volumes: int) -> Work:
    count, space = config.search.training.trials, config.search.training.space
    guided = config.reconstruction.guide == "ddpm"
    pretrained = config.model.conditioned and config.pretraining.enabled and config.pretraining.artifact is None
    encoders = {path for path in space if path.startswith(("data.", "pretraining.", "encoder.", "training.precision"))}
    several = bool(encoders - {"pretraining.enabled"})
    levels = _most(config, "reconstruction.noise_levels", len)
    seeds = _most(config, "reconstruction.noise_seeds", len)
    branches = 2 if guided or _most(config, "diffusion.condition_dropout", float) > 0 else 1
    points = sampler.point_count(config.search.scoring, config)
    images = 0 if config.training.artifact else int(_most(config, "training.images", float))
    return Work(
        training_images=count * images * (2 if guided else 1),
        pretraining_images=(count if several else 1) * config.pretraining.images if pretrained else 0,
        predicted_slices=int(count * levels * seeds * branches * volumes * _shown(config)),
        scoring_points=count * points,
        preview_points=count * config.training.evaluations * min(points, config.search.preview_trials) if images else 0,
    )


def _shown(config: ExperimentConfig) -> int:
    """Slices that a network is shown of a usual brain: with overlapping windows where its planes are larger than one."""
    (height, width), (x, y, z) = config.data.slice_shape, config.data.usual_shape
    if (x, y) == (height, width):
        return z
    rows, columns, across = np.ogrid[-1 : 1 : 1j * x, -1 : 1 : 1j * y, -1 : 1 : 1j * z]
    brain = (across**2 + rows**2 + columns**2 <= 1).transpose(2, 0, 1)
    top, left = (x - height) // 2, (y - width) // 2
    tiling = Tiling.of(brain, (slice(0, z), slice(top, top + height), slice(left, left + width)))
    return len(tiling.own) + len(tiling.others)


def _most(config: ExperimentConfig, path: str, size: Any) -> float:
    """The largest size of a setting over the training space, or of the configuration's own value."""
    values = [value_at(config, path)]
    parameter = config.search.training.space.get(path)
    values += [] if parameter is None else forecast.ends(parameter)
    return max(float(size(value)) for value in values)


def _stages(config: ExperimentConfig, store: str) -> Iterator[Stage]:
    shelf, guided_by = Shelf.of(config.kept_in), None
    artifacts = shelf.artifacts
    yield Stage(STORE, store, shelf.has(artifacts / STORE / store))
    guide = guide_config(config)
    if guide is not None:
        guided_by = stages.checkpoint_identity(guide, store)[0]
        yield Stage(stages.GUIDE, guided_by, shelf.has(artifacts / stages.CHECKPOINT / guided_by))
    if config.model.conditioned and config.pretraining.enabled and not config.training.artifact:
        name = stages.encoder_identity(config, store)[0]
        yield Stage(stages.ENCODER, name, shelf.has(artifacts / stages.ENCODER / name))
    name = stages.checkpoint_identity(config, store)[0]
    yield Stage(stages.CHECKPOINT, name, shelf.has(artifacts / stages.CHECKPOINT / name))
    yield _prediction(config, artifacts, store, name, guided_by)


def _prediction(config: ExperimentConfig, artifacts: Path, store: str, model: str, guide: str | None) -> Stage:
    """Which of the wanted noise levels the first trial's model has predicted, of all validation volumes."""
    settings, diffusion = config.reconstruction, config.diffusion
    name = reconstruction.prediction_identity(
        model, store, settings, diffusion.noise, config.seed, diffusion.patch, guide
    )[0]
    volumes = _volume_ids(config, artifacts / STORE / store)
    steps = [parts_of(reconstruction.prediction_path(artifacts, name), volume).keys() for volume in volumes]
    wanted, seeds = set(settings.noise_levels), settings.noise_seeds
    done = {level for level in wanted if steps and all((level, seed) in s for s in steps for seed in seeds)}
    return Stage(reconstruction.PREDICTION, name, wanted == done, f"{len(done)} of {len(wanted)} noise levels")


def _volume_ids(config: ExperimentConfig, path: Path) -> list[str]:
    """Validation volumes; none while there is no slice store."""
    if not artifact.is_complete(path):
        return []
    store = SliceStore.open(path, verify=False)
    return [store.volumes[v].id for v in Cohort.of(store, config.data, "val").volumes]


def _speed(config: ExperimentConfig, store: str | None) -> Speed:
    artifacts = Shelf.of(config.kept_in).artifacts
    return Speed(
        _median(_rates(config, artifacts / stages.CHECKPOINT, diffusion.STAGE, "training")),
        _median(_rates(config, artifacts / stages.ENCODER, pretraining.STAGE, "pretraining")),
        _median(_point_seconds(config, store)),
    )


def _median(values: Iterator[float]) -> float | None:
    found = list(values)
    return statistics.median(found) if found else None


def _rates(config: ExperimentConfig, folder: Path, stage: str, section: str) -> Iterator[float]:
    """Images per second in the histories of finished trainings like this one: same networks, slices, batch and workers."""
    alike = (
        *([("model",)] if section == "training" else []),
        ("encoder",),
        ("data", "volume_shape"),
        ("data", "rescale_factor"),
        ("data", "rescale_grid"),
        ("training", "precision"),
        (section, "batch_size"),
        ("compute", "workers"),
        ("compute", "device"),
    )
    now = to_dict(config)
    for path in sorted(folder.glob(f"*/{checkpoint.CONFIG}")):
        then = json.loads(path.read_text())
        if all(_at(then, place) == _at(now, place) for place in alike):
            rates = (
                row.get(f"{stage}/images_per_second")
                for row in checkpoint.read_history(path.with_name(checkpoint.HISTORY))
            )
            yield from (rate for rate in rates if rate)


def _at(tree: Any, path: tuple[str, ...]) -> Any:
    for part in path:
        tree = tree.get(part) if isinstance(tree, dict) else None
    return tree


def _point_seconds(config: ExperimentConfig, store: str | None) -> Iterator[float]:
    """Seconds of each scoring point that any sweep on these data has tried."""
    for sweep in sorted((config.output_dir / "sweeps").glob("*")):
        entered = record.read_origin(sweep)
        if entered is not None and entered.store == store:
            for path in sorted(sweep.glob(f"trials/*/{trials.POINTS}")):
                yield from (point.seconds for point in trials.read_points(path.parent))
