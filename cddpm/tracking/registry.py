"""The registry: model packages under version numbers and aliases, with an audit of every promotion.

A version is found by a **reference**: its number, an alias, MLflow's run id, or its trial's name ``<sweep>/0003``.
Metrics lie with the version, so that the best one is found without reading any run.
"""

import difflib
import errno
import getpass
import json
import logging
import math
import re
import shutil
import tempfile
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import unquote, urlsplit

import mlflow
from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion, RegisteredModel
from mlflow.exceptions import MlflowException

from cddpm import artifact
from cddpm.errors import ArtifactError, TrackingError
from cddpm.tracking import connection, logged_model, names
from cddpm.tracking.package_files import KIND, verify_package

if TYPE_CHECKING:  # it imports this module: registrations wait in its journal
    from cddpm.tracking.runs import LabBook

logger = logging.getLogger(__name__)

_ALIAS = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,63}")
_RESERVED = re.compile(r"latest|v\d+", re.IGNORECASE)
_LONGEST_WHY = 2000
_MODEL_TYPE = "cddpm"
_OF_THE_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM)


@dataclass(frozen=True)
class Version:
    """A registered model package."""

    number: int
    aliases: tuple[str, ...]
    sweep: str | None
    trial: int | None
    run_id: str
    model_id: str
    fingerprint: str
    created: str
    """ISO 8601, UTC."""
    metrics: dict[str, float]
    tags: dict[str, str]

    @property
    def trial_name(self) -> str | None:
        """``<sweep>/0003``, or the sweep's name for a model that no trial made."""
        if self.sweep is None or self.trial is None:
            return self.sweep
        return names.trial_key(self.sweep, self.trial)


@dataclass(frozen=True)
class Promotion:
    """An entry of the audit. It is written before the alias moves: a crash between leaves the intent on record."""

    alias: str
    version: int
    previous: int | None
    who: str
    when: str
    why: str


def register(
    lab: "LabBook",
    run: str,
    package_dir: Path,
    metrics: Mapping[str, float],
    tags: Mapping[str, str],
    name: str = "cddpm",
) -> int:
    """Register the package of a run (key of the lab book); returns its version number.

    The same package of the same run is registered once. Raises ``TrackingError`` if MLflow does not answer,
    ``ArtifactError`` if the package is damaged.
    """
    return Registry(lab.client(), lab.uri, name).register(lab.mlflow_id(run), package_dir, metrics, tags)


class Registry:
    """The versions of one registered model. Every method raises ``TrackingError`` if MLflow refuses."""

    def __init__(self, client: MlflowClient, uri: str, name: str = "cddpm") -> None:
        """``name``: the registered model; it need not exist yet."""
        self.name = name
        self.uri = uri
        self._client = client

    @classmethod
    def open(cls, uri: str, name: str = "cddpm") -> Self:
        """Open the registry at a tracking URI. Raises ``TrackingError`` if nothing is there."""
        return cls(connection.connect(uri, create=False), uri, name)

    def register(self, run_id: str, package_dir: Path, metrics: Mapping[str, float], tags: Mapping[str, str]) -> int:
        """Register a package under MLflow's run id; see ``register`` of this module."""
        manifest = verify_package(package_dir)
        with connection.told(f"registering {package_dir} as '{self.name}'"):
            for version in self.versions():
                if version.fingerprint == manifest.fingerprint and version.run_id == run_id:
                    return version.number
            model_id = self._logged_model(run_id, package_dir, manifest.fingerprint)
            labels = _labels(manifest.fingerprint, metrics)
            return self._new_version(run_id, model_id, {**logged_model.tags(package_dir), **tags, **labels})

    def versions(self) -> list[Version]:
        """All versions, newest first; empty if nothing was registered."""
        with connection.told(self.uri):
            model = self._model()
            if model is None:
                return []
            found: list[ModelVersion] = []
            page = None
            while page != "":
                part = self._client.search_model_versions(f"name = '{self.name}'", max_results=200, page_token=page)
                found += part
                page = part.token or ""
        ours = [_version(entry, model) for entry in found if names.FINGERPRINT_PACKAGE in entry.tags]
        return sorted(ours, key=lambda version: -version.number)

    def best(self, metric: str = "dice", dataset: str | None = None, split: str = "val", top: int = 1) -> list[Version]:
        """The ``top`` versions by a metric, best first; of one data set or the mean over them; on *validation*.

        Test metrics are looked at only with ``split="test"``. Raises ``TrackingError`` if no version has the metric.
        """
        key = self.metric_key(metric, dataset, split)
        versions = self.versions()
        having = [version for version in versions if key in version.metrics]
        if not having:
            known = sorted({name for version in versions for name in version.metrics})
            near = difflib.get_close_matches(key, known, n=3, cutoff=0.4) or known[:8]
            raise TrackingError(
                f"'{self.name}': none of {len(versions)} versions has the metric '{key}'; "
                + (f"there are {', '.join(near)}" if near else "register a model first")
            )
        sign = -1.0 if names.higher_is_better(key) else 1.0
        return sorted(having, key=lambda version: (sign * version.metrics[key], -version.number))[:top]

    @staticmethod
    def metric_key(metric: str, dataset: str | None = None, split: str = "val") -> str:
        """The name under which ``best`` looks. Raises ``TrackingError`` for another split than val or test."""
        if split not in names.SPLITS:
            raise TrackingError(f"split: '{split}': allowed are {', '.join(names.SPLITS)}")
        if metric == names.OBJECTIVE and split == "val" and dataset is None:
            return metric
        return names.metric(split, metric, dataset)

    def find(self, ref: str) -> Version:
        """The version that ``ref`` means (the newest, if a run has several). Raises ``TrackingError`` with the nearest names."""
        versions = self.versions()
        for version in versions:
            if ref in (str(version.number), version.run_id, version.trial_name, *version.aliases):
                return version
        known = [name for version in versions for name in _references(version)]
        near = difflib.get_close_matches(ref, known, n=3, cutoff=0.4)
        short = [name for name in known if len(name) != 32]  # without run ids
        hint = f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(short[:9]) or 'none yet'}"
        raise TrackingError(
            f"'{ref}' is no version of '{self.name}' in {self.uri}; {hint} "
            "(allowed: a version number, an alias, a run id or <sweep>/<trial>)"
        )

    def promotions(self, version: int | None = None) -> list[Promotion]:
        """The audit, oldest first; of one version or of all."""
        with connection.told(self.uri):
            model = self._model()
        records = [
            json.loads(v) for k, v in (model.tags if model else {}).items() if k.startswith(names.PROMOTION + ".")
        ]
        entries = [Promotion(**record) for record in records]
        return sorted((e for e in entries if version in (None, e.version)), key=lambda e: e.when)

    def promote(self, ref: str, alias: str, why: str, who: str | None = None) -> Promotion:
        """Point ``alias`` to a version whose package verifies, and write down who, when and why.

        Two promotions at once both stay in the audit (one tag each), and the alias is one of the two. Raises
        ``TrackingError`` for an alias that MLflow reserves or an empty reason, ``ArtifactError`` for a damaged package.
        """
        _check_alias(alias)
        if not why.strip() or len(why) > _LONGEST_WHY:
            raise TrackingError(f"why: {len(why)} characters; a reason of 1 to {_LONGEST_WHY} characters is needed")
        version = self.find(ref)
        self._verify(version)
        with connection.told(f"promoting version {version.number} of '{self.name}' to '{alias}'"):
            model = self._model()
            previous = model.aliases.get(alias) if model else None
            entry = Promotion(
                alias=alias,
                version=version.number,
                previous=int(previous) if previous is not None else None,
                who=who or user(),
                when=datetime.now(UTC).isoformat(timespec="microseconds"),
                why=why.strip(),
            )
            self._client.set_registered_model_tag(
                self.name, f"{names.PROMOTION}.{uuid.uuid4().hex}", json.dumps(entry.__dict__)
            )
            self._client.set_registered_model_alias(self.name, alias, str(version.number))
        return entry

    def promote_once(self, version: int, alias: str, why: str, who: str, identity: str, time_ms: int) -> bool:
        """A promotion that was written down at ``time_ms`` and is carried out now, maybe late, maybe for a second time.

        ``identity`` names it in the audit. Returns whether the alias is ours: one that was promoted after ``time_ms`` stays,
        with a warning. Raises as ``promote``.
        """
        _check_alias(alias)
        found = self.find(str(version))
        self._verify(found)
        with connection.told(f"promoting version {version} of '{self.name}' to '{alias}'"):
            model, when = self._model(), datetime.fromtimestamp(time_ms / 1000, UTC).isoformat(timespec="microseconds")
            later = [entry for entry in self.promotions() if entry.alias == alias and entry.when > when]
            if later:
                logger.warning(
                    "version %d of '%s' does not become '%s': version %d was promoted since",
                    *(version, self.name, alias, later[-1].version),
                )
                return False
            previous = model.aliases.get(alias) if model else None
            tag = f"{names.PROMOTION}.{identity}"
            if model is None or tag not in model.tags:
                before = int(previous) if previous is not None else None
                entry = Promotion(alias, version, before, who, when, why)
                self._client.set_registered_model_tag(self.name, tag, json.dumps(entry.__dict__))
            self._client.set_registered_model_alias(self.name, alias, str(version))
        return True

    def pull(self, ref: str, directory: Path) -> Path:
        """Copy a version's package to ``directory``; it appears there only after its digests were compared.

        A directory that holds this package already is kept. Raises ``ArtifactError`` if the registered files are gone or
        altered, or something else lies at ``directory``; ``StorageError`` if the disk refuses.
        """
        version = self.find(ref)
        if artifact.is_complete(directory) and verify_package(directory).fingerprint == version.fingerprint:
            return directory
        if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
            raise ArtifactError(
                f"{directory}: holds something else than version {version.number}; choose a free folder"
            )
        with artifact.storage_errors(directory):
            directory.parent.mkdir(parents=True, exist_ok=True)
            temporary = Path(tempfile.mkdtemp(prefix=f".{directory.name}.", suffix=".partial", dir=directory.parent))
            try:
                self._checked(version, lambda: self._download(version, temporary)).replace(directory)
            finally:
                shutil.rmtree(temporary, ignore_errors=True)
        return directory

    def _model(self) -> RegisteredModel | None:
        try:
            return self._client.get_registered_model(self.name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return None

    def _logged_model(self, run_id: str, package_dir: Path, name: str) -> str:
        """MLflow's model id of the package, uploaded; one that an earlier attempt left unfinished is used again."""
        experiment_id = self._client.get_run(run_id).info.experiment_id
        mine = self._client.search_logged_models([experiment_id], filter_string=f"source_run_id = '{run_id}'")
        model = next((m for m in mine if m.tags.get(names.FINGERPRINT_PACKAGE) == name), None)
        if model is None:
            model = self._client.create_logged_model(
                experiment_id,
                name=f"{self.name}-{name}",
                source_run_id=run_id,
                tags={names.FINGERPRINT_PACKAGE: name},
                model_type=_MODEL_TYPE,
            )
        if model.status != "READY":
            with logged_model.built(package_dir, run_id, model.model_id) as folder:
                self._client.log_model_artifacts(model.model_id, str(folder))
            self._client.finalize_logged_model(model.model_id, "READY")
        return str(model.model_id)

    def _new_version(self, run_id: str, model_id: str, tags: dict[str, str]) -> int:
        try:
            self._client.create_registered_model(self.name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        identity = _identity(self._client.get_run(run_id).data.tags)
        with connection.as_global(self.uri):
            version = self._client.create_model_version(
                self.name, f"models:/{model_id}", run_id, {**tags, **identity}, await_creation_for=60, model_id=model_id
            )
        return int(version.version)

    def _verify(self, version: Version) -> None:
        with tempfile.TemporaryDirectory(prefix="cddpm-") as folder:
            self._checked(version, lambda: self._local(version) or self._download(version, Path(folder)))

    def _checked(self, version: Version, fetch: Callable[[], Path]) -> Path:
        """The package in what ``fetch`` gave, all digests compared. Raises ``ArtifactError`` that names the version."""
        where = f"version {version.number} of '{self.name}'"
        try:
            path = logged_model.verify(fetch())
            found = artifact.read_manifest(path, KIND).fingerprint
        except ArtifactError as error:
            raise ArtifactError(
                f"{where}: its registered package is damaged or gone: {error}. Nothing was loaded"
            ) from None
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise TrackingError(f"{where}: cannot be fetched: {connection.one_line(error)}") from error
            raise ArtifactError(f"{where}: its files were deleted from MLflow ({connection.one_line(error)})") from None
        except OSError as error:
            if error.errno in _OF_THE_DISK:
                raise  # ours, not the registry's
            raise TrackingError(f"{where}: cannot be fetched: {connection.one_line(error)}") from error
        if found != version.fingerprint:
            raise ArtifactError(
                f"{where}: was registered as {version.fingerprint}, but {found} lies there. Nothing was loaded"
            )
        return path

    def local_package(self, version: Version) -> Path | None:
        """Folder of the registered package itself, where this machine can read it; else None."""
        found = self._local(version)
        return found / logged_model.PACKAGE if found else None

    def _local(self, version: Version) -> Path | None:
        """Folder of the logged model, where this machine can read it; else None."""
        parts = urlsplit(self._client.get_logged_model(version.model_id).artifact_location)
        return Path(unquote(parts.path)) if parts.scheme in ("", "file") else None

    def _download(self, version: Version, target: Path) -> Path:
        """The folder of the logged model, below ``target``."""
        local = self._local(version)
        if local is not None:
            artifact.read_manifest(local, logged_model.KIND)  # MLflow copies an empty folder without a word
        # Not "models:/<id>": MLflow would look that up at its process-wide URI, whatever tracking_uri says.
        location = self._client.get_logged_model(version.model_id).artifact_location
        fetched = mlflow.artifacts.download_artifacts(
            artifact_uri=location, dst_path=str(target), tracking_uri=self.uri
        )
        return Path(fetched)


def _labels(name: str, metrics: Mapping[str, float]) -> dict[str, str]:
    finite = {key: float(value) for key, value in metrics.items() if math.isfinite(value)}
    for key in sorted(metrics.keys() - finite.keys()):
        logger.warning("metric %s of package %s is %s and left out", key, name, metrics[key])
    return {names.FINGERPRINT_PACKAGE: name, names.METRICS: json.dumps(finite, sort_keys=True)}


def _identity(tags: Mapping[str, str]) -> dict[str, str]:
    return {name: tags[name] for name in (names.SWEEP, names.TRIAL, names.KIND) if name in tags}


def _version(entry: ModelVersion, model: RegisteredModel) -> Version:
    tags: dict[str, Any] = dict(entry.tags)
    number = int(entry.version)
    trial = tags.get(names.TRIAL)
    return Version(
        number=number,
        aliases=tuple(sorted(alias for alias, target in model.aliases.items() if int(target) == number)),
        sweep=tags.get(names.SWEEP),
        trial=int(trial) if trial else None,
        run_id=entry.run_id or "",
        model_id=str(entry.source).removeprefix("models:/"),
        fingerprint=tags[names.FINGERPRINT_PACKAGE],
        created=datetime.fromtimestamp(entry.creation_timestamp / 1000, UTC).isoformat(timespec="seconds"),
        metrics=json.loads(tags.get(names.METRICS, "{}")),
        tags={key: value for key, value in tags.items() if key != names.METRICS},
    )


def _references(version: Version) -> list[str]:
    trial = [version.trial_name] if version.trial_name else []
    return [*version.aliases, *trial, str(version.number), version.run_id]


def _check_alias(alias: str) -> None:
    if _RESERVED.fullmatch(alias) or not _ALIAS.fullmatch(alias):
        raise TrackingError(
            f"alias: '{alias}': allowed are up to 64 letters, digits, '_' and '-', a letter first; "
            "'latest' and 'v<number>' are MLflow's own"
        )


def user() -> str:
    """Who runs this program, as the audit names them."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # containers run under numbers without a name
        return "unknown"
