"""The registry: model packages under version numbers and aliases, with an audit of every promotion.

A version is found by a **reference**: its number, an alias, MLflow's run id, or its trial's name ``<sweep>/0003``.
Metrics lie with the version, so that the best one is found without reading any run.
"""

import getpass
import json
import logging
import re
import shutil
import tempfile
import uuid
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Self

from cddpm import artifact
from cddpm.errors import ArtifactError, RefusedError, TrackingError
from cddpm.tracking import address, database, names, package_files, promotion, query
from cddpm.tracking.catalogue import Catalogue, Run, Version
from cddpm.tracking.catalogue_file import SCHEMAS, CatalogueFile
from cddpm.tracking.promotion import Guard, Promotion
from cddpm.tracking.query import Comparison

if TYPE_CHECKING:  # over two seconds to import: only what writes, or talks to a server, pays for it
    from mlflow import MlflowClient

    from cddpm.tracking.catalogue_client import CatalogueClient

logger = logging.getLogger(__name__)

_ALIAS = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,63}")
_RESERVED = re.compile(r"latest|v\d+", re.IGNORECASE)
_MODEL_ID = re.compile(r"m-[0-9a-f]{32}")
_LONGEST_WHY = 2000


class Registry:
    """The versions of one registered model. Every method raises ``TrackingError`` if MLflow refuses."""

    def __init__(self, client: "MlflowClient | None", uri: str, name: str = "cddpm") -> None:
        """``name``: the registered model; it need not exist yet. Without ``client`` one is made when it is needed."""
        self.name = name
        self.uri = uri
        self._given_client = client

    @classmethod
    def open(cls, uri: str, name: str = "cddpm") -> Self:
        """Open the registry at a tracking URI. Raises ``TrackingError`` if nothing is there."""
        registry = cls(None, uri, name)
        registry._catalogue  # noqa: B018 - looks whether anything is there
        return registry

    @cached_property
    def _client(self) -> "MlflowClient":
        from cddpm.tracking import connection

        return self._given_client or connection.connect(self.uri, create=False)

    @cached_property
    def _catalogue(self) -> Catalogue:
        """To read."""
        file = address.sqlite_file(self.uri)
        return CatalogueFile(file) if file and database.check(file) in SCHEMAS else self._book

    @cached_property
    def _book(self) -> "CatalogueClient":
        """To write, and for what is read in the same moment."""
        from cddpm.tracking.catalogue_client import CatalogueClient

        return CatalogueClient(self._client, self.uri)

    def models(self) -> list[str]:
        """Names of all registered models of the lab book."""
        return self._catalogue.models()

    def run(self, run_id: str) -> Run | None:
        """A run of the lab book; None if it is gone."""
        return self._catalogue.runs([run_id]).get(run_id) if run_id else None

    # Versions

    def versions(self) -> list[Version]:
        """All versions that this program made, newest first; empty if nothing was registered."""
        ours = [version for version in self._catalogue.versions(self.name) if version.fingerprint]
        return sorted(ours, key=lambda version: -version.number)

    def select(
        self, comparisons: Sequence[Comparison] = (), sweep: str | None = None, archived: bool = False
    ) -> list[Version]:
        """Versions that fulfil ``comparisons``, newest first; of one sweep; archived ones too if asked for."""
        found = [v for v in self.versions() if sweep in (None, v.sweep) and (archived or not v.archived)]
        return query.where(found, comparisons, self._catalogue)

    def best(
        self,
        metric: str = "dice",
        dataset: str | None = None,
        split: str = "val",
        top: int = 1,
        comparisons: Sequence[Comparison] = (),
        archived: bool = False,
    ) -> list[Version]:
        """The ``top`` versions by a metric, best first; of one data set or the mean over them; on *validation*.

        Test metrics are looked at only with ``split="test"``. Raises ``TrackingError`` if no version has the metric.
        """
        key = query.score_key(metric, dataset, split)
        chosen = query.ranked(self.select(archived=archived), key, self.name)
        return query.where(chosen, comparisons, self._catalogue)[:top]

    def find(self, ref: str) -> Version:
        """The version that ``ref`` means (the newest, if a run has several). Raises ``TrackingError`` with the nearest names."""
        return query.find(ref, self.versions(), f"'{self.name}' in {self.uri}")

    # Aliases

    def promotions(self, version: int | None = None) -> list[Promotion]:
        """The audit, oldest first; of one version or of all."""
        entries = promotion.audit(self._catalogue.model(self.name)).values()
        return [entry for entry in entries if version in (None, entry.version)]

    def promotion(self, identity: str) -> Promotion | None:
        """The entry of ``promote_once`` with this identity."""
        return promotion.audit(self._catalogue.model(self.name)).get(f"{names.PROMOTION}.{identity}")

    def promote(
        self, ref: str, alias: str, why: str, who: str | None = None, guards: Sequence[Guard] = (), forced: bool = False
    ) -> Promotion:
        """Point ``alias`` to a version whose package verifies and of which all ``guards`` hold; write down who, when and why.

        Of two promotions at once one wins. Raises ``RefusedError`` for the other, for an archived version and for a guard
        that does not hold; ``TrackingError`` for an alias that MLflow reserves or an empty reason, ``ArtifactError`` for a
        damaged package.
        """
        _check_alias(alias)
        _check_why(why)
        before = self._alias(alias)
        version = self._promotable(self.find(ref))
        texts = tuple(guard.text for guard in guards)
        attempt = Promotion(
            alias, version.number, before, who or user(), _now(), why.strip(), conditions=texts, forced=forced
        )
        return self._moved(self._move(attempt, version, guards))

    def rollback(self, alias: str, why: str | None = None, who: str | None = None) -> Promotion:
        """Point ``alias`` to what it meant before its last promotion; again, and it goes one further back.

        Raises ``TrackingError`` for an unknown alias or one without a past, else as ``promote``.
        """
        before = self._alias(alias)
        past = promotion.history(self.promotions(), alias, before)
        if before is None:
            known = [name for version in self.versions() for name in version.aliases]
            near = query.nearest_names(alias, known) or "none yet"
            raise TrackingError(f"'{alias}' is no alias of '{self.name}'; there are {near}")
        if len(past) < 2:
            raise TrackingError(f"'{alias}' of '{self.name}' never meant anything else than version {before}")
        version = self._promotable(self.find(str(past[-2])))
        reason = why if why is not None else f"rollback of version {before}"
        _check_why(reason)
        attempt = Promotion(alias, version.number, before, who or user(), _now(), reason.strip(), action="rollback")
        return self._moved(self._move(attempt, version, ()))

    def promote_once(self, version: int, alias: str, why: str, who: str, identity: str, time_ms: int) -> Promotion:
        """A sweep's promotion that was written down at ``time_ms`` and is carried out now, maybe late, maybe a second time.

        ``identity`` names it in the audit. A champion of other data or another aim stays, as does a better one and one that
        was promoted after ``time_ms``: then the entry that comes back is ``refused``. Raises as ``promote``, but for that.
        """
        _check_alias(alias)
        known = self.promotion(identity)
        if known is not None and known.refused != promotion.BEGUN:
            return known
        found = self._promotable(self.find(str(version)))
        when = datetime.fromtimestamp(time_ms / 1000, UTC).isoformat(timespec="microseconds")
        entry = Promotion(alias, version, self._alias(alias), who, when, why)
        entry = self._move(entry, found, [promotion.not_worse_than_of_same_aim(alias)], identity)
        if entry.refused:
            logger.warning("version %d of '%s' does not become '%s': %s", version, self.name, alias, entry.refused)
        return entry

    def _alias(self, alias: str) -> int | None:
        model = self._catalogue.model(self.name)
        return model.aliases.get(alias) if model else None

    def _promotable(self, version: Version) -> Version:
        if version.archived:
            raise RefusedError(
                f"version {version.number} of '{self.name}' is archived; bring it back first "
                f"({address.registry_command(self.uri, self.name, 'restore', str(version.number))})"
            )
        self.verify(version)
        return version

    def _move(
        self, attempt: Promotion, version: Version, guards: Sequence[Guard], identity: str | None = None
    ) -> Promotion:
        """Enter the attempt and move the alias if nothing speaks against it; one that has only begun is carried on."""
        key = f"{names.PROMOTION}.{identity or uuid.uuid4().hex}"
        promotion.begin(self._book, self.name, key, attempt)
        with self._book.exclusive():
            model = self._catalogue.model(self.name)
            now = model.aliases.get(attempt.alias) if model else None
            since = _promoted_since(promotion.audit(model), key, attempt) if identity else ""
            refusal = since or promotion.moved(attempt.alias, attempt.previous, now)
            refusal = refusal or next((why for guard in guards if (why := guard.refusal(version, self._lookup))), "")
            return promotion.move(self._book, self.name, key, attempt, refusal)

    def _lookup(self, ref: str) -> Version | None:
        try:
            return self.find(ref)
        except TrackingError:
            return None

    def _moved(self, entry: Promotion) -> Promotion:
        if entry.refused:
            raise RefusedError(
                f"version {entry.version} of '{self.name}' does not become '{entry.alias}': {entry.refused}. "
                "Nothing was moved; the audit keeps the attempt"
            )
        return entry

    # Archive

    def archive(self, ref: str, why: str, who: str | None = None) -> Version:
        """Hide a version from lists; nothing is deleted. Raises ``RefusedError`` if an alias points to it."""
        _check_why(why)
        entry = {"who": who or user(), "when": _now(), "why": why.strip()}
        with self._book.exclusive():
            version = self.find(ref)
            if version.aliases:
                raise RefusedError(
                    f"version {version.number} of '{self.name}' is {', '.join(version.aliases)}; promote another one to that "
                    "first, or roll it back"
                )
            self._book.tag_version(self.name, version.number, names.ARCHIVED, json.dumps(entry))
        return self.find(str(version.number))

    def restore(self, ref: str) -> Version:
        """Show an archived version again; one that is not archived stays as it is."""
        version = self.find(ref)
        if version.archived:
            self._book.tag_version(self.name, version.number, names.ARCHIVED, None)
        return self.find(str(version.number))

    # Files

    def pull(self, ref: str, directory: Path) -> Path:
        """Copy a version's package to ``directory``; it appears there only after its digests were compared.

        A directory that holds this package already is kept. Raises ``ArtifactError`` if the registered files are gone or
        altered, or something else lies at ``directory``; ``StorageError`` if the disk refuses.
        """
        version = self.find(ref)
        there = package_files.verify_package(directory) if artifact.is_complete(directory) else None
        if there is not None and there.fingerprint == version.fingerprint:
            return directory
        if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
            raise ArtifactError(
                f"{directory}: holds something else than version {version.number}; choose a free folder"
            )
        with artifact.storage_errors(directory):
            directory.parent.mkdir(parents=True, exist_ok=True)
            temporary = Path(tempfile.mkdtemp(prefix=f".{directory.name}.", suffix=".partial", dir=directory.parent))
            try:
                self._package(version, temporary, copied=True).replace(directory)
            finally:
                shutil.rmtree(temporary, ignore_errors=True)
        return directory

    def verify(self, version: Version) -> None:
        """Compare the digests of a version's package. Raises ``ArtifactError`` that names the version."""
        with tempfile.TemporaryDirectory(prefix="cddpm-") as folder:
            self._package(version, Path(folder))

    def local_package(self, version: Version) -> Path | None:
        """Folder of the registered package itself, where this machine can read it; else None.

        Raises ``ArtifactError`` if MLflow knows no such model, or says that it lies outside of its folder.
        """
        found = package_files.local_path(self._location(version))
        return found / package_files.INSIDE if found else None

    def file_of_package(self, version: Version, name: str) -> bytes | None:
        """A file of the registered package, its digest not compared; None if there is none."""
        return package_files.read_file(f"{self._location(version)}/{package_files.INSIDE}", name, self.uri)

    def _package(self, version: Version, folder: Path, copied: bool = False) -> Path:
        """The version's package, all digests compared: where it lies, or (also if ``copied`` is asked for) below ``folder``.

        Raises ``ArtifactError`` that names the version.
        """
        where = f"version {version.number} of '{self.name}'"
        try:
            place = self._location(version)
            local = None if copied else package_files.local_path(place)
            path = package_files.verify_logged_model(local or package_files.fetch_model(place, folder, self.uri))
            found = artifact.read_manifest(path, package_files.KIND).fingerprint
        except ArtifactError as error:
            raise ArtifactError(
                f"{where}: its registered package is damaged or gone: {error}. Nothing was loaded"
            ) from None
        if found != version.fingerprint:
            raise ArtifactError(
                f"{where}: was registered as {version.fingerprint}, but {found} lies there. Nothing was loaded"
            )
        return path

    def _location(self, version: Version) -> str:
        if not _MODEL_ID.fullmatch(version.model_id):
            raise ArtifactError(f"its registry entry points to '{version.model_id}', which is no model id of MLflow")
        found = self._catalogue.location(version.model_id)
        if found is None:
            raise ArtifactError(f"its files were deleted from MLflow (no model {version.model_id})")
        return found

    # Registration

    def register(
        self, run_id: str, package_dir: Path, metrics: Mapping[str, float], tags: Mapping[str, str], label: str = ""
    ) -> int:
        """Register a package under MLflow's run id; returns its version number. ``label``: see ``logged_model.register``.

        The same package of the same run is registered once. Raises ``TrackingError`` if MLflow does not answer,
        ``ArtifactError`` if the package is damaged.
        """
        from cddpm.tracking import connection, logged_model

        manifest = package_files.verify_package(package_dir)
        for version in self.versions():
            if version.fingerprint == manifest.fingerprint and version.run_id == run_id:
                return version.number
        client = self._given_client or connection.connect(self.uri)
        return logged_model.register(client, self.uri, self.name, run_id, package_dir, metrics, tags, label)


def _promoted_since(entries: Mapping[str, Promotion], key: str, attempt: Promotion) -> str:
    later = [
        e
        for k, e in entries.items()
        if k != key and e.alias == attempt.alias and e.when > attempt.when and not e.refused
    ]
    return f"version {later[-1].version} was promoted since" if later else ""


def _check_alias(alias: str) -> None:
    if _RESERVED.fullmatch(alias) or not _ALIAS.fullmatch(alias):
        raise TrackingError(
            f"alias: '{alias}': allowed are up to 64 letters, digits, '_' and '-', a letter first; "
            "'latest' and 'v<number>' are MLflow's own"
        )


def _check_why(why: str) -> None:
    if not why.strip() or len(why) > _LONGEST_WHY:
        raise TrackingError(f"why: {len(why)} characters; a reason of 1 to {_LONGEST_WHY} characters is needed")


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="microseconds")


def user() -> str:
    """Who runs this program, as the audit names them."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # containers run under numbers without a name
        return "unknown"
