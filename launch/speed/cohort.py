"""A drawn cohort for measurements of speed: brains, lesions and reconstructions of any size in a second.

They look like what scoring meets (a third of the voxels is brain, residuals are noise around lesions that are half gone),
but nothing was learned: no number about quality means anything. Letters: S slices, H and W their size.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from cddpm import artifact
from cddpm.config import ExperimentConfig, parse
from cddpm.data.geometry import Geometry
from cddpm.data.slices import KIND, SliceStore, write_store
from cddpm.reconstruct import part, reconstruction
from cddpm.scoring.score import Scorer

DATASET, HEALTHY = "Brats21", "IXI"
LEVELS = (250, 500, 750)
FULL = (50, 96, 96)
"""(S, H, W) of the published working grid."""
Head = NDArray[np.bool_]
Field = NDArray[np.float32]


@dataclass(frozen=True)
class Cohort:
    """``volumes`` unhealthy volumes with their reconstructions, on disk below ``folder``."""

    folder: Path
    volumes: int

    @property
    def store(self) -> Path:
        """The slice store."""
        return self.folder / "store" / "drawn"

    @property
    def reconstructions(self) -> Path:
        """The reconstruction cache."""
        return reconstruction.cache_path(self.folder, "drawn")

    def scorer(self, volumes: int, threads: int = 1) -> Scorer:
        """A scorer of the first ``volumes``."""
        store = SliceStore.open(self.store, verify=False)
        opened = reconstruction.Reconstruction.open(self.reconstructions)
        return Scorer(store, opened, {DATASET: store.cohort(DATASET, "val")[:volumes]}, threads=threads)


def experiment(shape: tuple[int, int, int], trials: int = 1, base_width: int = 128) -> ExperimentConfig:
    """An experiment on such a cohort, whose search varies what lies before the default post-processing.

    No point of it finds its residual, median or histogram done: the dearest kind of scoring trial. ``base_width`` is that
    of the U-Net, for the plain way.
    """
    space = {
        "scoring.noise_levels": {"choice": [[250], [500], [750], [250, 500], [500, 750], [250, 500, 750]]},
        "scoring.guidance_scale": {"float": [0.0, 2.0]},
        "scoring.residual": {"choice": ["l1", "l2", "positive"]},
    }
    slices, height, width = shape
    raw = {
        "name": "speed",
        "data": {"unhealthy": [DATASET], "volume_shape": [height, width, slices], "rescale_factor": 1},
        "model": {"base_width": base_width},
        "diffusion": {"condition_dropout": 0.1},
        "reconstruction": {"noise_levels": list(LEVELS)},
        "search": {"scoring": {"trials": trials, "space": space}},
    }
    return parse(raw, "speed")


def draw(folder: Path, volumes: int, shape: tuple[int, int, int] = FULL) -> Cohort:
    """Write a cohort below ``folder``, 8 MB a volume of full size. Raises ``StorageError`` for a full disk."""
    cohort, head, smooth = Cohort(folder, volumes), _head(shape), _smooth(shape)
    made: list[dict[str, Any]] = [
        {"dataset": DATASET, "split": "val", "fold": None, "volume": v} for v in range(volumes)
    ]
    made += [
        {"dataset": HEALTHY, "split": s, "fold": None, "volume": v} for v in range(volumes) for s in ("train", "val")
    ]

    def fill(directory: Path) -> None:
        write_store(directory, _volumes(volumes, head, smooth), made)

    artifact.create(cohort.store, KIND, "drawn", {}, fill)
    _reconstruct(cohort, head, smooth)
    return cohort


def _reconstruct(cohort: Cohort, head: Head, smooth: Field) -> None:
    store, parts = SliceStore.open(cohort.store, verify=False), reconstruction.parts_directory(cohort.reconstructions)
    for record in store.volumes:
        image, lesion = store.image(record.index), store.segmentation(record.index)
        part.write_part(parts, record.id, _predicted(image, lesion, head, smooth, record.index))
    ids = [record.id for record in store.volumes]
    reconstruction.finish(cohort.reconstructions, ids, "drawn", {"volumes": ids})


def _head(shape: tuple[int, int, int]) -> Head:
    """An ellipsoid of a third of the volume, as a brain takes of the published crop."""
    z, y, x = np.meshgrid(*[np.linspace(-1, 1, size) for size in shape], indexing="ij")
    return np.asarray((z / 0.9) ** 2 + (y / 0.9) ** 2 + (x / 0.75) ** 2 < 1)


def _smooth(shape: tuple[int, int, int]) -> Field:
    """A field of blobs of unit variance; every volume sees it shifted."""
    field = ndimage.gaussian_filter(np.random.default_rng(0).standard_normal(shape, np.float32), 3, mode="wrap")
    return np.asarray(field / field.std())


def _shifted(field: Field, random: np.random.Generator) -> Field:
    return np.roll(field, random.integers(0, field.shape), axis=(0, 1, 2))


def _volumes(count: int, head: Head, smooth: Field) -> Iterator[dict[str, Any]]:
    slices, height, width = head.shape
    size = (height, width, slices)
    affine = tuple(tuple(float(v) for v in row) for row in np.eye(4))
    geometry = Geometry(size, affine, "LPS", "LPS", (1.0,) * 3, (1.0,) * 3, size, size, 1.0, size)
    for index in range(count):
        random = np.random.default_rng(index)
        lesion = _lesion(head, random)
        noise = random.standard_normal(head.shape, np.float32)
        image = 0.45 + 0.12 * _shifted(smooth, random) + 0.02 * noise + 0.25 * lesion
        yield {
            "image": np.where(head, image, 0).clip(0, 1).astype(np.float16),
            "mask": head.astype(np.uint8),
            "segmentation": lesion.astype(np.uint8),
            "dataset": DATASET,
            "subject": f"{index:03d}",
            "modality": "t2",
            "label": 1,
            "age": None,
            "geometry": json.dumps(geometry.to_dict()),
            "digest": f"{index:064d}",
        }


def _lesion(head: Head, random: np.random.Generator) -> Head:
    """A ball of about one percent of the brain."""
    inside = np.argwhere(ndimage.binary_erosion(head, iterations=max(1, min(head.shape) // 8)))
    centre, radius = random.choice(inside), float(random.uniform(0.1, 0.16)) * head.size ** (1 / 3)
    squared = ((np.indices(head.shape) - centre[:, None, None, None]) ** 2).sum(axis=0)
    return np.asarray(squared <= radius**2) & head


def _predicted(
    image: NDArray[np.float16], segmentation: NDArray[np.uint8], head: Head, smooth: Field, index: int
) -> dict[part.Key, Field]:
    """Branches c and u per level: the more noise, the less of the lesion and of the detail is left."""
    random, arrays = np.random.default_rng((1, index)), {}
    for number, level in enumerate(LEVELS, start=1):
        error = 0.02 * number * _shifted(smooth, random) + 0.02 * random.standard_normal(image.shape, np.float32)
        arrays["c", level, 0] = image.astype(np.float32) - np.float32(0.06 * number) * segmentation + error * head
        arrays["u", level, 0] = arrays["c", level, 0] + np.float32(0.01 * number) * _shifted(smooth, random) * head
    return arrays
