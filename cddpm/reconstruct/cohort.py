"""The one way from scans to scores: a cohort, what a model makes of it, and what that is worth.

``Cohort`` -> ``reconstruct`` (or ``Reconstruction.open`` of what is kept) -> ``scorer`` -> scores. Previews of a training,
searches, evaluations, reports and predictions all go it; a single scan is a cohort of one.
"""

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray

from cddpm.config import DataConfig, ReconstructionConfig, ScoringConfig
from cddpm.data.slices import SliceStore
from cddpm.reconstruct.part import Key, Step, differences, rounded
from cddpm.reconstruct.reconstruction import Reconstruction, View
from cddpm.reconstruct.tiling import Tiling
from cddpm.scoring.case import Reconstructions, VolumeStore
from cddpm.scoring.ensemble import levels_of
from cddpm.scoring.score import Scorer

if TYPE_CHECKING:
    from cddpm.reconstruct.predict import Networks, Request

Arrays = dict[Key, NDArray[np.float32]]


@dataclass(frozen=True)
class Cohort:
    """Volumes of a store, by index: those in which anomalies are looked for, by data set, and healthy ones."""

    store: VolumeStore
    unhealthy: Mapping[str, Sequence[int]] = field(default_factory=dict)
    healthy: Sequence[int] = ()

    @classmethod
    def of(cls, store: SliceStore, data: DataConfig, split: str) -> Self:
        """Of ``split`` ('val' or 'test') in the fold of ``data``. Raises ``DataError`` if a data set has no such volume."""
        unhealthy = {name: store.cohort(name, split, data.fold) for name in data.unhealthy}
        return cls(store, unhealthy, store.cohort(data.healthy, split, data.fold))

    @property
    def volumes(self) -> list[int]:
        """All of them, healthy ones last."""
        return [v for group in (*self.unhealthy.values(), self.healthy) for v in group]

    def view(self, config: ReconstructionConfig) -> View:
        """All that ``config`` asks of these volumes."""
        return View.of([self.store.volumes[v].id for v in self.volumes], config)

    def reconstruct(
        self, networks: "Networks", scoring: ScoringConfig | None = None, exact: bool = False
    ) -> Reconstruction:
        """Predict all volumes, in memory: what ``scoring`` reads, or all that the experiment asks for.

        A level is the same bit for bit without the others. Rounded to float16, as it is kept, unless ``exact``. Raises
        ``CddpmError`` for values that float16 cannot hold.
        """
        asked = networks.config.reconstruction
        if scoring is not None:
            asked = asked.model_copy(update={"noise_levels": levels_of(scoring, asked.noise_levels)})
        view = self.view(asked)
        unconditional = scoring is None or scoring.guidance_scale != 1
        found = predicted(networks, self.store, ((v, view.steps) for v in self.volumes), unconditional)
        kept = ((name, differences(arrays) if exact else rounded(name, arrays)) for name, arrays in found)
        return Reconstruction.of(kept, view)

    def scorer(self, reconstruction: Reconstructions | None, **settings: Any) -> Scorer:
        """The scorer of these volumes; ``settings`` and errors as those of ``Scorer``."""
        return Scorer(self.store, reconstruction, self.unhealthy, self.healthy, **settings)


def tiling_of(store: VolumeStore, v: int) -> Tiling | None:
    """How a volume that reaches beyond the model's window is looked at; None for one that does not."""
    geometry = getattr(store.volumes[v], "geometry", None)
    if geometry is None or geometry.beyond is None:
        return None
    x, y, z = geometry.window
    return Tiling.of(store.mask(v) > 0, (z, x, y))


def slices_of(store: VolumeStore, v: int) -> NDArray[np.float16]:
    """All that a network is shown of a volume, of the model's size: (N, h, w)."""
    image, tiling = store.image(v), tiling_of(store, v)
    return image if tiling is None else tiling.cut(image, (*tiling.own, *tiling.others))


def predicted(
    networks: "Networks", store: VolumeStore, asked: Iterable[tuple[int, tuple[Step, ...]]], unconditional: bool = True
) -> Iterator[tuple[str, Arrays]]:
    """The name of each volume that is ``asked`` for and its predictions, (S, H, W) float32 by branch, level and seed.

    ``asked``, volumes with the steps that are wanted of them, is read as there is room. What lies beyond the model's window is
    predicted beside it: the window's own slices are then as without it.
    """
    from cddpm.reconstruct.predict import Request  # PyTorch: who only scores needs none

    waiting = deque[Tiling | None]()

    def requests() -> "Iterator[Request]":
        for v, steps in asked:
            name, image, tiling = store.volumes[v].id, store.image(v), tiling_of(store, v)
            waiting.append(tiling)
            yield Request(name, image if tiling is None else tiling.cut(image, tiling.own), steps)
            if tiling is not None and tiling.others:
                yield Request(name, tiling.cut(image, tiling.others), steps, tiling.names(tiling.others))

    coming = iter(networks.predict(requests(), unconditional))
    for request, arrays in coming:
        tiling = waiting.popleft()
        if tiling is not None:
            none = dict.fromkeys(arrays, np.empty((0, *tiling.size), np.float32))
            others = next(coming)[1] if tiling.others else none
            arrays = {key: tiling.joined(array, others[key]) for key, array in arrays.items()}
        yield request.key, arrays
