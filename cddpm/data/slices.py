"""The slice store: what the networks see, made once, read by every worker of a node from one page cache.

Three Arrow IPC files, uncompressed and memory-mapped: ``slices.arrow`` (one record batch per volume, one row per axial
slice: image float16, mask and segmentation uint8), ``volumes.arrow`` (one row per volume) and ``cohorts.arrow`` (which volume
belongs to which split of which fold; all folds are here). Its name is the fingerprint of the input files' contents and
of the settings that mattered.

A volume may reach beyond the model's window (``Geometry.beyond``). Its slices are then those of the window, which is what a
training sees, and a fourth file, ``beyond.arrow``, holds all of it (one record batch per such volume, one row per voxel).

Letters: B slices of a batch, S slices of a volume, H and W rows and columns of a slice = axes 0 and 1 of the volume.
"""

import json
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cddpm import artifact
from cddpm.data.geometry import Geometry
from cddpm.errors import ArtifactError, DataError
from cddpm.shelf import Kept

KIND = "slice store"
SLICES, VOLUMES, COHORTS, BEYOND = "slices.arrow", "volumes.arrow", "cohorts.arrow", "beyond.arrow"


@dataclass(frozen=True)
class VolumeRecord:
    """One volume of the store. The slices of its window are the global rows ``first_slice`` to ``first_slice + slices - 1``."""

    index: int
    dataset: str
    subject: str
    modality: str
    label: int
    age: float | None
    geometry: Geometry
    first_slice: int
    slices: int
    digest: str
    """SHA-256 of the image file."""
    brain_unseen_ml: float | None = None
    """Volume of the brain mask beyond the model's window (``Geometry``); None where it was not counted."""
    lesion_unseen_ml: float | None = None
    """Of the lesions."""

    @property
    def id(self) -> str:
        """Name of the volume, unique in a store: noise is seeded and tables are keyed by it."""
        return f"{self.dataset}/{self.subject}"


class SliceStore:
    """Read access to a slice store. Nothing is copied until ``images`` or ``masks`` gather a batch.

    Pickles as its path: a worker maps the same pages.
    """

    def __init__(self, path: Path) -> None:
        manifest = artifact.read_manifest(path, KIND)
        self.path = path
        self.fingerprint: str = manifest.fingerprint
        rows = _table(path / VOLUMES)
        self._ignored = [np.array(row.pop("ignored") or (), np.int64) for row in rows]
        self.volumes: list[VolumeRecord] = [_record(row) for row in rows]
        self._cohorts = _table(path / COHORTS)
        self._slices = _mapped(path / SLICES)
        self._shape = _slice_shape(path, self._slices.schema)
        self._batches: list[pa.RecordBatch | None] = [None] * self._slices.num_record_batches
        if len(self._batches) != len(self.volumes):
            raise ArtifactError(
                f"{path / SLICES}: {len(self._batches)} volumes, but {VOLUMES} names {len(self.volumes)}"
            )
        self._first = np.array([v.first_slice for v in self.volumes], dtype=np.int64)
        reaching = [v.index for v in self.volumes if v.geometry.beyond]
        self._beyond = dict(zip(reaching, _whole_ones(path / BEYOND, len(reaching)), strict=True))

    @classmethod
    def open(cls, path: Path, verify: bool = True) -> "SliceStore":
        """Open the store at ``path``; ``verify`` compares the digest of every file first (about 1 s per GB).

        Raises ``ArtifactError`` naming the file that is missing, cut or altered.
        """
        if verify:
            artifact.verify(path, KIND)
        return cls(path)

    def __reduce__(self) -> tuple[Any, ...]:
        return _opened, (Kept.of(self.path),)

    def __len__(self) -> int:
        """Number of slices."""
        return sum(v.slices for v in self.volumes)

    @property
    def slice_shape(self) -> tuple[int, int]:
        """(H, W)."""
        return self._shape

    def cohort(self, dataset: str, split: str, fold: int | None = None) -> list[int]:
        """Volumes of a split, in the order of its table; ``fold`` is ignored by data sets without folds.

        Raises ``DataError`` telling what there is when the cohort is empty.
        """
        found = [
            row["volume"]
            for row in self._cohorts
            if row["dataset"] == dataset and row["split"] == split and row["fold"] in (None, fold)
        ]
        if not found:
            there = sorted({f"{c['dataset']} {c['split']}" + _fold_words(c["fold"]) for c in self._cohorts})
            raise DataError(
                f"{self.path}: no volumes of {dataset} {split}{_fold_words(fold)}; there are {', '.join(there)}"
            )
        return found

    def image(self, volume: int) -> npt.NDArray[np.float16]:
        """All that is looked at of a volume: (S, H, W), read-only view of the mapped file."""
        return self._all(volume, "image")

    def mask(self, volume: int) -> npt.NDArray[np.uint8]:
        """Brain mask (S, H, W), read-only view of the mapped file."""
        return self._all(volume, "mask")

    def segmentation(self, volume: int) -> npt.NDArray[np.uint8]:
        """Segmented anomaly {0, 1} (S, H, W), read-only view of the mapped file; zeros if there is none."""
        return self._all(volume, "segmentation")

    def ignored(self, volume: int) -> npt.NDArray[np.int64]:
        """Flat indices into (S, H, W) of the voxels that count neither way, for no threshold and in no metric."""
        return self._ignored[volume]

    def slice_ids(self, volumes: Sequence[int], minimum_brain_fraction: float = 0.0) -> npt.NDArray[np.int64]:
        """Global rows of the slices of ``volumes`` in which at least this fraction of all pixels is brain."""
        kept = [np.empty(0, np.int64)]
        for index in volumes:
            fraction = self._batch(index).column("brain_fraction").to_numpy()
            kept.append(self._first[index] + np.flatnonzero(fraction >= minimum_brain_fraction))
        return np.concatenate(kept)

    def images(self, rows: npt.ArrayLike) -> npt.NDArray[np.float32]:
        """Gather slices by global row: (B, H, W). Raises ``IndexError`` for a row that is not there."""
        return self._gather(rows, "image", np.dtype(np.float32))

    def masks(self, rows: npt.ArrayLike) -> npt.NDArray[np.uint8]:
        """Gather brain masks by global row: (B, H, W). Raises ``IndexError`` for a row that is not there."""
        return self._gather(rows, "mask", np.dtype(np.uint8))

    def _gather(self, rows: npt.ArrayLike, column: str, dtype: np.dtype[Any]) -> npt.NDArray[Any]:
        wanted = np.asarray(rows, dtype=np.int64).reshape(-1)
        if wanted.size and not 0 <= wanted.min() <= wanted.max() < len(self):
            raise IndexError(f"slices {wanted.min()} to {wanted.max()}: this store holds 0 to {len(self) - 1}")
        result = np.empty((wanted.size, *self._shape), dtype)
        owners = np.searchsorted(self._first, wanted, side="right") - 1
        for place, (row, owner) in enumerate(zip(wanted, owners, strict=True)):
            result[place] = self._view(int(owner), column)[row - self._first[owner]]
        return result

    def _all(self, volume: int, column: str) -> npt.NDArray[Any]:
        """Of the window and what lies beyond it."""
        if volume not in self._beyond:
            return self._view(volume, column)
        x, y, z = self.volumes[volume].geometry.working_shape
        return self._beyond[volume].column(column).to_numpy(zero_copy_only=True).reshape(z, x, y)

    def _view(self, volume: int, column: str) -> npt.NDArray[Any]:
        values = self._batch(volume).column(column).flatten().to_numpy(zero_copy_only=True)
        return values.reshape(-1, *self._shape)

    def _batch(self, volume: int) -> pa.RecordBatch:
        batch = self._batches[volume]
        if batch is None:
            batch = self._batches[volume] = self._slices.get_batch(volume)
        return batch


@dataclass(frozen=True)
class ScanRecord:
    """What is known of a scan by itself."""

    id: str
    """Seeds its noise."""
    geometry: Geometry


@dataclass(frozen=True)
class OneScan:
    """A store of one volume, held in memory: a scan that nobody has segmented. Arrays are (S, H, W)."""

    record: ScanRecord
    slices: npt.NDArray[np.float16]
    brain: npt.NDArray[np.uint8]

    @property
    def volumes(self) -> list[ScanRecord]:
        """Its one record."""
        return [self.record]

    def image(self, volume: int) -> npt.NDArray[np.float16]:
        """Intensities in [0, 1]."""
        return self.slices

    def mask(self, volume: int) -> npt.NDArray[np.uint8]:
        """Brain mask."""
        return self.brain

    def segmentation(self, volume: int) -> npt.NDArray[np.uint8]:
        """Zeros."""
        return np.zeros_like(self.brain)

    def ignored(self, volume: int) -> npt.NDArray[np.int64]:
        """None."""
        return np.empty(0, np.int64)


def axial(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """(X, Y, Z) as contiguous slices (S, H, W) = (Z, X, Y)."""
    return np.ascontiguousarray(array.transpose(2, 0, 1))


def volumetric(slices: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """The way back from ``axial``."""
    return np.ascontiguousarray(slices.transpose(1, 2, 0))


def write_store(directory: Path, volumes: Iterable[dict[str, Any]], cohorts: list[dict[str, Any]]) -> None:
    """Fill ``directory``; ``volumes`` are consumed one by one, so memory holds one of them.

    Each volume: arrays ``image`` float16, ``mask``, ``segmentation`` uint8 (S, H, W), of all that is looked at, flat indices
    ``ignored`` into them if there are any, and the fields of its record. Raises ``DataError`` without any volume.
    """
    records, first = list[dict[str, Any]](), 0
    with _Batches(directory / SLICES) as slices, _Batches(directory / BEYOND) as beyond:
        for index, volume in enumerate(volumes):
            arrays = {name: volume.pop(name) for name in ("image", "mask", "segmentation")}
            geometry = Geometry.from_dict(json.loads(volume["geometry"]))
            x, y, z = geometry.window
            windows = {name: array[z, x, y] for name, array in arrays.items()} if geometry.beyond else arrays
            slices.write(_batch_of(index, **windows))
            if geometry.beyond:
                beyond.write(pa.RecordBatch.from_pydict({name: array.ravel() for name, array in arrays.items()}))
            count = len(windows["image"])
            records.append({"volume": index, **volume, "first_slice": first, "slices": count})
            first += count
    if not records:
        raise DataError("no volumes to store")
    _write_table(directory / VOLUMES, records, _VOLUME_SCHEMA)
    _write_table(directory / COHORTS, cohorts, _COHORT_SCHEMA)


class _Batches:
    """An Arrow IPC file of record batches, made when the first one comes."""

    def __init__(self, path: Path) -> None:
        self._path, self._open = path, ExitStack()
        self._writer: Any = None

    def __enter__(self) -> Self:
        return self

    def write(self, batch: pa.RecordBatch) -> None:
        """One more."""
        if self._writer is None:
            stream = self._open.enter_context(pa.OSFile(str(self._path), "wb"))
            self._writer = self._open.enter_context(pa.ipc.new_file(stream, batch.schema))
        self._writer.write_batch(batch)

    def __exit__(self, *_: object) -> None:
        self._open.close()


def copy_cohort(
    origin: SliceStore, directory: Path, split: str, change: Callable[[int], npt.NDArray[np.float16]]
) -> None:
    """Fill ``directory`` with the volumes of ``split`` ('test', say), the image of volume v replaced by ``change(v)``.

    Masks, segmentations and names stay; ``change`` returns (S, H, W).
    """
    kept = sorted({row["volume"] for row in origin._cohorts if row["split"] == split})
    new_index = {v: index for index, v in enumerate(kept)}
    cohorts = [{**row, "volume": new_index[row["volume"]]} for row in origin._cohorts if row["split"] == split]
    write_store(directory, (_copied(origin, v, change(v)) for v in kept), cohorts)


def _copied(origin: SliceStore, v: int, image: npt.NDArray[np.float16]) -> dict[str, Any]:
    record = asdict(origin.volumes[v])
    for name in ("index", "first_slice", "slices"):
        del record[name]
    geometry = json.dumps(origin.volumes[v].geometry.to_dict())
    arrays = {"image": image, "mask": origin.mask(v), "segmentation": origin.segmentation(v)}
    arrays["ignored"] = origin.ignored(v)
    return {**arrays, **record, "geometry": geometry}


_VOLUME_SCHEMA = pa.schema(
    [
        ("volume", pa.int32()),
        ("dataset", pa.string()),
        ("subject", pa.string()),
        ("modality", pa.string()),
        ("label", pa.int8()),
        ("age", pa.float64()),
        ("geometry", pa.string()),
        ("first_slice", pa.int64()),
        ("slices", pa.int32()),
        ("digest", pa.string()),
        ("ignored", pa.list_(pa.int32())),
        ("brain_unseen_ml", pa.float64()),
        ("lesion_unseen_ml", pa.float64()),
    ]
)
_COHORT_SCHEMA = pa.schema(
    [("dataset", pa.string()), ("split", pa.string()), ("fold", pa.int32()), ("volume", pa.int32())]
)


def _batch_of(
    index: int, image: npt.NDArray[np.float16], mask: npt.NDArray[np.uint8], segmentation: npt.NDArray[np.uint8]
) -> pa.RecordBatch:
    slices, height, width = image.shape
    arrays = [
        pa.FixedSizeListArray.from_arrays(pa.array(a.reshape(-1)), height * width) for a in (image, mask, segmentation)
    ]
    columns = {
        "image": arrays[0],
        "mask": arrays[1],
        "segmentation": arrays[2],
        "volume": pa.array(np.full(slices, index, np.int32)),
        "slice": pa.array(np.arange(slices, dtype=np.int32)),
        "brain_fraction": pa.array(mask.mean((1, 2), dtype=np.float64).astype(np.float32)),
    }
    batch = pa.RecordBatch.from_pydict(columns)
    return batch.replace_schema_metadata({"height": str(height), "width": str(width)})


def _write_table(path: Path, rows: list[dict[str, Any]], schema: pa.Schema) -> None:
    table = pa.Table.from_pylist(rows, schema=schema)
    with pa.OSFile(str(path), "wb") as stream, pa.ipc.new_file(stream, schema) as writer:
        writer.write_table(table)


def _mapped(path: Path) -> pa.ipc.RecordBatchFileReader:
    try:
        return pa.ipc.open_file(pa.memory_map(str(path)))
    except FileNotFoundError:
        raise ArtifactError(f"{path}: missing from this {KIND}; build it again") from None
    except (pa.ArrowException, OSError) as error:
        raise ArtifactError(f"{path}: cut or damaged ({' '.join(str(error).split())}); build it again") from None


def _table(path: Path) -> list[dict[str, Any]]:
    try:
        rows: list[dict[str, Any]] = _mapped(path).read_all().to_pylist()
    except (pa.ArrowException, OSError) as error:
        raise ArtifactError(f"{path}: cut or damaged ({' '.join(str(error).split())}); build it again") from None
    return rows


def _record(row: dict[str, Any]) -> VolumeRecord:
    index, geometry = row.pop("volume"), Geometry.from_dict(json.loads(row.pop("geometry")))
    return VolumeRecord(index=index, geometry=geometry, **row)


def _whole_ones(path: Path, count: int) -> list[pa.RecordBatch]:
    """The volumes that reach beyond the window, as many as ``count``."""
    if not count:
        return []
    reader = _mapped(path)
    if reader.num_record_batches != count:
        raise ArtifactError(f"{path}: {reader.num_record_batches} volumes, but {VOLUMES} names {count}")
    return [reader.get_batch(i) for i in range(count)]


def _slice_shape(path: Path, schema: pa.Schema) -> tuple[int, int]:
    try:
        return int(schema.metadata[b"height"]), int(schema.metadata[b"width"])
    except (TypeError, KeyError, ValueError):
        raise ArtifactError(f"{path / SLICES}: names no slice shape; build it again") from None


def _fold_words(fold: int | None) -> str:
    return "" if fold is None else f" fold {fold}"


def _opened(kept: Kept) -> SliceStore:
    """On another node: fetched."""
    return SliceStore(kept.here())
