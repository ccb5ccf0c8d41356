"""The reconstruction stage: whoever needs predictions takes those that are there and makes those that are missing.

Several trials, on this node or on others, may want the same at once. Each claims a volume, looks again at what is missing
of it, and predicts only that; what another is making it leaves for later, and takes it when it is there.
"""

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from cddpm.config import ExperimentConfig
from cddpm.data.store import SliceStore
from cddpm.models.cddpm import ConditionedDiffusion
from cddpm.reconstruct.cache import View
from cddpm.reconstruct.part import claim, write_part
from cddpm.reconstruct.predict import Request, predict_volumes
from cddpm.training.loop import Hooks, Interrupted
from cddpm.training.preview import manner
from cddpm.training.ranks import Ranks

logger = logging.getLogger(__name__)

STAGE = "reconstruction"
WAIT_SECONDS = 1.0
"""Between looks at volumes that another process is predicting."""

Networks = Callable[[], tuple[ConditionedDiffusion, ConditionedDiffusion | None]]
"""Loads model and guide; called only if something is missing."""


@dataclass(frozen=True)
class Cohort:
    """Volumes of a slice store, the levels and seeds that are wanted of them, and the folder of their parts."""

    config: ExperimentConfig
    store: SliceStore
    volumes: tuple[int, ...]
    parts: Path

    @property
    def view(self) -> View:
        """What is wanted."""
        return View.of([self.id(v) for v in self.volumes], self.config.reconstruction)

    def id(self, v: int) -> str:
        """Name of a volume."""
        return self.store.volumes[v].id

    def missing(self, volumes: Sequence[int]) -> list[int]:
        """Those of ``volumes`` of which something is not predicted."""
        return [v for v in volumes if self.view.missing(self.parts, self.id(v))]


def complete(cohort: Cohort, networks: Networks, ranks: Ranks, hooks: Hooks) -> None:
    """Predict all that is missing or damaged of ``cohort``; all ranks share the work and come back together.

    Raises ``Interrupted`` when asked to stop; what was predicted until then stays.
    """
    if ranks.first:
        cohort.view.without_damaged(cohort.parts)
    volumes, busy = cohort.volumes, False
    while missing := ranks.share(cohort.missing(volumes) if ranks.first else None):
        if ranks.share(hooks.stop() if ranks.first else None):
            raise Interrupted(f"{STAGE}: stopped with {len(missing)} of {len(cohort.volumes)} volumes to predict")
        if busy:  # short waits of all: a long one of the first rank alone would let the others' broadcast time out
            time.sleep(WAIT_SECONDS)
        predict(cohort, missing[ranks.rank :: ranks.world], networks, ranks, hooks)
        ranks.barrier()
        volumes, busy = missing, True


def predict(cohort: Cohort, volumes: Sequence[int], networks: Networks, ranks: Ranks, hooks: Hooks) -> None:
    """Predict what is missing of ``volumes``, but for those that another process is predicting.

    A volume's claim ends when its last part is written. Ends early when asked to stop.
    """
    with ExitStack() as stack:
        claims: dict[str, ExitStack] = {}
        requests = _requests(cohort, volumes, claims, stack, hooks)
        first = next(requests, None)
        if first is None:
            return
        model, guide = networks()
        settings, device = cohort.config.reconstruction, ranks.device
        found = predict_volumes(model, _chain(first, requests), manner(cohort.config, settings, device), guide)
        for number, (request, arrays) in enumerate(found):
            write_part(cohort.parts, request.key, arrays)
            claims.pop(request.key).close()
            if ranks.first:
                hooks.progress(STAGE, number + 1, len(volumes), 0.0)


def _chain(first: Request, rest: Iterator[Request]) -> Iterator[Request]:
    yield first
    yield from rest


def _requests(
    cohort: Cohort, volumes: Sequence[int], claims: dict[str, ExitStack], stack: ExitStack, hooks: Hooks
) -> Iterator[Request]:
    """What is missing of each volume that nobody else has; its claim is kept in ``claims`` until it is written."""
    for v in volumes:
        if hooks.stop():
            return
        name = cohort.id(v)
        own = stack.enter_context(ExitStack())
        if own.enter_context(claim(cohort.parts, name)) and (wanted := cohort.view.missing(cohort.parts, name)):
            claims[name] = own
            yield Request(name, cohort.store.image(v), wanted)
        else:
            own.close()
