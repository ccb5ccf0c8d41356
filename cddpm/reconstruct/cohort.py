"""The one way from scans to scores: a cohort, what a model makes of it, and what that is worth.

``Cohort`` -> ``reconstruct`` (or ``Reconstruction.open`` of what is kept) -> ``scorer`` -> scores. Previews of a training,
searches, evaluations, reports and predictions all go it; a single scan is a cohort of one.
"""

from collections.abc import Iterator, Mapping, Sequence
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
    from cddpm.reconstruct.predict import Networks, Request  # PyTorch: who only scores needs none

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
        predicted = iter(networks.predict(self._requests(view.steps), unconditional))
        found = (self._joined(v, predicted) for v in self.volumes)
        kept = ((name, differences(arrays) if exact else rounded(name, arrays)) for name, arrays in found)
        return Reconstruction.of(kept, view)

    def tiling(self, v: int) -> Tiling | None:
        """How a volume that reaches beyond the model's window is looked at; None for one that does not."""
        geometry = getattr(self.store.volumes[v], "geometry", None)
        if geometry is None or geometry.beyond is None:
            return None
        x, y, z = geometry.window
        return Tiling.of(self.store.mask(v) > 0, (z, x, y))

    def _requests(self, steps: tuple[Step, ...]) -> "Iterator[Request]":
        """One per volume, and a second one for what lies beyond the window: the first is then as without it."""
        from cddpm.reconstruct.predict import Request

        for v in self.volumes:
            name, image, tiling = self.store.volumes[v].id, self.store.image(v), self.tiling(v)
            yield Request(name, image if tiling is None else tiling.cut(image, tiling.own), steps)
            if tiling is not None and tiling.others:
                yield Request(name, tiling.cut(image, tiling.others), steps, tiling.names(tiling.others))

    def _joined(self, v: int, predicted: "Iterator[tuple[Request, Arrays]]") -> "tuple[str, Arrays]":
        """The name of a volume and its predictions, of one request or two."""
        (request, arrays), tiling = next(predicted), self.tiling(v)
        if tiling is None:
            return request.key, arrays
        none = np.empty((0, *tiling.size), np.float32)
        others = next(predicted)[1] if tiling.others else dict.fromkeys(arrays, none)
        return request.key, {key: tiling.joined(array, others[key]) for key, array in arrays.items()}

    def scorer(self, reconstruction: Reconstructions | None, **settings: Any) -> Scorer:
        """The scorer of these volumes; ``settings`` and errors as those of ``Scorer``."""
        return Scorer(self.store, reconstruction, self.unhealthy, self.healthy, **settings)
