"""Rows about scans: from files in the published layout to the slices that the networks see."""

import resource
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from cddpm.config import DataConfig, PhantomConfig
from cddpm.data.check import check
from cddpm.data.layout import read_layout, root_of
from cddpm.data.phantom.folder import make_phantom
from cddpm.data.store import build_store
from speed.row import Row
from speed.timing import seconds, spread_of

GB = 1e9


PUBLISHED = DataConfig(
    phantom=PhantomConfig(
        size="full", healthy_train=1, healthy_val=1, healthy_test=1, unhealthy_val=1, unhealthy_test=1
    ),
    unhealthy=("Brats21",),
)
"""Scans of the published size and spacing."""
HALF = {"voxel_size_mm": 2.0, "volume_shape": (96, 96, 50)}


@dataclass(frozen=True)
class Sizes:
    """How much is measured."""

    data: DataConfig = PUBLISHED
    repeats: int = 3


QUICK = Sizes(
    PUBLISHED.model_copy(update={**HALF, "phantom": PUBLISHED.phantom.model_copy(update={"size": "small"})}), 1
)


def rows(folder: Path, sizes: Sizes) -> Iterator[Row]:
    """A few scans of the phantom, looked at and made into a slice store by one process, again and again."""
    make_phantom(folder / "data", sizes.data.phantom, (sizes.data.modality,), parallel=1)
    data = sizes.data.model_copy(update={"data_dir": str(folder / "data")})
    root = root_of(data)
    found = read_layout(data, root)
    count = len({row.image for row in found.rows})
    checked, spread = spread_of([seconds(partial(check, data, root, map)) for _ in range(sizes.repeats)])
    shape = "x".join(map(str, data.volume_shape))
    told = f"{count} scans, cut to {shape}, one process"
    yield Row("a scan looked at (data check)", "s", checked / count, detail=told, spread=spread)
    before = _peak()
    times = [
        seconds(partial(build_store, data, root, found.rows, folder / f"artifacts-{n}", map))
        for n in range(sizes.repeats)
    ]
    made, spread = spread_of(times)
    yield Row("a scan made into slices", "s", made / count, 60, "at most", told, spread)
    after = _peak()
    yield Row(
        "memory of the process that makes them", "GB", after, 2, "at most", f"{after - before:.2f} GB more than before"
    )


def _peak() -> float:
    """GB that this process has had at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / GB
