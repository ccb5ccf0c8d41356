"""The one way from scans to scores: a cohort, what a model makes of it, and what that is worth.

``Cohort`` -> ``reconstruct`` (or ``Reconstruction.open`` of what is kept) -> ``scorer`` -> scores. Previews of a training,
searches, evaluations, reports and predictions all go it; a single scan is a cohort of one.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

from cddpm.config import DataConfig, ReconstructionConfig, ScoringConfig
from cddpm.data.slices import SliceStore
from cddpm.reconstruct.part import differences, rounded
from cddpm.reconstruct.reconstruction import Reconstruction, View
from cddpm.scoring.case import Reconstructions, VolumeStore
from cddpm.scoring.ensemble import levels_of
from cddpm.scoring.score import Scorer

if TYPE_CHECKING:
    from cddpm.reconstruct.predict import Networks  # PyTorch: who only scores needs none


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
        from cddpm.reconstruct.predict import Request

        asked = networks.config.reconstruction
        if scoring is not None:
            asked = asked.model_copy(update={"noise_levels": levels_of(scoring, asked.noise_levels)})
        view, records = self.view(asked), [(self.store.volumes[v].id, self.store.image(v)) for v in self.volumes]
        requests = (Request(name, image, view.steps) for name, image in records)
        predicted = networks.predict(requests, unconditional=scoring is None or scoring.guidance_scale != 1)
        kept = ((r.key, differences(arrays) if exact else rounded(r.key, arrays)) for r, arrays in predicted)
        return Reconstruction.of(kept, view)

    def scorer(self, reconstruction: Reconstructions | None, **settings: Any) -> Scorer:
        """The scorer of these volumes; ``settings`` and errors as those of ``Scorer``."""
        return Scorer(self.store, reconstruction, self.unhealthy, self.healthy, **settings)
