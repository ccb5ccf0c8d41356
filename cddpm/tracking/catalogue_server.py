"""The catalogue of an MLflow server, asked over its REST API (version 2.0): MLflow's own client takes over a second to import.

Who the user is comes from the variables that MLflow reads too (see ``is_plain``); ways in that only MLflow knows are left to
``catalogue_client``.
"""

import contextlib
import os
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import requests
from requests.adapters import HTTPAdapter
from urllib3.util import Retry

from cddpm.errors import TrackingError
from cddpm.tracking import address
from cddpm.tracking.catalogue import ModelRecord, RunRecord, VersionRecord

_PAGE = 200
_ONE_BY_ONE = 4
_AT_ONCE = 100
_SECONDS = (8.0, 60.0)
"""To connect, and for each answer."""
_TRIES = Retry(
    3, backoff_factor=0.3, status_forcelist=(429, 502, 503, 504), allowed_methods=None, raise_on_status=False
)
"""Every request here may be repeated: what it writes is a value under a key."""
_ABSENT = "RESOURCE_DOES_NOT_EXIST"
_OTHER_WAYS_IN = (
    "MLFLOW_TRACKING_AUTH",
    "MLFLOW_TRACKING_AWS_SIGV4",
    "MLFLOW_TRACKING_CLIENT_CERT_PATH",
    "MLFLOW_TRACKING_INSECURE_TLS",
    "MLFLOW_WORKSPACE",
)


def is_plain(uri: str) -> bool:
    """Whether ``uri`` is an HTTP server that is entered freely, by name and password, or by token of the environment."""
    other = any(os.environ.get(name) for name in _OTHER_WAYS_IN) or Path("~/.mlflow/credentials").expanduser().exists()
    return uri.startswith(("http://", "https://")) and not other


class CatalogueServer:
    """MLflow has no transactions: what must not be cut in two is written in an order in which a cut does no harm."""

    contested = True

    def __init__(self, uri: str) -> None:
        """Raises ``AwayError`` if no server answers at ``uri`` or it does not let us in."""
        self._uri = uri
        self._shown = address.without_password(uri)
        self._session = requests.Session()
        self._session.mount("http://", HTTPAdapter(max_retries=_TRIES))
        self._session.mount("https://", HTTPAdapter(max_retries=_TRIES))
        name, password = os.environ.get("MLFLOW_TRACKING_USERNAME"), os.environ.get("MLFLOW_TRACKING_PASSWORD")
        if name and password:
            self._session.auth = (name, password)
        elif token := os.environ.get("MLFLOW_TRACKING_TOKEN"):
            self._session.auth = _Token(token)
        if certificates := os.environ.get("MLFLOW_TRACKING_SERVER_CERT_PATH"):
            self._session.verify = certificates
        self._asked("GET", "registered-models/search", {"max_results": 1})

    @contextlib.contextmanager
    def exclusive(self) -> Iterator[None]:
        """Keeps nobody out: a server knows no such thing."""
        yield

    def model(self, name: str) -> ModelRecord | None:
        """See ``Catalogue``."""
        found = self._asked("GET", "registered-models/get", {"name": name})
        if found is None:
            return None
        model = found["registered_model"]
        aliases = {entry["alias"]: int(entry["version"]) for entry in model.get("aliases", [])}
        return ModelRecord(aliases, _pairs(model.get("tags")))

    def versions(self, name: str) -> list[VersionRecord]:
        """See ``Catalogue``."""
        question: dict[str, Any] = {"filter": f"name = '{name}'", "max_results": _PAGE}
        found: list[VersionRecord] = []
        while True:
            answer = self._asked("GET", "model-versions/search", question) or {}
            found += [_version(entry) for entry in answer.get("model_versions", [])]
            if not answer.get("next_page_token"):
                return found
            question["page_token"] = answer["next_page_token"]

    def runs(self, ids: Collection[str]) -> dict[str, RunRecord]:
        """See ``Catalogue``."""
        wanted = sorted(set(ids))
        if len(wanted) > _ONE_BY_ONE:
            found = self._searched(wanted)
        else:
            answers = [self._asked("GET", "runs/get", {"run_id": run}) for run in wanted]
            found = [answer["run"] for answer in answers if answer is not None]
        return {run["info"]["run_id"]: _run(run["info"], run.get("data", {})) for run in found}

    def location(self, model_id: str) -> str | None:
        """See ``Catalogue``."""
        found = self._asked("GET", f"logged-models/{model_id}", {})
        return None if found is None else str(found["model"]["info"]["artifact_uri"])

    def tag_model(self, name: str, key: str, value: str) -> None:
        """See ``Catalogue``."""
        self._told("POST", "registered-models/set-tag", {"name": name, "key": key, "value": value})

    def tag_version(self, name: str, number: int, key: str, value: str | None) -> None:
        """See ``Catalogue``."""
        which = {"name": name, "version": str(number), "key": key}
        if value is None:
            self._told("DELETE", "model-versions/delete-tag", which)
        else:
            self._told("POST", "model-versions/set-tag", {**which, "value": value})

    def set_alias(self, name: str, alias: str, number: int) -> None:
        """See ``Catalogue``."""
        self._told("POST", "registered-models/alias", {"name": name, "alias": alias, "version": str(number)})

    def _searched(self, ids: list[str]) -> list[dict[str, Any]]:
        everywhere = {"view_type": "ALL", "max_results": 1000}
        experiments = (self._asked("POST", "experiments/search", everywhere) or {}).get("experiments", [])
        question = {
            "experiment_ids": [experiment["experiment_id"] for experiment in experiments],
            "run_view_type": "ALL",
            "max_results": _AT_ONCE,
        }
        found: list[dict[str, Any]] = []
        for start in range(0, len(ids), _AT_ONCE):
            some = ", ".join(f"'{run}'" for run in ids[start : start + _AT_ONCE])
            answer = self._asked("POST", "runs/search", {**question, "filter": f"attributes.run_id IN ({some})"}) or {}
            found += answer.get("runs", [])
        return found

    def _told(self, method: str, what: str, content: dict[str, Any]) -> None:
        if self._asked(method, what, content) is None:
            raise TrackingError(f"{self._shown}: MLflow refuses: there is no such model, version or tag: {content}")

    def _asked(self, method: str, what: str, content: dict[str, Any]) -> dict[str, Any] | None:
        """The answer to one request; None if what it names is absent."""
        url = f"{self._uri.rstrip('/')}/api/2.0/mlflow/{what}"
        payload: dict[str, Any] = {"params" if method == "GET" else "json": content}
        try:
            answer = self._session.request(method, url, timeout=_SECONDS, **payload)
        except (requests.ConnectionError, requests.Timeout) as error:
            raise address.away(self._uri, address.one_line(error)) from None
        except (requests.RequestException, OSError) as error:
            raise TrackingError(f"{self._shown}: MLflow cannot be asked: {address.one_line(error)}") from error
        return self._content(answer)

    def _content(self, answer: requests.Response) -> dict[str, Any] | None:
        try:
            content = answer.json()
        except ValueError:
            content = None
        if not isinstance(content, dict):
            content, message = {}, f"no answer of an MLflow server: {answer.text}"
        elif answer.ok:
            return content
        else:
            message = str(content.get("message", ""))
        if content.get("error_code") == _ABSENT:
            return None
        status = answer.status_code
        raise address.refusal(
            self._shown, address.code_of_status(status) or content.get("error_code"), f"{status} {message}"
        )


class _Token(requests.auth.AuthBase):
    """A token; as authentication of the session it is not replaced by an entry of ``.netrc``."""

    def __init__(self, token: str) -> None:
        self._token = token

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        request.headers["Authorization"] = f"Bearer {self._token}"
        return request


def _pairs(entries: list[dict[str, str]] | None) -> dict[str, str]:
    return {entry["key"]: entry.get("value", "") for entry in entries or []}


def _version(entry: dict[str, Any]) -> VersionRecord:
    return VersionRecord(
        int(entry["version"]),
        entry.get("run_id", ""),
        entry.get("source", ""),
        int(entry["creation_timestamp"]),
        _pairs(entry.get("tags")),
    )


def _run(info: dict[str, Any], data: dict[str, Any]) -> RunRecord:
    return RunRecord(
        info["run_id"],
        info.get("run_name", ""),
        info["status"],
        info.get("artifact_uri", ""),
        _pairs(data.get("params")),
        _pairs(data.get("tags")),
        {entry["key"]: float(entry.get("value", 0.0)) for entry in data.get("metrics", [])},
    )
