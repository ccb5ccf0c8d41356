"""The training loop of both stages (encoder pretraining, diffusion): plain PyTorch over Ranks, counted in images seen.

Every random number is a function of the seed and of the position in the data, so a run that was stopped and resumed
makes the same steps, bit for bit on a CPU, as one that was not. Several workers make the steps of one, but for rounding
(sums in another order); only the masks of dropout (``model.dropout``) differ.
"""

import logging
import math
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from cddpm.config import ExperimentConfig
from cddpm.errors import CddpmError
from cddpm.models.device import memory_format, to_device
from cddpm.models.encoder import draw_paths, keep_paths
from cddpm.models.precision import Format, autocast
from cddpm.models.replay import Replay, ahead
from cddpm.scoring.score import Scorer
from cddpm.seeds import seed_of, step_seed
from cddpm.training import best, checkpoint
from cddpm.training.losses import Losses
from cddpm.training.order import Rows, batch_rows
from cddpm.training.ranks import Ranks
from cddpm.training.watch import StageRecord

logger = logging.getLogger(__name__)

POLL_STEPS = 10
"""Steps between looks at the request to stop."""


Batch = tuple[Tensor | None, ...]
"""What the module of an objective is called with."""


class Interrupted(Exception):  # noqa: N818 - not an error: training was asked to stop and can be resumed
    """Training saved its state and ended before its budget because it was asked to."""


class DivergedError(CddpmError):
    """The training loss became NaN or infinite."""


class Objective(Protocol):
    """What is trained. ``module(*batch)`` gives the loss, so that DDP can wrap it."""

    module: nn.Module
    replayable: bool
    """Whether ``module`` does the same work for every batch and never waits for a GPU, so that a graph of it can be replayed."""

    def batch(self, rows: Rows, positions: Rows) -> Batch:
        """Arguments of ``module`` for the slices ``rows``, which stand at ``positions`` of the data stream."""

    def validate(self, module: nn.Module, ranks: Ranks, images: int) -> dict[str, float]:
        """Metrics after ``images`` on validation data; called on all ranks, the same on all.

        What is random in them is a function of ``images``, so that a resumed training sees the same.
        """


@dataclass(frozen=True)
class Recipe:
    """Budget and optimizer of one training. ``images`` and ``warmup_images`` count slices over all workers."""

    images: int
    batch_size: int
    learning_rate: float
    weight_decay: float
    evaluations: int
    seed: int
    optimizer: Literal["adam", "adamw"]
    warmup_images: int = 0
    decay: Literal["none", "cosine"] = "none"
    gradient_clip: float | None = None
    ema_decay: float = 0.0
    precision: Format = "float32"
    keep: best.Criterion | None = None
    """Which weights are the result: those of the best validation, or the last ones."""

    @property
    def steps(self) -> int:
        """Optimizer steps of the whole budget."""
        return max(1, self.images // self.batch_size)

    def milestones(self) -> set[int]:
        """Steps after which the model is validated and saved; the last one always."""
        return {max(1, round(self.steps * i / self.evaluations)) for i in range(1, self.evaluations + 1)}

    def learning_rate_at(self, images: int) -> float:
        """Learning rate after ``images``: linear warm-up, then constant or half a cosine down to 0."""
        if images < self.warmup_images:
            return self.learning_rate * (images + self.batch_size) / (self.warmup_images + self.batch_size)
        if self.decay == "none":
            return self.learning_rate
        if self.decay == "cosine":
            done = (images - self.warmup_images) / max(1, self.images - self.warmup_images)
            return self.learning_rate * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))
        raise ValueError(f"decay: {self.decay!r}; allowed are none and cosine")


InnerSearch = Callable[[Scorer, ExperimentConfig, bool], dict[str, float]]
"""Searches scoring settings, with guidance or without, and gives the best objective's value by data set."""


@dataclass(frozen=True)
class Hooks:
    """What the loop tells and asks its surroundings."""

    report: Callable[[dict[str, float]], None] = lambda metrics: None
    """Called on every rank after each validation."""
    progress: Callable[[str, int, int, float], None] = lambda stage, images, budget, loss: None
    """Called on the first rank after some steps: stage, images seen, budget in images, loss."""
    stop: Callable[[], bool] = lambda: False
    """Asked on the first rank now and then: shall the training save and end?"""
    made: Callable[[StageRecord], None] = lambda record: None
    """Called on the first rank when a stage was computed (not found): what it cost."""
    saved: Callable[[Path], None] = lambda path: None
    """Called on the first rank when a state was saved, with its folder."""
    search: InnerSearch | None = None
    """Of previews (``search.preview_trials`` above 1)."""


class Trainer:
    """One training of one objective: holds module, optimizer and moving average; ``run`` goes through the budget."""

    def __init__(
        self, stage: str, objective: Objective, recipe: Recipe, rows: Rows, directory: Path, name: str, ranks: Ranks
    ) -> None:
        self.stage, self.objective, self.recipe, self.rows = stage, objective, recipe, rows
        self.directory, self.name, self.ranks = directory, name, ranks
        self.module = objective.module.to(ranks.device)
        self.module.to(memory_format=memory_format(ranks.device))  # type: ignore[call-overload]
        self.optimizer = _optimizer(self.module, recipe)
        self.average: dict[str, Tensor] | None = None
        self.images = 0
        self.loss_sum, self.loss_steps = 0.0, 0
        self._speed, self._saved = (time.monotonic(), 0), 0
        self._losses = Losses()
        self._pairs: tuple[dict[str, Tensor], tuple[tuple[list[Tensor], list[Tensor]], ...]] | None = None

    def run(self, hooks: Hooks) -> dict[str, Tensor]:
        """Train to the end of the budget; returns the weights to keep (moving average if configured).

        Raises ``Interrupted`` after saving when ``hooks.stop`` says so, ``DivergedError`` when the loss is not finite.
        """
        self._resume()
        passes = self._passes(self.ranks.wrap(self.module))
        milestones = self.recipe.milestones()
        if self.images // self.recipe.batch_size in milestones:
            self._catch_up(hooks)
        self._speed = (time.monotonic(), self.images)
        with closing(ahead(self._batches(), self.ranks.device)) as batches:
            self._work(passes, batches, milestones, hooks)
        return self._final_weights()

    def _work(self, passes: Replay, batches: Iterator[Batch], milestones: set[int], hooks: Hooks) -> None:
        """All steps that are left."""
        for step, batch in zip(self._steps(), batches, strict=True):
            self._losses.put(self.images + self.recipe.batch_size, self._step(passes, batch))
            self.images += self.recipe.batch_size
            self._count_losses(hooks, step in milestones or step % POLL_STEPS == 0)
            if step in milestones:
                self._save(hooks)
                self._evaluate(hooks)
            if step % POLL_STEPS == 0 and self.ranks.share(hooks.stop() if self.ranks.first else None):
                self._save(hooks)
                raise Interrupted(f"{self.stage}: stopped after {self.images} images; its state is saved")

    def _steps(self) -> Iterator[int]:
        yield from range(self.images // self.recipe.batch_size + 1, self.recipe.steps + 1)

    def _batches(self) -> Iterator[Callable[[], Batch]]:
        """What makes this rank's part of each batch to come: which branches its samples keep, then the module's arguments."""
        seed, ranks = self.recipe.seed, self.ranks
        for step in self._steps():
            images = (step - 1) * self.recipe.batch_size
            rows = batch_rows(self.rows, seed, images, self.recipe.batch_size)[ranks.rank :: ranks.world]
            yield partial(self._batch, rows, self._positions(images))

    def _batch(self, rows: Rows, positions: Rows) -> Batch:
        paths = draw_paths(self.module, [seed_of(self.recipe.seed, "depth", int(p)) for p in positions])
        on_device = None if paths is None else to_device(paths, self.ranks.device)
        return (on_device, *self.objective.batch(rows, positions))

    def _positions(self, images: int) -> Rows:
        """Where the slices of this rank's part of the batch stand in the data stream."""
        return np.arange(images, images + self.recipe.batch_size)[self.ranks.rank :: self.ranks.world]

    def _passes(self, parallel: nn.Module) -> Replay:
        """Forward and backward pass of a batch."""

        def run(batch: Batch) -> Tensor:
            paths, *arguments = batch
            parallel.train()
            keep_paths(self.module, paths)
            with autocast(self.recipe.precision, self.ranks.device):
                loss: Tensor = parallel(*arguments)
            loss.backward()
            return loss.detach()

        recorded = self.ranks.device.type == "cuda" and self.ranks.world == 1 and self.objective.replayable
        return Replay(run, recorded, lambda: self.optimizer.zero_grad(set_to_none=True))

    def _step(self, passes: Replay, batch: Batch) -> Tensor:
        recipe = self.recipe
        torch.manual_seed(step_seed(recipe.seed, int(self._positions(self.images)[0])))  # dropout: each rank's one draw
        for group in self.optimizer.param_groups:
            group["lr"] = recipe.learning_rate_at(self.images)
        loss = passes(batch)
        if recipe.gradient_clip is not None:
            nn.utils.clip_grad_norm_(self.module.parameters(), recipe.gradient_clip)
        self.optimizer.step()
        self._update_average()
        return loss

    def _count_losses(self, hooks: Hooks, all_of_them: bool) -> None:
        """Add up the losses that have been read and tell them; all before anything is saved or stops."""
        for images, loss in self._losses.read(all_of_them):
            if not math.isfinite(loss):
                raise DivergedError(
                    f"{self.stage}: the loss became {loss} after {images} images; "
                    f"lower the learning rate ({self.recipe.learning_rate:g}) or set training.gradient_clip"
                )
            self.loss_sum, self.loss_steps = self.loss_sum + loss, self.loss_steps + 1
            if self.ranks.first:
                hooks.progress(self.stage, images, self.recipe.steps * self.recipe.batch_size, loss)

    def _update_average(self) -> None:
        if not self.recipe.ema_decay:
            return
        if self.average is None:
            self.average = {name: tensor.detach().clone() for name, tensor in self.module.state_dict().items()}
            return
        # early on a long average would remember the random start: the decay grows with the steps (Karras et al. 2024)
        step = self.images // self.recipe.batch_size + 1
        decay = min(self.recipe.ema_decay, (1 + step) / (10 + step))
        (averages, weights), (counts, numbers) = self._averaged(self.average)
        torch._foreach_lerp_(averages, weights, 1 - decay)
        if counts:
            torch._foreach_copy_(counts, numbers)

    def _averaged(self, average: dict[str, Tensor]) -> tuple[tuple[list[Tensor], list[Tensor]], ...]:
        """The tensors of the average beside those of the module: floating point ones, then the others."""
        if self._pairs is None or self._pairs[0] is not average:
            pairs = [(average[name], tensor.detach()) for name, tensor in self.module.state_dict().items()]
            floats = [pair for pair in pairs if pair[0].is_floating_point()]
            others = [pair for pair in pairs if not pair[0].is_floating_point()]
            found = tuple(([a for a, _ in some], [w for _, w in some]) for some in (floats, others))
            self._pairs = average, found
        return self._pairs[1]

    def _catch_up(self, hooks: Hooks) -> None:
        """A process that died while it validated had saved before: validate now."""
        history = self.directory / checkpoint.HISTORY
        if self.ranks.share(
            self.ranks.first and any(r["images"] == self.images for r in checkpoint.read_history(history))
        ):
            self.loss_sum, self.loss_steps = 0.0, 0
        else:
            self._evaluate(hooks)

    def _evaluate(self, hooks: Hooks) -> None:
        (started, images), now = self._speed, time.monotonic()
        row = {"images": float(self.images), **self._validate()}
        if self.images > images:
            row[f"{self.stage}/images_per_second"] = (self.images - images) / max(1e-9, now - started)
        row[f"{self.stage}/loss"] = self._total_loss() / (self.ranks.world * self.loss_steps)
        self._keep_best(row)
        if self.ranks.first:
            checkpoint.append_history(self.directory / checkpoint.HISTORY, row)
        hooks.report(row)
        self.loss_sum, self.loss_steps = 0.0, 0
        self._speed = (time.monotonic(), self.images)

    def _total_loss(self) -> float:
        return float(self.ranks.total(torch.tensor(self.loss_sum, dtype=torch.float64)))

    def _validate(self) -> dict[str, float]:
        with (
            _evaluating(self.module, self.average),
            torch.inference_mode(),
            autocast(self.recipe.precision, self.ranks.device),
        ):
            return self.objective.validate(self.module, self.ranks, self.images)

    def _keep_best(self, row: dict[str, float]) -> None:
        """Before the history is written: a crash in between validates again, and offers the same weights."""
        criterion = self.recipe.keep
        if criterion is None:
            return
        if self.ranks.first:
            value = row[criterion.metric]
            best.offer(self.directory, criterion, self.images, value, self._current_weights(), self.name)
        self.ranks.barrier()

    def _save(self, hooks: Hooks) -> None:
        if self.images == self._saved:
            return
        total = self._total_loss()
        if self.ranks.first:
            state = checkpoint.State(
                self.images,
                self.module.state_dict(),
                self.average,
                self.optimizer.state_dict(),
                total,
                self.loss_steps,
            )
            hooks.saved(checkpoint.save_state(self.directory, state, self.name))
        self.ranks.barrier()
        self._saved = self.images

    def _resume(self) -> None:
        state = checkpoint.newest_state(self.directory, self.name)
        if state is None:
            return
        logger.info("%s: resuming at %d images", self.stage, state.images)
        checkpoint.fill_module(self.module, state.weights, str(self.directory))
        self.optimizer.load_state_dict(state.optimizer)
        for parameter, kept in self.optimizer.state.items():
            kept.update({name: _lying_like(parameter, value) for name, value in kept.items()})
        own = self.module.state_dict()
        average = checkpoint.tensors_on(self.ranks.device, state.average) if state.average else None
        self.average = average and {name: _lying_like(own[name], value) for name, value in average.items()}
        self.images = self._saved = state.images
        self.loss_sum, self.loss_steps = (state.loss_sum if self.ranks.first else 0.0), state.loss_steps

    def _current_weights(self) -> dict[str, Tensor]:
        return self.average or self.module.state_dict()

    def _final_weights(self) -> dict[str, Tensor]:
        if self.recipe.keep is not None:
            return best.weights(self.directory, self.recipe.keep, self.name)
        return {k: v.detach().clone() for k, v in self._current_weights().items()}


def _lying_like(own: Tensor, value: Tensor) -> Tensor:
    """``value`` in the memory layout of ``own`` if shapes agree: files know no layouts, and fused steps ask for equal ones."""
    if value.shape != own.shape or value.stride() == own.stride():
        return value
    return torch.empty_like(own, dtype=value.dtype).copy_(value)


def _optimizer(module: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    trained = [p for p in module.parameters() if p.requires_grad]
    fused = all(p.is_cuda for p in trained)  # one kernel for all weights; on a CPU the other way is the quicker one
    decay = recipe.weight_decay
    if recipe.optimizer == "adam":
        return torch.optim.Adam(trained, recipe.learning_rate, weight_decay=decay, fused=fused, foreach=not fused)
    if recipe.optimizer == "adamw":
        return torch.optim.AdamW(trained, recipe.learning_rate, weight_decay=decay, fused=fused, foreach=not fused)
    raise ValueError(f"optimizer: {recipe.optimizer!r}; allowed are adam and adamw")


@contextmanager
def _evaluating(module: nn.Module, average: dict[str, Tensor] | None) -> Iterator[None]:
    """``module`` in evaluation mode, with the moving average as its weights if there is one, for a while."""
    own = {name: tensor.detach().clone() for name, tensor in module.state_dict().items()} if average else None
    module.eval()
    try:
        if average:
            module.load_state_dict(average)
        yield
    finally:
        if own:
            module.load_state_dict(own)
        module.train()
