"""What sweeps and evaluations refer to: which artifacts their results name, and which an unfinished one still needs."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from cddpm import artifact
from cddpm.campaign import FINISHED, HOLDER, IDENTITY, is_running
from cddpm.config import ExperimentConfig, parse, resolve_paths
from cddpm.errors import ArtifactError, ConfigError
from cddpm.tracking.lineage import origin_of_package
from cddpm.tracking.package_files import KIND as MODEL
from cddpm.training.guide import guide_config
from cddpm.training.stages import checkpoint_identity, encoder_identity

FOLDERS = {"sweeps": "sweep", "evaluations": "evaluation"}
_WORK = ("trials", "runs")
_CONFIG, _RESULT = "config.json", "result.json"
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
    """Fingerprints that its trials without result find or make; empty once it is finished."""
    tracking: frozenset[str | None]
    """MLflow URIs of its trials; None stands for the output folder's own database."""


def referrers(output_dir: Path, stores: Iterable[str]) -> list[Referrer]:
    """Every sweep and evaluation of an output folder. ``stores``: fingerprints of the slice stores that they may be of.

    Raises ``ArtifactError`` for a result or configuration of a trial that cannot be read: what it needs is unknown then.
    """
    stores = tuple(stores)
    return [_referrer(folder, stores) for folder in _campaigns(output_dir)]


def running(output_dir: Path) -> list[str]:
    """Labels of the sweeps and evaluations that some process is at work on now."""
    return [_label(folder) for folder in _campaigns(output_dir) if is_running(folder)]


def _campaigns(output_dir: Path) -> list[Path]:
    found = [path for name in FOLDERS for path in sorted((output_dir / name).glob("[!.]*"))]
    return [path for path in found if any((path / name).exists() for name in (IDENTITY, HOLDER))]


def _label(folder: Path) -> str:
    return f"{FOLDERS[folder.parent.name]} {folder.name}"


def _referrer(folder: Path, stores: tuple[str, ...]) -> Referrer:
    state: Literal["finished", "unfinished", "running"] = "unfinished"
    if is_running(folder):
        state = "running"
    elif (folder / FINISHED).exists():
        state = "finished"
    packaged = frozenset(name for path in folder.glob("packages/[!.]*") for name in _packaged(path))
    works = [path for part in _WORK for path in sorted((folder / part).glob("[!.]*"))]
    results = [_read(path / _RESULT) for path in works if (path / _RESULT).exists()]
    named = frozenset(value for result in results for name in _NAMED if isinstance(value := result.get(name), str))
    configs = [_config(path / _CONFIG) for path in works if (path / _CONFIG).exists()]
    open_ones = [] if state == "finished" else configs
    needed = frozenset(name for config in open_ones for store in stores for name in _identities(config, store))
    tracking = frozenset(config.tracking.uri for config in configs)
    return Referrer(_label(folder), folder, state, named | packaged, packaged, needed, tracking or frozenset({None}))


def _packaged(path: Path) -> frozenset[str]:
    return origin_of_package(artifact.read_manifest(path, MODEL))


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


def _config(path: Path) -> ExperimentConfig:
    try:
        project = path.resolve().parents[5]  # around OUTPUT_DIR/sweeps/NAME/trials/0000/config.json
        return resolve_paths(parse(_read(path), str(path)), project)
    except ConfigError as error:
        raise ArtifactError(
            f"{error}\n(of another version of this program?) What is needed there is unknown; move {path.parent} away if it "
            "is not needed any more"
        ) from error
