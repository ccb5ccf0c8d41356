"""Where a model comes from: a folder with a package, a folder with a trained checkpoint, or the registry."""

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cddpm import artifact
from cddpm.config import parse
from cddpm.errors import ArtifactError, ConfigError
from cddpm.place import address, home
from cddpm.tracking.package import Package, Pipeline, read_package
from cddpm.tracking.package_files import CONFIG
from cddpm.training import checkpoint
from cddpm.training.stages import guide_config

CHECKPOINT = "checkpoint"
"""As ``cddpm.training.stages`` calls it, which takes long to import."""


@dataclass(frozen=True)
class Source:
    """A model, and where it was found (JSON data, for the results' provenance)."""

    package: Package
    found: dict[str, Any]


def find(ref: str, uri: str | None = None, registered: str = "cddpm", threshold: float | None = None) -> Source:
    """The model that ``ref`` names: a folder, else a reference to a version of the registered model at ``uri``.

    ``threshold`` goes with a checkpoint, which has none of its own. Raises ``ArtifactError`` for a folder that is neither or
    damaged, ``ConfigError`` for a threshold that is missing or too much, ``TrackingError`` as the registry does.
    """
    if address(ref):
        raise ConfigError(
            f"--model {ref}: an address; allowed are a folder on a disk, or a version's number, alias, run or trial"
        )
    path = home(Path(ref))
    if path.is_dir():
        package = of_checkpoint(path, threshold) if _is_checkpoint(path) else _of_package(path, threshold)
        return Source(package, {"package": str(path.resolve())})
    _refuse(threshold)
    if path.is_file() or path.is_absolute() or ref.startswith("."):
        raise ArtifactError(f"{ref}: no folder with a model package; give one, or a reference to a registered model")
    return _of_registry(ref, uri, registered)


def of_checkpoint(directory: Path, threshold: float | None) -> Package:
    """A trained checkpoint as a package: with its configuration's own scoring settings, and ``threshold`` for all scans.

    Raises ``ConfigError`` without a threshold, or where the settings need what no checkpoint has (a guide, statistics of
    healthy scans); ``ArtifactError`` for a damaged checkpoint.
    """
    if threshold is None:
        raise ConfigError(
            f"{directory}: a checkpoint has no threshold; give one (--threshold, in units of [0, 1]), or a model package"
        )
    manifest = artifact.verify(directory, CHECKPOINT)
    file = directory / CONFIG
    remedy = "train it again, or give a model package"
    settings = artifact.read_json(file, dict[str, Any], "the settings of a checkpoint", remedy)
    try:
        config = parse(settings, str(file))
    except ConfigError as error:
        raise ArtifactError(f"{file}: not the settings of a checkpoint ({error}); {remedy}") from None
    if guide_config(config) is not None or config.scoring.normalise != "none":
        raise ConfigError(
            f"{directory}: its settings need a guide or statistics of healthy scans (reconstruction.guide "
            f"'{config.reconstruction.guide}', scoring.normalise '{config.scoring.normalise}'), which a checkpoint alone does "
            "not have; give the model package that the sweep registered"
        )
    name = artifact.fingerprint(CHECKPOINT, manifest.fingerprint, threshold)
    made_from = {"checkpoint": manifest.fingerprint}
    pipeline = Pipeline(scoring=config.scoring, thresholds={"all": threshold}, fingerprints=made_from)
    return Package(directory, name, checkpoint.load_weights(directory / checkpoint.WEIGHTS), config, pipeline)


def _is_checkpoint(directory: Path) -> bool:
    try:
        artifact.read_manifest(directory, CHECKPOINT)
    except ArtifactError:
        return False
    return True


def _of_package(directory: Path, threshold: float | None) -> Package:
    _refuse(threshold)
    return read_package(directory)


def _refuse(threshold: float | None) -> None:
    if threshold is not None:
        raise ConfigError(
            "--threshold: goes with the folder of a checkpoint; a model package has thresholds of its own"
        )


def _of_registry(ref: str, uri: str | None, registered: str) -> Source:
    from cddpm.tracking.address import default_uri
    from cddpm.tracking.registry import Registry

    registry = Registry.open(uri or default_uri(Path("outputs")), registered)
    version = registry.find(ref)
    with tempfile.TemporaryDirectory(prefix="cddpm-") as folder:
        package = read_package(registry.pull(str(version.number), Path(folder) / "package"), compared=True)
    found = {"reference": ref, "registered_model": registered, "version": version.number, "tracking_uri": registry.uri}
    return Source(package, found)
