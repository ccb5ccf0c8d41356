"""The stages of one training, each made once and kept under its fingerprint: guide, encoder, checkpoint.

All ranks of a worker group call these functions together. A stage that another trial is making is waited for.

The guide is a DDPM without condition, trained beside a conditioned model, whose prediction is u in x0(s) = u + s (c - u). It has
the settings of the conditioned model but for the condition, and a checkpoint of its own, which any trial with the same settings
finds.
"""

import logging
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cddpm import artifact
from cddpm.cluster import claimed
from cddpm.config import ExperimentConfig, parse, recorded, to_dict, with_values
from cddpm.data.store import SliceStore, with_landmarks
from cddpm.errors import ArtifactError, ConfigError, SearchError
from cddpm.models.cddpm import ConditionedDiffusion
from cddpm.models.precision import certain
from cddpm.shelf import Shelf
from cddpm.training import away, checkpoint, diffusion, pretraining
from cddpm.training.loop import Hooks, Interrupted, Trainer
from cddpm.training.order import Rows
from cddpm.training.preview import Preview, preview_settings
from cddpm.training.ranks import Ranks
from cddpm.training.watch import Watch

logger = logging.getLogger(__name__)

STORE, ENCODER, CHECKPOINT, GUIDE = "store", "encoder", "checkpoint", "guide"
WAIT_SECONDS = 1.0
"""Between looks at an artifact that another trial is making."""
METHOD_VERSION = 2
"""Part of every fingerprint; raised when the same settings would give other numbers."""


@dataclass(frozen=True)
class Place:
    """Where artifacts live on this node, and the slice store they are made from."""

    artifacts: Path
    store: Path
    storage: str = ""
    """URI of the object store behind ``artifacts``; empty: that folder is the storage itself."""
    stores: tuple[tuple[str, Path], ...] = ()
    """Where a sweep searches how scans are prepared: the slice store of each ``DataConfig.preparation``."""

    def of(self, config: ExperimentConfig) -> "Place":
        """The same place with the slice store of a trial's ``config``. Raises ``SearchError`` where nobody made that."""
        if not self.stores:
            return self
        store = dict(self.stores).get(config.data.preparation)
        if store is None:
            raise SearchError(
                f"no slice store of {config.data.preparation}: it is not in the space of this sweep (any more)"
            )
        return replace(self, store=store)

    @property
    def shelf(self) -> Shelf:
        """Where artifacts are found and kept."""
        return Shelf(self.artifacts, self.storage)

    def here(self) -> "Place":
        """The same place on the node that asks, with the slice store at hand."""
        if not self.storage:
            return self
        shelf = self.shelf.here()
        return replace(self, artifacts=shelf.artifacts, store=shelf.need(shelf.path(STORE, self.store.name)))


def as_prepared(config: ExperimentConfig, place: Place) -> ExperimentConfig:
    """``config`` with what its slice store has learnt of the training scans, so that any other scan can be prepared alike."""
    return config.model_copy(update={"data": with_landmarks(config.data, place.store)})


@dataclass(frozen=True)
class Made:
    """Result of a trial's stages: folders, and which of them were made now (not found)."""

    checkpoint: Path
    encoder: Path | None
    made: tuple[str, ...]
    guide: Path | None = None
    """Checkpoint of the DDPM that guides the model (``reconstruction.guide: ddpm``)."""


def encoder_identity(config: ExperimentConfig, store: str) -> tuple[str, dict[str, Any]]:
    """Fingerprint of the pretrained encoder and what it is made from. Raises ``ValueError`` for a precision not yet settled."""
    if config.pretraining.artifact:
        return config.pretraining.artifact, {}
    made_from = {
        "store": store,
        "cohort": _cohort(config),
        "method": METHOD_VERSION,
        "seed": config.seed,
        "encoder": to_dict(config.encoder),
        "pretraining": to_dict(config.pretraining),
        "precision": certain(config.training.precision),
        "workers": config.compute.workers,
    }
    return artifact.fingerprint(ENCODER, made_from), made_from


def checkpoint_identity(config: ExperimentConfig, store: str) -> tuple[str, dict[str, Any]]:
    """Fingerprint of the trained model and what it is made from.

    Settings that only change what is said about a model (reconstruction, scoring, search) are not part of it: the history
    kept with the weights shows the preview as it was when they were trained. Only where the preview chooses the weights
    (``training.keep: best-score``) its settings are. A model without condition does not depend on how one would enter.
    Raises ``ValueError`` for a precision that is not settled yet.
    """
    if config.training.artifact:
        return config.training.artifact, {}
    unused = set() if config.model.conditioned else {"condition_width", "conditioning"}
    made_from = {
        "store": store,
        "cohort": _cohort(config),
        "method": METHOD_VERSION,
        "seed": config.seed,
        "encoder": _encoder_origin(config, store),
        "model": {name: value for name, value in to_dict(config.model).items() if name not in unused},
        "diffusion": to_dict(config.diffusion),
        "training": {**to_dict(config.training), "precision": certain(config.training.precision)},
        "workers": config.compute.workers,
        **({"preview": preview_settings(config)} if config.training.keep == "best-score" else {}),
    }
    return artifact.fingerprint(CHECKPOINT, made_from), made_from


def _encoder_origin(config: ExperimentConfig, store: str) -> str | dict[str, Any] | None:
    if not config.model.conditioned:
        return None
    return encoder_identity(config, store)[0] if config.pretraining.enabled else to_dict(config.encoder)


def _cohort(config: ExperimentConfig) -> list[Any]:
    """Which volumes of the store are trained on; its own fingerprint covers modality, preparation and splits."""
    return [config.data.healthy, config.data.fold]


def train(config: ExperimentConfig, place: Place, ranks: Ranks, hooks: Hooks) -> Made:
    """Make (or find) guide, encoder and trained model of ``config``. Raises ``Interrupted`` when asked to stop.

    Raises ``ArtifactError`` if an artifact that the configuration names is not there.
    """
    if config.training.artifact:
        return Made(_finished_model(config, place), None, ())
    store = SliceStore.open(place.store, verify=False)  # the driver has
    rows = _rows(config, store, "train", config.training.minimum_brain_fraction)
    validation_rows = _rows(config, store, "val")
    guide, made = _make_guide(config, place, ranks, hooks)

    encoder: Path | None = None
    if config.model.conditioned and config.pretraining.enabled:
        name, made_from = encoder_identity(config, store.fingerprint)
        encoder = place.artifacts / ENCODER / name
        if config.pretraining.artifact:
            artifact.verify(place.shelf.need(encoder), ENCODER)
        # a trial is judged by its diffusion model alone
        silent = Hooks(progress=hooks.progress, stop=hooks.stop, made=hooks.made)
        with _claimed(place.shelf, encoder, config, ranks, silent) as job:
            if job is not None:
                pretrained = pretraining.PretrainingObjective(config, store, validation_rows, ranks.device)
                recipe = pretraining.recipe(config)
                Trainer(pretraining.STAGE, pretrained, recipe, rows, job.work, name, ranks).run(job.hooks)
                job.keep(made_from, pretrained.spark.encoder_state())
                made.append(ENCODER)
        place.shelf.need(encoder)

    name, made_from = checkpoint_identity(config, store.fingerprint)
    path = place.artifacts / CHECKPOINT / name
    with _claimed(place.shelf, path, config, ranks, hooks) as job:
        if job is not None:
            asked = config.scoring.guidance_scale != 1 or config.search.preview_trials > 1  # with s = 1 nobody is
            preview = Preview(config, store, load_guide(guide if asked else None, ranks.device), hooks.search)
            objective = diffusion.DiffusionObjective(config, store, validation_rows, preview, ranks.device)
            if encoder is not None:
                _load_encoder(objective.model, encoder)
            recipe = diffusion.recipe(config)
            weights = Trainer(diffusion.STAGE, objective, recipe, rows, job.work, name, ranks).run(job.hooks)
            job.keep(made_from, weights)
            made.append(CHECKPOINT)
    return Made(place.shelf.need(path), encoder, tuple(made), guide)


_WITHOUT_CONDITION: dict[str, Any] = {
    "model.conditioned": False,
    "pretraining.artifact": None,
    "model.conditioning": "vector",
    "diffusion.condition_dropout": 0.0,
    "reconstruction.guide": "none",
    "reconstruction.embedding_scale": 1.0,
    "scoring.guidance_scale": 1.0,
    "search.training.trials": 1,
    "search.training.space": {},
    "search.training.start": [],
    "search.scoring.space": {},
    "search.scoring.start": [],
    "search.preview_trials": 1,
}


def guide_config(config: ExperimentConfig) -> ExperimentConfig | None:
    """The experiment that trains the guide of ``config``; None if it asks for none (``reconstruction.guide: none``)."""
    if config.reconstruction.guide == "none":
        return None
    if config.reconstruction.guide == "ddpm":
        return with_values(config, _WITHOUT_CONDITION, "guide")
    raise ValueError(f"reconstruction.guide: {config.reconstruction.guide!r}; allowed are none and ddpm")


def _make_guide(config: ExperimentConfig, place: Place, ranks: Ranks, hooks: Hooks) -> tuple[Path | None, list[str]]:
    """Make (or find) the guide's checkpoint, if ``config`` asks for one; and what was made now."""
    guide = guide_config(config)
    if guide is None:
        return None, []
    # Its validations are not reported: a trial is judged by its conditioned model alone.
    quiet = Hooks(
        progress=lambda stage, *rest: hooks.progress(GUIDE, *rest),
        stop=hooks.stop,
        made=lambda record: hooks.made(replace(record, stage=GUIDE)),
    )
    made = train(guide, place, ranks, quiet)
    return made.checkpoint, [GUIDE] if made.made else []


def _finished_model(config: ExperimentConfig, place: Place) -> Path:
    """The checkpoint that ``training.artifact`` names. Raises ``ConfigError`` if it was made for other settings."""
    path = place.shelf.need(place.artifacts / CHECKPOINT / str(config.training.artifact))
    artifact.verify(path, CHECKPOINT)
    kept = parse(checkpoint.read_config(path), str(path / checkpoint.CONFIG))
    sections = ("model", "diffusion", *(["encoder"] if config.model.conditioned else []))
    other = [name for name in sections if getattr(kept, name) != getattr(config, name)]
    if other:
        raise ConfigError(
            f"training.artifact: {path} was made with other settings in {', '.join(other)}; start from its own "
            f"configuration (--config {path / checkpoint.CONFIG})"
        )
    return path


def _rows(config: ExperimentConfig, store: SliceStore, split: str, minimum_brain_fraction: float = 0.0) -> Rows:
    volumes = store.cohort(config.data.healthy, split, config.data.fold)
    return store.slice_ids(volumes, minimum_brain_fraction)


def _load_encoder(model: ConditionedDiffusion, path: Path) -> None:
    assert model.encoder is not None  # only conditioned models are pretrained
    artifact.verify(path, ENCODER)
    weights = checkpoint.load_weights(path / checkpoint.WEIGHTS)
    own = {name: tensor for name, tensor in model.encoder.state_dict().items() if name.startswith("fc.")}
    checkpoint.fill_module(model.encoder, {**own, **weights}, str(path))  # fc stays random, nothing is frozen


@dataclass(frozen=True)
class _Job:
    """An artifact that this worker group makes now."""

    shelf: Shelf
    path: Path
    config: ExperimentConfig
    ranks: Ranks
    work: Path
    """The folder for resumable work meanwhile."""
    hooks: Hooks

    def keep(self, made_from: dict[str, Any], weights: Mapping[str, Tensor]) -> None:
        """Make the artifact of trained ``weights``, with configuration and history; its folder of ``work`` goes."""

        def fill(folder: Path) -> None:
            checkpoint.save_weights(folder / checkpoint.WEIGHTS, weights)
            artifact.write_json(folder / checkpoint.CONFIG, recorded(self.config))
            shutil.copyfile(self.work / checkpoint.HISTORY, folder / checkpoint.HISTORY)

        if self.ranks.first:
            artifact.create(self.path, self.path.parent.name, self.path.name, made_from, fill)
            self.shelf.put(self.path)
            away.forget(self.shelf, self.work)
        self.ranks.barrier()


@contextmanager
def _claimed(shelf: Shelf, path: Path, config: ExperimentConfig, ranks: Ranks, hooks: Hooks) -> Iterator[_Job | None]:
    """None if the artifact ``path`` is there; if not, or if it is damaged, it is this worker group's to make in the block.

    While another group makes the artifact, all ranks wait in short steps (one long wait of the first rank alone would let the
    others' broadcast time out). Raises ``Interrupted`` when asked to stop meanwhile.
    """
    kind, work = path.parent.name, path.parent / ".work" / path.name
    with ExitStack() as stack:
        while (state := ranks.share(_claim(shelf, path, work, stack, hooks) if ranks.first else None)) == "busy":
            time.sleep(WAIT_SECONDS)
        if state == "stop":
            raise Interrupted(f"{path.name}: stopped while another trial makes this {kind}")
        if state == "found":
            yield None
            return
        with watched(kind, path.name, config, ranks, hooks), away.kept_away(shelf, work, ranks, hooks) as followed:
            yield _Job(shelf, path, config, ranks, work, followed)


def _claim(shelf: Shelf, path: Path, work: Path, stack: ExitStack, hooks: Hooks) -> str:
    if _sound(shelf, path):
        return "found"
    try:
        stack.enter_context(_alone(shelf, path, work))
    except BlockingIOError:
        return "stop" if hooks.stop() else "busy"
    if _sound(shelf, path):
        return "found"
    artifact.set_aside_damaged(path, path.parent.name)
    return "mine"


def _sound(shelf: Shelf, path: Path) -> bool:
    """Whether the artifact is there, and whole; a damaged one of an object store is told and taken away."""
    kind = path.parent.name
    try:
        if shelf.get(path) is None:
            return False
        if shelf.storage:
            if artifact.set_aside_damaged(path, kind):  # this node's copy
                return shelf.get(path) is not None
            shelf.put(path)  # a process that died may have made it, and not yet sent it
            return True
    except ArtifactError as error:
        logger.warning("%s; it is made again", error)
        shelf.discard(path)
        return False
    return artifact.is_sound(path, kind)


@contextmanager
def _alone(shelf: Shelf, path: Path, work: Path) -> Iterator[None]:
    """The claim on an artifact: a lock in a folder, freed by the kernel; before an object store the cluster's own.

    Raises ``BlockingIOError`` while another has it.
    """
    if not shelf.storage:
        with artifact.lock(work.with_name(f"{work.name}.lock"), wait=False):
            yield
        return
    with claimed(shelf.place(path)) as mine:
        if not mine:
            raise BlockingIOError
        yield


@contextmanager
def watched(kind: str, name: str, config: ExperimentConfig, ranks: Ranks, hooks: Hooks) -> Iterator[None]:
    """Measure what the stage costs that is made inside, and tell it if it comes to its end."""
    if not ranks.first:
        yield
        return
    with Watch(ranks.device) as watch:
        yield
    gpus = ranks.world * config.compute.gpus_per_worker if ranks.device.type == "cuda" else 0.0
    hooks.made(watch.record(kind, name, ranks.world, gpus))


def load_model(path: Path, device: torch.device) -> tuple[ConditionedDiffusion, ExperimentConfig]:
    """The trained model of a checkpoint, in evaluation mode. Runs no code from it.

    Raises ``ArtifactError`` for a damaged checkpoint or one of another architecture.
    """
    artifact.verify(path, CHECKPOINT)
    config = parse(checkpoint.read_config(path), str(path / checkpoint.CONFIG))
    return checkpoint.trained(config, checkpoint.load_weights(path / checkpoint.WEIGHTS), str(path), device), config


def guide_path(config: ExperimentConfig, place: Place, path: Path) -> Path | None:
    """The guide's checkpoint beside the checkpoint ``path``, trained on the same store with the same settings.

    None if ``config`` asks for none. Raises ``ArtifactError`` if it was not trained.
    """
    if config.reconstruction.guide == "none":
        return None
    store = artifact.read_manifest(path, CHECKPOINT).made_from.get("store")
    own = parse(checkpoint.read_config(path), str(path / checkpoint.CONFIG))
    guide = guide_config(with_values(own, {"reconstruction.guide": config.reconstruction.guide}, str(path)))
    assert guide is not None  # asked for
    found = place.artifacts / CHECKPOINT / checkpoint_identity(guide, str(store))[0]
    if place.shelf.get(found) is None:
        raise ArtifactError(
            f"{found}: the DDPM that reconstruction.guide asks for beside {path.name} is not there; train with the same "
            "configuration first, or set reconstruction.guide: none"
        )
    return found


def load_guide(path: Path | None, device: torch.device) -> ConditionedDiffusion | None:
    """The guide of a checkpoint, if it has one."""
    return None if path is None else load_model(path, device)[0]
