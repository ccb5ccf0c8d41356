"""The reconstruction stage on the disk: whoever needs predictions takes those that are there and makes those that are missing.

Several trials, on this node or on others, may want the same at once. Each claims a volume, looks again at what is missing
of it, and predicts only that; what another is making it leaves for later, and takes it when it is there.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import torch

from cddpm.cluster import claimed
from cddpm.config import ExperimentConfig
from cddpm.data.store import SliceStore
from cddpm.reconstruct.cohort import predicted
from cddpm.reconstruct.part import Step, claim, parts_of, write_part
from cddpm.reconstruct.predict import Networks
from cddpm.reconstruct.reconstruction import (
    MADE_FROM,
    View,
    cache_path,
    finish,
    found_prediction,
    prediction_identity,
    prediction_path,
    read_view,
)
from cddpm.training import stages
from cddpm.training.loop import Hooks, Interrupted
from cddpm.training.ranks import Ranks

STAGE = "reconstruction"
WAIT_SECONDS = 1.0
"""Between looks at volumes that another process is predicting."""


@dataclass(frozen=True)
class Wanted:
    """What is wanted of one model on one slice store, and the folder in which all who want any of it gather it."""

    store: SliceStore
    volumes: tuple[int, ...]
    view: View
    """What is wanted of them."""
    name: str
    """Fingerprint of the predictions, of whatever volumes, levels and seeds."""
    made_from: dict[str, Any]
    place: stages.Place
    networks: Callable[[torch.device], Networks]
    """Loads what predicts; called only if something is missing."""

    @property
    def parts(self) -> Path:
        """The folder of the predictions on this node."""
        return prediction_path(self.place.artifacts, self.name)

    def id(self, v: int) -> str:
        """Name of a volume."""
        return self.store.volumes[v].id

    def missing(self, volumes: Sequence[int]) -> list[int]:
        """Those of ``volumes`` of which something is not predicted."""
        return [v for v in volumes if self.view.missing(self.parts, self.id(v))]

    @property
    def reconstruction(self) -> Path:
        """Where the reconstruction lies, or will lie."""
        return cache_path(self.place.artifacts, self.view.identity(self.name, self.made_from)[0])

    def finish(self) -> Path:
        """Make the reconstruction of parts that are all written."""
        name, made_from = self.view.identity(self.name, self.made_from)
        return self.place.shelf.put(
            finish(self.reconstruction, self.view.volumes, name, made_from, self.parts, self.view)
        )

    def gather(self) -> None:
        """Fetch the parts of the view that others have put into the storage."""
        self.place.shelf.gather(self.parts, self.view.asks)

    def keep(self) -> None:
        """Have in the storage what of the view is on this node, and what it was made from: it may have been freed there."""
        shelf, parts = self.place.shelf, self.parts
        if shelf.storage:
            there = [parts_of(parts, volume) for volume in self.view.volumes]
            files = [own[step] for own in there for step in self.view.steps if step in own]
            known = set(shelf.names(parts))
            shelf.share(f for f in [parts / MADE_FROM, *files] if f.relative_to(parts).as_posix() not in known)

    def claim(self, volume: str) -> AbstractContextManager[bool]:
        """Whether a volume is this process's to predict until the block ends."""
        shelf = self.place.shelf
        return claimed(f"{shelf.place(self.parts)}/{volume}") if shelf.storage else claim(self.parts, volume)


def reconstruct(
    config: ExperimentConfig, place: stages.Place, path: Path, volumes: Sequence[int], ranks: Ranks, hooks: Hooks
) -> Path:
    """The reconstruction of ``volumes`` by the checkpoint ``path``: what is missing of it is predicted by all ranks together.

    Raises ``ArtifactError`` if ``config`` asks for a guide that was not trained, ``Interrupted`` when asked to stop.
    """
    wanted = wanted_of(config, place, path, volumes)
    missing = bool(wanted.missing(wanted.volumes)) if ranks.first else False  # for the record; ``complete`` looks again
    with stages.watched(STAGE, wanted.reconstruction.name, config, ranks, hooks) if missing else nullcontext():
        complete(wanted, ranks, hooks)
    if ranks.first:
        wanted.finish()
    ranks.barrier()
    return wanted.reconstruction


def fetched(place: stages.Place, name: str) -> Path:
    """The finished reconstruction with the fingerprint ``name``, with all its parts, on this node.

    Raises ``ArtifactError`` if it does not exist, or is damaged.
    """
    path = place.shelf.need(cache_path(place.artifacts, name))
    view, parts = read_view(path)
    place.shelf.gather(parts, view.asks)
    return path


def unpredicted(config: ExperimentConfig, place: stages.Place, path: Path, volumes: Sequence[int]) -> list[int]:
    """Those of ``volumes`` of which the checkpoint ``path`` has not predicted all that ``config`` asks for, or it is damaged."""
    wanted = wanted_of(config, place, path, volumes)
    wanted.gather()
    wanted.view.without_damaged(wanted.parts)
    return wanted.missing(volumes)


def wanted_of(config: ExperimentConfig, place: stages.Place, path: Path, volumes: Sequence[int]) -> Wanted:
    """What ``config`` asks of ``volumes`` and the checkpoint ``path``; nothing is predicted yet. Raises as ``reconstruct``."""
    store = SliceStore.open(place.store, verify=False)  # the driver has
    guide = stages.guide_path(config, place, path)
    name, made_from = prediction_identity(
        path.name,
        store.fingerprint,
        config.reconstruction,
        config.diffusion.noise,
        config.seed,
        config.diffusion.patch,
        guide.name if guide is not None else None,
    )
    view = View.of([store.volumes[v].id for v in volumes], config.reconstruction)
    return Wanted(
        store,
        tuple(volumes),
        view,
        name,
        made_from,
        place,
        lambda device: Networks(config, stages.load_model(path, device)[0], stages.load_guide(guide, device), device),
    )


def complete(wanted: Wanted, ranks: Ranks, hooks: Hooks) -> None:
    """Predict all that is missing or damaged of ``wanted``; all ranks share the work and come back together.

    Raises ``Interrupted`` when asked to stop; what was predicted until then stays.
    """
    if ranks.first:
        wanted.gather()
        found_prediction(wanted.parts, wanted.made_from)
        wanted.view.without_damaged(wanted.parts)
        wanted.keep()
    volumes, busy = wanted.volumes, False
    while missing := ranks.share(wanted.missing(volumes) if ranks.first else None):
        if ranks.share(hooks.stop() if ranks.first else None):
            raise Interrupted(f"{STAGE}: stopped with {len(missing)} of {len(wanted.volumes)} volumes to predict")
        if busy:  # short waits of all: a long one of the first rank alone would let the others' broadcast time out
            time.sleep(WAIT_SECONDS)
        predict(wanted, missing[ranks.rank :: ranks.world], ranks, hooks)
        ranks.barrier()
        if ranks.first:
            wanted.gather()
        volumes, busy = missing, True


def predict(wanted: Wanted, volumes: Sequence[int], ranks: Ranks, hooks: Hooks) -> None:
    """Predict what is missing of ``volumes``, but for those that another process is predicting.

    A volume's claim ends when its last part is written. Ends early when asked to stop.
    """
    with ExitStack() as stack:
        claims: dict[str, ExitStack] = {}
        asked = _asked(wanted, volumes, claims, stack, hooks)
        first = next(asked, None)
        if first is None:
            return
        found = predicted(wanted.networks(ranks.device), wanted.store, chain([first], asked))
        for number, (name, arrays) in enumerate(found):
            wanted.place.shelf.share(write_part(wanted.parts, name, arrays))
            claims.pop(name).close()
            if ranks.first:
                hooks.progress(STAGE, number + 1, len(volumes), 0.0)


def _asked(
    wanted: Wanted, volumes: Sequence[int], claims: dict[str, ExitStack], stack: ExitStack, hooks: Hooks
) -> Iterator[tuple[int, tuple[Step, ...]]]:
    """Each volume that nobody else has, with what is missing of it; its claim is kept in ``claims`` until it is written."""
    for v in volumes:
        if hooks.stop():
            return
        name, parts = wanted.id(v), wanted.parts
        own = stack.enter_context(ExitStack())
        if own.enter_context(wanted.claim(name)) and (steps := wanted.view.missing(parts, name)):
            claims[name] = own
            yield v, steps
        else:
            own.close()
