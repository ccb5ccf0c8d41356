"""What is kept below ``artifacts``: every artifact with its size, its age and what it was made from, and who refers to it.

Sweeps and evaluations do: their results name artifacts, and an unfinished one still needs some. Read from disk alone.

::

    store          slices of prepared scans
    encoder        pretrained encoder                             <- store
    checkpoint     trained model                                  <- store, encoder
    prediction     parts: volume x noise level x noise seed       <- checkpoint, store, guide (a checkpoint)
    reconstruction a view of a prediction's parts                 <- prediction
    score          scores of a cohort under many settings         <- reconstruction
    model          package of an imported checkpoint              <- checkpoint
    unfinished     a training that was interrupted, or goes on
    leftover       half of an artifact whose maker was killed, or one of an earlier version
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from cddpm import artifact
from cddpm.campaign import FINISHED, HOLDER, IDENTITY, is_running
from cddpm.config import ExperimentConfig, parse, resolve_paths
from cddpm.errors import ArtifactError, ConfigError
from cddpm.reconstruct import part, reconstruction
from cddpm.reconstruct.reconstruction import MADE_FROM, View, read_view
from cddpm.scoring import score_book
from cddpm.tracking.lineage import origin_of_package
from cddpm.tracking.package_files import KIND as MODEL
from cddpm.training.stages import CHECKPOINT, ENCODER, checkpoint_identity, encoder_identity, guide_config

Kind = Literal[
    "store", "encoder", "checkpoint", "prediction", "reconstruction", "score", "model", "unfinished", "leftover"
]
SEALED: dict[Kind, str] = {
    "store": "slice store",
    "encoder": ENCODER,
    "checkpoint": CHECKPOINT,
    "reconstruction": reconstruction.KIND,
    "model": MODEL,
}
"""Kinds that lie in a folder of their name under a manifest, and what that says."""
_ORIGINS = ("store", "encoder", "checkpoint", "guide", "prediction", "reconstruction")


@dataclass(frozen=True)
class Entry:
    """One artifact. ``parents`` are the fingerprints that it was made from."""

    kind: Kind
    fingerprint: str
    path: Path
    bytes: int
    """On disk; of a reconstruction without the parts, which are its prediction's."""
    modified: float
    """Seconds since 1970 at which its newest file was written."""
    made_from: Mapping[str, Any]
    view: View | None = None
    """Of a reconstruction: which parts it needs."""
    parts: Mapping[tuple[str, part.Step], int] = field(default_factory=dict)
    """Of a prediction: size in bytes by volume id and step."""
    fault: str | None = None
    """Why it cannot be read."""

    @property
    def parents(self) -> frozenset[str]:
        """Fingerprints of the artifacts that it was made from."""
        return frozenset(value for name in _ORIGINS if isinstance(value := self.made_from.get(name), str))

    @property
    def needs(self) -> frozenset[tuple[str, part.Step]]:
        """Volume ids and steps whose parts a reconstruction is a view of."""
        view = self.view
        return frozenset((volume, step) for volume in view.volumes for step in view.steps) if view else frozenset()

    @property
    def remakable(self) -> bool:
        """False for what came from a file that nobody keeps here."""
        return self.kind != "model" and "imported" not in self.made_from


def survey(artifacts: Path) -> list[Entry]:
    """Every artifact below the folder ``artifacts``, by kind and oldest first; empty without such a folder."""
    found = [entry for kind in SEALED for entry in _sealed(artifacts / kind, kind)]
    found += [_prediction(path) for path in _folders(artifacts / reconstruction.PREDICTION)]
    found += [_score(path) for path in _folders(artifacts / score_book.KIND)]
    found += [_plain("unfinished", path) for path in _folders(artifacts, "*/.work/*") if path.is_dir()]
    found += [_plain("leftover", path) for path in _folders(artifacts, "*/.*.partial")]
    found += [_plain("leftover", path) for path in _folders(artifacts, "*/.*.parts")]
    return in_order(found)


def in_order(entries: Iterable[Entry]) -> list[Entry]:
    """By kind and oldest first."""
    order = list(Kind.__args__)  # type: ignore[attr-defined]
    return sorted(entries, key=lambda entry: (order.index(entry.kind), entry.modified, entry.fingerprint))


def _folders(directory: Path, pattern: str = "[!.]*") -> list[Path]:
    return [path for path in directory.glob(pattern) if path.is_dir()]


def _sealed(directory: Path, kind: Kind) -> Iterator[Entry]:
    for path in _folders(directory):
        try:
            raw = json.loads((path / artifact.MANIFEST).read_text())
            if raw["kind"] != SEALED[kind]:
                yield _plain("leftover", path)
                continue
            made_from, fault = dict(raw["made_from"]), None
            view = read_view(path)[0] if kind == "reconstruction" else None
        except (OSError, ValueError, KeyError, TypeError, ArtifactError) as error:
            made_from, view, fault = {}, None, f"{path}: {error}"
        yield Entry(kind, path.name, path, *_extent(path), made_from, view, fault=fault)


def _prediction(path: Path) -> Entry:
    made_from, fault = _origin(path / MADE_FROM)
    parts = {
        (volume, step): file.stat().st_size
        for volume in part.volumes_of(path)
        for step, file in part.parts_of(path, volume).items()
    }
    return Entry("prediction", path.name, path, *_extent(path), made_from, parts=parts, fault=fault)


def _score(path: Path) -> Entry:
    made_from, fault = _origin(path / score_book.MADE_FROM)
    return Entry("score", path.name, path, *_extent(path), made_from, fault=fault)


def _origin(file: Path) -> tuple[dict[str, Any], str | None]:
    try:
        return dict(json.loads(file.read_text())), None
    except (OSError, ValueError, TypeError) as error:
        return {}, f"{file}: {error}"


def _plain(kind: Kind, path: Path) -> Entry:
    return Entry(kind, path.name, path, *_extent(path), {})


def _extent(path: Path) -> tuple[int, float]:
    """Bytes of all files below ``path``, and when the newest was written."""
    size, newest = 0, path.stat().st_mtime
    for file in path.rglob("*"):
        try:
            status = file.stat()
        except FileNotFoundError:  # somebody is at work here
            continue
        if file.is_file():
            size, newest = size + status.st_size, max(newest, status.st_mtime)
    return size, newest


def damage(entry: Entry) -> list[str]:
    """What is wrong with an artifact, in one sentence each that names the file; every byte of it is read."""
    if entry.fault is not None:
        return [entry.fault]
    if entry.kind in SEALED:
        try:
            artifact.verify(entry.path, SEALED[entry.kind])
        except ArtifactError as error:
            return [str(error)]
        return lost_parts(entry)
    if entry.kind == "prediction":
        return list(_damaged_parts(entry))
    if entry.kind == "score":
        counts = {file: score_book.damaged_lines(file) for file in sorted(entry.path.glob("*.jsonl"))}
        return [f"{file}: {count} lines are damaged" for file, count in counts.items() if count]
    if entry.kind in ("unfinished", "leftover"):
        return []  # promises nothing
    raise ValueError(f"kind: {entry.kind!r}; allowed are {', '.join(Kind.__args__)}")  # type: ignore[attr-defined]


def lost_parts(entry: Entry) -> list[str]:
    """What a reconstruction needs and its prediction has no more, in one sentence; nothing is read."""
    if entry.view is None:
        return []
    parts = read_view(entry.path)[1]
    lost = [volume for volume in entry.view.volumes if entry.view.missing(parts, volume)]
    return [f"{entry.path}: parts of {len(lost)} volumes are gone from {parts}: {', '.join(lost[:5])}"] if lost else []


def _damaged_parts(entry: Entry) -> Iterator[str]:
    for volume in part.volumes_of(entry.path):
        for file in part.parts_of(entry.path, volume).values():
            try:
                part.check_part(file)
            except ArtifactError as error:
                yield str(error)


FOLDERS = {"sweeps": "sweep", "evaluations": "evaluation"}
_WORK = ("trials", "runs")
_CONFIG, _RESULT, _ORIGIN = "config.json", "result.json", "origin.json"
_NAMED = ("checkpoint", "encoder", "guide", "reconstruction")


@dataclass(frozen=True)
class Referrer:
    """A sweep or an evaluation."""

    label: str
    """``sweep quickstart``"""
    folder: Path
    state: Literal["finished", "unfinished", "running"]
    named: frozenset[str]
    """Fingerprints in its results and model packages."""
    packaged: frozenset[str]
    """Fingerprints in its model packages."""
    needed: frozenset[str]
    """Fingerprints of its slice stores, and of what its trials without result find or make; empty once it is finished."""
    tracking: frozenset[str | None]
    """MLflow URIs of its trials; None stands for the output folder's own database."""


def referrers(output_dir: Path, stores: Iterable[str], project: Path | None = None) -> list[Referrer]:
    """Every sweep and evaluation of an output folder. ``stores``: fingerprints of the slice stores that they may be of.

    ``project``: where relative places in their configurations count from, if not the folder around ``output_dir``.
    Raises ``ArtifactError`` for a result or configuration of a trial that cannot be read: what it needs is unknown then.
    """
    stores = tuple(stores)
    return [_referrer(folder, stores, project or output_dir.resolve().parent) for folder in _campaigns(output_dir)]


def running(output_dir: Path) -> list[str]:
    """Labels of the sweeps and evaluations that some process is at work on now."""
    return [_label(folder) for folder in _campaigns(output_dir) if is_running(folder)]


def _campaigns(output_dir: Path) -> list[Path]:
    found = [path for name in FOLDERS for path in sorted((output_dir / name).glob("[!.]*"))]
    return [path for path in found if any((path / name).exists() for name in (IDENTITY, HOLDER))]


def _label(folder: Path) -> str:
    return f"{FOLDERS[folder.parent.name]} {folder.name}"


def _referrer(folder: Path, stores: tuple[str, ...], project: Path) -> Referrer:
    state: Literal["finished", "unfinished", "running"] = "unfinished"
    if is_running(folder):
        state = "running"
    elif (folder / FINISHED).exists():
        state = "finished"
    packages = [artifact.read_manifest(path, MODEL) for path in folder.glob("packages/[!.]*")]
    packaged = frozenset(name for manifest in packages for name in origin_of_package(manifest))
    works = [path for part in _WORK for path in sorted((folder / part).glob("[!.]*"))]
    results = [_read(path / _RESULT) for path in works if (path / _RESULT).exists()]
    named = frozenset(value for result in results for name in _NAMED if isinstance(value := result.get(name), str))
    configs = [_config(path / _CONFIG, project) for path in works if (path / _CONFIG).exists()]
    open_ones = [] if state == "finished" else configs
    needed = frozenset(name for config in open_ones for store in stores for name in _identities(config, store))
    if state != "finished" and (folder / _ORIGIN).exists():
        needed |= frozenset(_read(folder / _ORIGIN).get("stores", ()))
    tracking = frozenset(config.tracking.uri for config in configs)
    return Referrer(_label(folder), folder, state, named | packaged, packaged, needed, tracking or frozenset({None}))


def _identities(config: ExperimentConfig, store: str) -> Iterator[str]:
    if config.method != "diffusion":
        return
    yield checkpoint_identity(config, store)[0]
    if config.model.conditioned and config.pretraining.enabled:
        yield encoder_identity(config, store)[0]
    guide = guide_config(config)
    if guide is not None:
        yield checkpoint_identity(guide, store)[0]


def _read(path: Path) -> dict[str, Any]:
    remedy = "it is unknown what is needed here: delete it, and resume with --resume"
    return artifact.read_json(path, dict[str, Any], "what this program writes", remedy)


def _config(path: Path, project: Path) -> ExperimentConfig:
    try:
        return resolve_paths(parse(_read(path), str(path)), project)
    except ConfigError as error:
        raise ArtifactError(
            f"{error}\n(of another version of this program?) What is needed there is unknown; move {path.parent} away if it "
            "is not needed any more"
        ) from error
