"""The catalogue behind MLflow's client: a server or any database of MLflow, to read and to write."""

import contextlib
from collections.abc import Callable, Collection, Iterator
from functools import partial
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import ViewType
from mlflow.exceptions import MlflowException

from cddpm import artifact
from cddpm.tracking import address, connection, database
from cddpm.tracking.catalogue import Model, Run, Version

_PAGE = 1000
_ONE_BY_ONE = 4
_AT_ONCE = 100


class CatalogueClient:
    """MLflow has no transactions: what must not be cut in two is written in an order in which a cut does no harm."""

    def __init__(self, client: MlflowClient, uri: str) -> None:
        self._client, self._uri = client, uri
        self._file = address.sqlite_file(uri)

    @property
    def contested(self) -> bool:
        """Whether ``exclusive`` cannot keep others out."""
        return self._file is None

    @contextlib.contextmanager
    def exclusive(self) -> Iterator[None]:
        """What is read and written inside belongs together.

        Keeps other processes of this program out where the database is a file; a server knows no such thing.
        """
        if self._file is None:
            yield
            return
        with artifact.lock(self._file.with_name(f".{self._file.name}.registry.lock")):
            yield

    def models(self) -> list[str]:
        """See ``Catalogue``."""
        return sorted(str(entry.name) for entry in self._pages(self._client.search_registered_models))

    def model(self, name: str) -> Model | None:
        """See ``Catalogue``."""
        with connection.told(self._uri):
            found = _unless_absent(lambda: self._client.get_registered_model(name))
        if found is None:
            return None
        return Model({alias: int(number) for alias, number in found.aliases.items()}, dict(found.tags))

    def versions(self, name: str) -> list[Version]:
        """See ``Catalogue``."""
        model = self.model(name)
        if model is None:
            return []
        found = self._pages(partial(self._client.search_model_versions, f"name = '{name}'"))
        return [
            Version.of(int(e.version), e.run_id or "", str(e.source or ""), e.creation_timestamp, e.tags, model.aliases)
            for e in found
        ]

    def runs(self, ids: Collection[str]) -> dict[str, Run]:
        """See ``Catalogue``."""
        wanted = sorted(set(ids))
        with connection.told(self._uri):
            if len(wanted) <= _ONE_BY_ONE:
                found = [_unless_absent(partial(self._client.get_run, run)) for run in wanted]
            else:
                found = self._searched(wanted)
        return {
            run.info.run_id: Run(
                run.info.run_id, self._place(run.info.artifact_uri or ""), dict(run.data.params), dict(run.data.tags)
            )
            for run in found
            if run is not None
        }

    def location(self, model_id: str) -> str | None:
        """See ``Catalogue``."""
        with connection.told(self._uri):
            found = _unless_absent(lambda: self._client.get_logged_model(model_id))
        return None if found is None else self._place(str(found.artifact_location))

    def tag_model(self, name: str, key: str, value: str) -> None:
        """Set or replace a tag of the registered model."""
        with connection.told(self._uri):
            self._client.set_registered_model_tag(name, key, value)

    def tag_version(self, name: str, number: int, key: str, value: str | None) -> None:
        """Set or replace a tag of a version; None removes it."""
        with connection.told(self._uri):
            if value is None:
                self._client.delete_model_version_tag(name, str(number), key)
            else:
                self._client.set_model_version_tag(name, str(number), key, value)

    def set_alias(self, name: str, alias: str, number: int) -> None:
        """Point an alias to a version that exists."""
        with connection.told(self._uri):
            self._client.set_registered_model_alias(name, alias, str(number))

    def _pages(self, search: Callable[..., Any]) -> list[Any]:
        found: list[Any] = []
        page = None
        with connection.told(self._uri):
            while page != "":
                part = search(max_results=_PAGE, page_token=page)
                found += part
                page = part.token or ""
        return found

    def _place(self, place: str) -> str:
        return database.here(place, self._file) if self._file else place

    def _searched(self, ids: list[str]) -> list[Any]:
        experiments = [e.experiment_id for e in self._client.search_experiments(ViewType.ALL, max_results=1000)]
        found: list[Any] = []
        for start in range(0, len(ids), _AT_ONCE):
            some = ", ".join(f"'{run}'" for run in ids[start : start + _AT_ONCE])
            found += self._client.search_runs(
                experiments, f"attributes.run_id IN ({some})", ViewType.ALL, max_results=_AT_ONCE
            )
        return found


def _unless_absent(ask: Callable[[], Any]) -> Any:
    try:
        return ask()
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return None
