"""The reconstruction stage on the disk: whoever needs predictions takes those that are there and makes those that are missing.

Several trials, on this node or on others, may want the same at once. Each claims a volume, looks again at what is missing
of it, and predicts only that; what another is making it leaves for later, and takes it when it is there.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import torch

from cddpm.data.store import SliceStore
from cddpm.reconstruct.part import claim, write_part
from cddpm.reconstruct.predict import Networks, Request
from cddpm.reconstruct.reconstruction import View, cache_path, finish, found_prediction
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
    parts: Path
    networks: Callable[[torch.device], Networks]
    """Loads what predicts; called only if something is missing."""

    def id(self, v: int) -> str:
        """Name of a volume."""
        return self.store.volumes[v].id

    def missing(self, volumes: Sequence[int]) -> list[int]:
        """Those of ``volumes`` of which something is not predicted."""
        return [v for v in volumes if self.view.missing(self.parts, self.id(v))]

    def reconstruction(self, artifacts: Path) -> Path:
        """Where the reconstruction lies, or will lie, below ``artifacts``."""
        return cache_path(artifacts, self.view.identity(self.name, self.made_from)[0])

    def finish(self, artifacts: Path) -> Path:
        """Make the reconstruction of parts that are all written."""
        name, made_from = self.view.identity(self.name, self.made_from)
        return finish(cache_path(artifacts, name), self.view.volumes, name, made_from, self.parts, self.view)


def complete(wanted: Wanted, ranks: Ranks, hooks: Hooks) -> None:
    """Predict all that is missing or damaged of ``wanted``; all ranks share the work and come back together.

    Raises ``Interrupted`` when asked to stop; what was predicted until then stays.
    """
    if ranks.first:
        found_prediction(wanted.parts, wanted.made_from)
        wanted.view.without_damaged(wanted.parts)
    volumes, busy = wanted.volumes, False
    while missing := ranks.share(wanted.missing(volumes) if ranks.first else None):
        if ranks.share(hooks.stop() if ranks.first else None):
            raise Interrupted(f"{STAGE}: stopped with {len(missing)} of {len(wanted.volumes)} volumes to predict")
        if busy:  # short waits of all: a long one of the first rank alone would let the others' broadcast time out
            time.sleep(WAIT_SECONDS)
        predict(wanted, missing[ranks.rank :: ranks.world], ranks, hooks)
        ranks.barrier()
        volumes, busy = missing, True


def predict(wanted: Wanted, volumes: Sequence[int], ranks: Ranks, hooks: Hooks) -> None:
    """Predict what is missing of ``volumes``, but for those that another process is predicting.

    A volume's claim ends when its last part is written. Ends early when asked to stop.
    """
    with ExitStack() as stack:
        claims: dict[str, ExitStack] = {}
        requests = _requests(wanted, volumes, claims, stack, hooks)
        first = next(requests, None)
        if first is None:
            return
        found = wanted.networks(ranks.device).predict(chain([first], requests))
        for number, (request, arrays) in enumerate(found):
            write_part(wanted.parts, request.key, arrays)
            claims.pop(request.key).close()
            if ranks.first:
                hooks.progress(STAGE, number + 1, len(volumes), 0.0)


def _requests(
    wanted: Wanted, volumes: Sequence[int], claims: dict[str, ExitStack], stack: ExitStack, hooks: Hooks
) -> Iterator[Request]:
    """What is missing of each volume that nobody else has; its claim is kept in ``claims`` until it is written."""
    for v in volumes:
        if hooks.stop():
            return
        name, parts = wanted.id(v), wanted.parts
        own = stack.enter_context(ExitStack())
        if own.enter_context(claim(parts, name)) and (steps := wanted.view.missing(parts, name)):
            claims[name] = own
            yield Request(name, wanted.store.image(v), steps)
        else:
            own.close()
