"""The reconstruction cache: predicted x0 of a cohort, from which every guidance scale is arithmetic.

Per volume one Arrow IPC file, memory-mapped, with one row per (branch, noise level, noise seed). Branch ``c`` is the
conditional prediction; branch ``d`` = c - u, its difference to the unconditional one, exists if the model was trained with
condition dropout or is guided by a DDPM. Both are float16. With a guidance scale s, x0(s) = u + s (c - u) = c + (s - 1) d
(classifier-free guidance, Ho & Salimans 2022, eq. 6, written for x0); keeping d instead of u keeps the rounding small where
c and u agree.
"""

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Self
from urllib.parse import quote

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from cddpm import artifact
from cddpm.config import NoiseConfig, PatchConfig, ReconstructionConfig, to_dict
from cddpm.errors import ArtifactError, CddpmError

KIND = "reconstruction cache"

Key = tuple[str, int, int]
"""(branch, noise level 1..T, noise seed)"""


def cache_path(artifacts_dir: Path, name: str) -> Path:
    """Folder of the cache with the fingerprint ``name``."""
    return artifacts_dir / "reconstruction" / name


def cache_identity(
    checkpoint: str,
    store: str,
    volumes: Sequence[str],
    config: ReconstructionConfig,
    noise: NoiseConfig,
    seed: int,
    patch: PatchConfig | None = None,
    guide: str | None = None,
) -> tuple[str, dict[str, object]]:
    """Fingerprint of a cache and what it is made from: fingerprints, volume ids and the settings that matter.

    ``guide`` is the fingerprint of the DDPM that predicts branch u, if one does.

    The batch size does not: by it about one float16 in 3000 becomes its neighbour (tests/training/test_independence.py).
    """
    made_from: dict[str, object] = {
        "checkpoint": checkpoint,
        "store": store,
        "volumes": sorted(volumes),
        "reconstruction": {k: v for k, v in to_dict(config).items() if k != "batch_size"},
        "noise": to_dict(noise),
        "seed": seed,
        **({"patch": to_dict(patch)} if patch is not None and patch.enabled else {}),
        **({"guide": guide} if guide is not None else {}),
    }
    return artifact.fingerprint(KIND, made_from), made_from


def parts_directory(path: Path) -> Path:
    """Where the volumes of the cache ``path`` are gathered until ``finish``; the same for every process."""
    return path.with_name(f".{path.name}.parts")


def has_part(directory: Path, volume_id: str) -> bool:
    """Whether this volume is already written (a part appears whole or not at all)."""
    return (directory / _file_name(volume_id)).is_file()


def write_part(directory: Path, volume_id: str, arrays: Mapping[Key, NDArray[np.floating]]) -> None:
    """Write the predictions of one volume, (S, H, W) each, keyed by (branch ``c`` or ``u``, level, seed).

    Several processes may write different volumes into one directory. With any ``u``, every ``c`` must have its ``u``.
    Raises ``CddpmError`` for values that float16 cannot hold, ``StorageError`` for a full disk, ``ValueError`` for an
    incomplete mapping.
    """
    artifact.write_bytes(directory / _file_name(volume_id), _to_arrow(rounded(volume_id, arrays)))


def _file_name(volume_id: str) -> str:
    return f"{quote(volume_id, safe='')}.arrow"


def rounded(volume_id: str, arrays: Mapping[Key, NDArray[np.floating]]) -> dict[Key, NDArray[np.float16]]:
    """The predictions of one volume as a cache holds them: branches ``c`` and ``d`` = c - u as float16.

    Raises as ``write_part``.
    """
    rows = _to_rows(arrays)
    for (branch, level, seed), values in rows.items():
        if not np.isfinite(values).all():
            raise CddpmError(
                f"volume '{volume_id}': the prediction ({branch}) at noise level {level}, seed {seed} has infinite or NaN "
                "values; the training has diverged: lower its learning rate or use an earlier checkpoint"
            )
    return rows


def _to_rows(arrays: Mapping[Key, NDArray[np.floating]]) -> dict[Key, NDArray[np.float16]]:
    conditional = {key[1:]: array for key, array in arrays.items() if key[0] == "c"}
    unconditional = {key[1:]: array for key, array in arrays.items() if key[0] == "u"}
    if not conditional or (unconditional and unconditional.keys() != conditional.keys()):
        raise ValueError(
            f"predictions {sorted(arrays)}: 'c' is needed, and 'u' for all or none of its levels and seeds"
        )
    rows: dict[Key, NDArray[np.float16]] = {}
    with np.errstate(over="ignore", invalid="ignore"):  # `rounded` names what overflows
        for (level, seed), c in sorted(conditional.items()):
            rows["c", level, seed] = c.astype(np.float16)
            if unconditional:
                u = unconditional[level, seed]
                rows["d", level, seed] = (c.astype(np.float32) - u.astype(np.float32)).astype(np.float16)
    return rows


def _to_arrow(rows: Mapping[Key, NDArray[np.float16]]) -> pa.Buffer:
    shape = next(iter(rows.values())).shape
    values = pa.array(np.concatenate([array.ravel() for array in rows.values()]))
    branches, levels, seeds = zip(*rows, strict=True)
    batch = pa.record_batch(
        [
            pa.array(branches, pa.string()),
            pa.array(levels, pa.int32()),
            pa.array(seeds, pa.int64()),
            pa.FixedSizeListArray.from_arrays(values, int(np.prod(shape))),
        ],
        names=["branch", "level", "seed", "x0"],
    ).replace_schema_metadata({"shape": ",".join(map(str, shape))})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, batch.schema) as writer:
        writer.write_batch(batch)
    return sink.getvalue()


def finish(path: Path, volume_ids: Sequence[str], name: str, made_from: dict[str, object]) -> Path:
    """Turn the gathered parts of ``path`` into the finished cache, by one process after all have written theirs.

    A crash in between loses nothing: call it again. Raises ``ArtifactError`` naming the volumes that are missing.
    """
    parts = parts_directory(path)
    if artifact.is_complete(path):
        shutil.rmtree(parts, ignore_errors=True)
        return path
    missing = [volume_id for volume_id in volume_ids if not has_part(parts, volume_id)]
    if missing:
        raise ArtifactError(f"{parts}: predictions are missing for {len(missing)} volumes: {', '.join(missing[:5])}")
    wanted = {_file_name(volume_id) for volume_id in volume_ids}
    for file in parts.iterdir():
        if file.name not in wanted:  # left by a process that was killed while writing
            file.unlink()
    artifact.seal(parts, KIND, name, made_from)
    with artifact.storage_errors(path):
        parts.rename(path)
    return path


class ReconstructionCache:
    """Read access to a finished cache. Files are mapped on first use; arrays are views unless said otherwise."""

    def __init__(self, path: Path, manifest: artifact.Manifest) -> None:
        self.path = path
        self.fingerprint = manifest.fingerprint
        self.made_from = manifest.made_from
        self.volumes: tuple[str, ...] = tuple(manifest.made_from["volumes"])
        self._arrays: dict[str, dict[Key, NDArray[np.float16]]] = {}
        first = self._volume(self.volumes[0])
        self.levels: tuple[int, ...] = tuple(sorted({level for _, level, _ in first}))
        self.seeds: tuple[int, ...] = tuple(sorted({seed for _, _, seed in first}))
        self.guided: bool = any(branch == "d" for branch, _, _ in first)

    @classmethod
    def open(cls, path: Path) -> Self:
        """Open the cache at ``path``. Raises ``ArtifactError`` if it is missing, unfinished or another artifact."""
        return cls(path, artifact.read_manifest(path, KIND))

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return ReconstructionCache.open, (self.path,)

    def c(self, volume: str, level: int, seed: int) -> NDArray[np.float16]:
        """Conditional prediction (S, H, W), a read-only view. Raises ``ArtifactError`` for what was not predicted."""
        return self._array(volume, ("c", level, seed))

    def d(self, volume: str, level: int, seed: int) -> NDArray[np.float16]:
        """Conditional minus unconditional prediction (S, H, W), a read-only view. Raises ``ArtifactError`` without one."""
        return self._array(volume, ("d", level, seed))

    def x0(self, volume: str, level: int, seed: int, guidance_scale: float = 1.0) -> NDArray[np.float32]:
        """x0(s) = c + (s - 1) d, (S, H, W), computed anew. For s <= 2 within 1e-3 of the prediction if that is in [-1, 1].

        Raises ``ArtifactError`` for a level, seed or volume that was not predicted, or s != 1 without a difference.
        """
        x0 = self.c(volume, level, seed).astype(np.float32)
        if guidance_scale != 1.0:
            x0 += np.float32(guidance_scale - 1.0) * self.d(volume, level, seed)
        return x0

    def _array(self, volume: str, key: Key) -> NDArray[np.float16]:
        arrays = self._volume(volume)
        if key in arrays:
            return arrays[key]
        if key[0] == "d" and not self.guided:
            raise ArtifactError(
                f"{self.path}: holds no unconditional predictions, so only guidance scale 1 is possible; "
                "train with diffusion.condition_dropout > 0, or set reconstruction.guide: ddpm"
            )
        raise ArtifactError(
            f"{self.path}: noise level {key[1]} with seed {key[2]} was not predicted; there are levels "
            f"{list(self.levels)} and seeds {list(self.seeds)}"
        )

    def _volume(self, volume: str) -> dict[Key, NDArray[np.float16]]:
        if volume not in self._arrays:
            if volume not in self.volumes:
                raise ArtifactError(f"{self.path}: volume '{volume}' is not among its {len(self.volumes)} volumes")
            self._arrays[volume] = _read_part(self.path / _file_name(volume))
        return self._arrays[volume]


def _read_part(file: Path) -> dict[Key, NDArray[np.float16]]:
    try:
        with pa.memory_map(str(file)) as source:
            batch = pa.ipc.open_file(source).get_batch(0)
        shape = tuple(int(size) for size in batch.schema.metadata[b"shape"].split(b","))
        values = batch.column("x0").flatten().to_numpy(zero_copy_only=True).reshape(-1, *shape)
        keys = zip(*(batch.column(name).to_pylist() for name in ("branch", "level", "seed")), strict=True)
        return dict(zip(keys, values, strict=True))
    except (OSError, pa.ArrowInvalid, KeyError, TypeError, ValueError) as error:
        raise ArtifactError(f"{file}: not a readable part of a {KIND} ({error})") from error
