"""The catalogue of an MLflow server, over its REST API."""

import contextlib
from collections.abc import Collection, Iterator
from typing import Any

from cddpm.errors import TrackingError
from cddpm.tracking.catalogue import ModelRecord, RunRecord, VersionRecord
from cddpm.tracking.server import Server

_PAGE = 200
_ONE_BY_ONE = 4
_AT_ONCE = 100


class CatalogueServer:
    """MLflow has no transactions: what must not be cut in two is written in an order in which a cut does no harm."""

    contested = True

    def __init__(self, uri: str) -> None:
        """Raises ``AwayError`` if no server answers at ``uri`` or it does not let us in."""
        self._server = Server(uri)
        self._asked("GET", "registered-models/search", {"max_results": 1})

    @contextlib.contextmanager
    def exclusive(self) -> Iterator[None]:
        """Keeps nobody out: a server knows no such thing."""
        yield

    def models(self) -> list[str]:
        """See ``Catalogue``."""
        found = self._pages("registered-models/search", {"max_results": _PAGE}, "registered_models")
        return sorted(str(entry["name"]) for entry in found)

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
        question = {"filter": f"name = '{name}'", "max_results": _PAGE}
        return [_version(entry) for entry in self._pages("model-versions/search", question, "model_versions")]

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

    def _pages(self, what: str, question: dict[str, Any], key: str) -> Iterator[dict[str, Any]]:
        asked = dict(question)
        while True:
            answer = self._asked("GET", what, asked) or {}
            yield from answer.get(key, [])
            if not answer.get("next_page_token"):
                return
            asked["page_token"] = answer["next_page_token"]

    def _told(self, method: str, what: str, content: dict[str, Any]) -> None:
        if self._asked(method, what, content) is None:
            raise TrackingError(
                f"{self._server.shown}: MLflow refuses: there is no such model, version or tag: {content}"
            )

    def _asked(self, method: str, what: str, content: dict[str, Any]) -> dict[str, Any] | None:
        return self._server.asked(method, f"mlflow/{what}", content)


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
